"""What every case starts from: images of integer arithmetic, flows on disk, tiny datasets."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset, SequentialSampler

import timm_nfaug as nfa

HERE = Path(__file__).parent
FLOWS, CACHE, RUN = HERE / "flows", HERE / "cache", HERE / "run"
MODES = 4  # that each flow on disk stores
CLASSES = ("a", "b", "c")


def levels(count: int, size=(3, 8, 8), seed: int = 0) -> torch.Tensor:
    """uint8 images (count, C, H, W): a colour per class, a slope per image, and noise."""
    c, h, w = size
    rng = np.random.default_rng(seed)
    colours = np.array([[190, 70, 60], [70, 180, 90], [60, 90, 200]])[np.arange(count) % 3]
    down, right = rng.integers(-60, 61, (2, count, 1, 1, 1))
    y, x = np.arange(h).reshape(h, 1), np.arange(w).reshape(1, w)
    slopes = down * (2 * y - h) // h + right * (2 * x - w) // w
    noise = rng.integers(-12, 13, (count, c, h, w))
    found = colours[:, :c, None, None] + slopes + noise
    return torch.from_numpy(found.clip(0, 255).astype(np.uint8))


def labels(count: int) -> torch.Tensor:
    return torch.arange(count) % 3


def model_range(x: torch.Tensor) -> torch.Tensor:
    """Levels as float32 in [-1, 1], at the middle of each level."""
    return (x.float() + 0.5) * (2 / 256) - 1


def noise(count: int, size: int = MODES, seed: int = 9) -> torch.Tensor:
    """Noise in steps of 1/64 within +-2, the same on every machine."""
    return (
        torch.from_numpy(np.random.default_rng(seed).integers(-128, 129, (count, size))).float()
        / 64
    )


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pil(x: torch.Tensor) -> Image.Image:
    array = x.permute(1, 2, 0).numpy()
    return Image.fromarray(np.ascontiguousarray(array[:, :, 0] if x.shape[0] == 1 else array))


def array(image: Image.Image) -> torch.Tensor:
    """(C, H, W) uint8."""
    found = np.array(image)
    return torch.from_numpy(found[None] if found.ndim == 2 else found.transpose(2, 0, 1).copy())


def flow_names() -> list[str]:
    return sorted(p.name for p in FLOWS.iterdir())


def flow(name: str) -> nfa.ConditionalFlow:
    return nfa.ConditionalFlow.from_pretrained(FLOWS / name).eval().requires_grad_(False)


def augment(name: str = "conv_p4_tiny", **settings) -> nfa.NFAugment:
    """The transform of a flow on disk; strength 1 and p 1 unless given, so that much moves."""
    return nfa.NFAugment(
        flow(name), **{"strength": 1.0, "p": 1.0, "modes": MODES, "labels": "given"} | settings
    )


def parsed(*flags: str, **others) -> argparse.Namespace:
    """Arguments of a training script that called `add_args`."""
    parser = argparse.ArgumentParser()
    nfa.add_args(parser)
    return argparse.Namespace(**vars(parser.parse_args(flags)), **others)


class Pictures(Dataset):
    """PIL images or uint8 tensors with integer labels, and the `transform` that timm sets."""

    classes = CLASSES

    def __init__(self, x: torch.Tensor, transform=None, as_pil: bool = True):
        self.x, self.transform, self.as_pil = x, transform, as_pil

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int):
        image = pil(self.x[i]) if self.as_pil else self.x[i]
        return image if self.transform is None else self.transform(image), int(i % 3)


class Moved(Dataset):
    """A dataset whose transform is the augmentation, called with image and label."""

    def __init__(self, x: torch.Tensor, transform: nfa.NFAugment):
        self.x, self.transform = x, transform

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int):
        image, label = self.transform(pil(self.x[i]), int(i % 3))
        return array(image), label


def in_order(loader):
    """The loader without its shuffling, which is torch's and may change with its version."""
    inner = getattr(loader, "loader", loader)  # of timm's prefetcher
    inner.batch_sampler.sampler = SequentialSampler(inner.dataset)
    return loader


def write_folder(root: Path, side: int = 32) -> Path:
    """An ImageFolder tree of PNGs: train/ with 4 and val/ with 4 images per class."""
    for split, count, seed in (("train", 12, 1), ("val", 12, 2)):
        for i, x in enumerate(levels(count, (3, side, side), seed)):
            path = root / split / CLASSES[i % 3] / f"{i:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pil(x).save(path)
    return root
