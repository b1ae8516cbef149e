"""Data sets as one uint8 tensor in memory: an ImageFolder tree, torchvision's CIFAR, the scikit-learn digits."""

from __future__ import annotations

import hashlib
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS

_logger = logging.getLogger(__name__)

SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing", "dev", "eval"}


@dataclass
class Images:
    """levels (N, C, H, W) uint8, labels (N,) int64, class_names in label order."""

    levels: Tensor
    labels: Tensor
    class_names: list[str]

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: Tensor) -> Images:
        return Images(self.levels[indices], self.labels[indices], self.class_names)

    def sha256(self) -> str:
        """Of images, labels and class names."""
        h = hashlib.sha256(repr((tuple(self.levels.shape), self.class_names)).encode())
        h.update(self.labels.cpu().numpy().tobytes())
        h.update(self.levels.cpu().contiguous().numpy())
        return h.hexdigest()

    def without_labels(self) -> Images:
        """The same images as one class."""
        return Images(self.levels, torch.zeros_like(self.labels), ["image"])


def load_data(
    data: str,
    data_dir: str | Path | None = None,
    image_size: int | None = None,
    in_chans: int = 3,
    val_fraction: float = 0.0,
    skip_unreadable: bool = False,
    seed: int = 0,
) -> tuple[Images, Images | None]:
    """Training and validation images.

    Args:
        data: folder, cifar10, cifar100 (downloaded into data_dir where missing) or digits (no directory).
        data_dir: for a folder the root, with train/ and val/ inside, or class folders directly.
        val_fraction: stratified share of the training images held out; replaces any validation split of the data, so
            that nothing is tuned on it. The digits have no split of their own and hold out 20% unless given.
    """
    if data == "digits":
        train, val = _digits(), None
        val_fraction = val_fraction or 0.2
        seed = 0  # the same split for every training: it is the data set's, not the run's
    elif data_dir is None:
        raise ValueError(f"data {data!r} needs --data-dir")
    elif data in ("cifar10", "cifar100"):
        train, val = _cifar(data, data_dir, True), _cifar(data, data_dir, False)
    else:
        train, val = _folder_splits(Path(data_dir), image_size, in_chans, skip_unreadable)
    if val_fraction:
        rest, held = stratified_split(train.labels, val_fraction, seed)
        if not len(held):
            raise ValueError(
                f"val_fraction {val_fraction:g} holds out no image, as every class has one alone; set val_fraction=0"
            )
        train, val = train.subset(rest), train.subset(held)
    return train, val


def stratified_split(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Sorted indices of the rest and of a random `fraction` of every class (at least one image, never all)."""
    g = torch.Generator().manual_seed(seed)
    held = []
    for k in labels.unique():
        own = torch.nonzero(labels == k).flatten()
        n = min(max(1, round(fraction * len(own))), len(own) - 1)
        held.append(own[torch.randperm(len(own), generator=g)[:n]])
    held = torch.cat(held).sort().values
    rest = torch.ones(len(labels), dtype=torch.bool)
    rest[held] = False
    return torch.nonzero(rest).flatten(), held


def random_shift(
    levels: Tensor, pixels: int, generator: torch.Generator, mode: str = "reflect"
) -> Tensor:
    """Images (B, C, H, W), each shifted by up to `pixels` both ways; `mode` of `F.pad` says what comes in at an edge."""
    b, _, h, w = levels.shape
    padded = F.pad(levels.float(), (pixels,) * 4, mode=mode).to(levels.dtype)
    start = torch.randint(
        0, 2 * pixels + 1, (2, b, 1), generator=generator, device=generator.device
    )
    start = start.to(levels.device, non_blocking=True)
    rows, columns = (
        s + torch.arange(n, device=levels.device) for s, n in zip(start, (h, w), strict=True)
    )
    image = torch.arange(b, device=levels.device).view(b, 1, 1)
    return padded[image, :, rows.unsqueeze(2), columns.unsqueeze(1)].permute(
        0, 3, 1, 2
    )  # indexing puts C last


def _folder_splits(root: Path, size, in_chans, skip) -> tuple[Images, Images | None]:
    if not root.is_dir():
        raise FileNotFoundError(f"no directory {root}")
    val_dir = next((root / n for n in ("val", "validation", "test") if (root / n).is_dir()), None)
    train_dir = root / "train" if (root / "train").is_dir() else root
    splits = sorted(d.name for d in root.iterdir() if d.is_dir() and d.name.lower() in SPLITS)
    if splits and train_dir == root:
        raise ValueError(
            f"{root} must hold train/ (and val/), or class folders directly; it holds {', '.join(splits)}, which would be taken "
            f"for classes: rename the folder of the training images to train, or name it itself as --data-dir"
        )
    train = load_folder(train_dir, size, in_chans, skip)
    if val_dir is None or train_dir == root:
        return train, None
    val = load_folder(val_dir, size, in_chans, skip)
    if val.class_names != train.class_names:
        raise ValueError(f"{val_dir} and {train_dir} hold different classes")
    return train, val


def load_folder(root: Path, size: int, in_chans: int = 3, skip_unreadable: bool = False) -> Images:
    """Class folders of images, in sorted order; other sizes are resized (bicubic) and centre-cropped to size x size."""
    names = sorted(d.name for d in root.iterdir() if d.is_dir())
    files = [
        (path, k)
        for k, name in enumerate(names)
        for path in sorted((root / name).rglob("*"))
        if path.suffix.lower() in IMG_EXTENSIONS
    ]
    if not files:
        raise ValueError(
            f"{root} holds no images; expected class folders with files ending in {' '.join(IMG_EXTENSIONS)}"
        )
    empty = set(range(len(names))) - {k for _, k in files}
    if empty:
        raise ValueError(
            f"class folder {root / names[min(empty)]} holds no images ({len(empty)} such folders)"
        )
    levels = np.empty((len(files), in_chans, size, size), dtype=np.uint8)
    with ThreadPoolExecutor() as pool:
        errors = list(pool.map(lambda i: _read(files[i][0], levels[i]), range(len(files))))
    bad = [(files[i][0], e) for i, e in enumerate(errors) if e]
    for path, error in bad:
        _logger.warning("cannot read %s: %s", path, error)
    if bad and not skip_unreadable:
        raise ValueError(
            f"{len(bad)} of {len(files)} images cannot be read, the first is {bad[0][0]} ({bad[0][1]}); "
            f"mend or remove them, or skip them with skip_unreadable=true"
        )
    good = torch.tensor([e is None for e in errors])
    labels = torch.tensor([k for _, k in files])
    lost = set(range(len(names))) - set(labels[good].tolist())
    if lost:
        raise ValueError(
            f"no image of class folder {root / names[min(lost)]} can be read ({len(lost)} such folders)"
        )
    return Images(torch.from_numpy(levels)[good], labels[good], names)


def _read(path: Path, out: np.ndarray) -> str | None:
    """Decodes one image into out (C, size, size); returns what went wrong, or None."""
    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):  # PIL would clip it at level 255
                return (
                    f"mode {image.mode} has more than 8 bits a channel; convert it to 8 bits first"
                )
            image = image.convert("RGB" if out.shape[0] == 3 else "L")
            if image.size != (out.shape[2], out.shape[1]):
                image = ImageOps.fit(image, (out.shape[2], out.shape[1]), Image.Resampling.BICUBIC)
            out[:] = np.asarray(image).reshape(out.shape[1], out.shape[2], -1).transpose(2, 0, 1)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as e:
        return f"{type(e).__name__}: {e}"
    return None


def _cifar(name: str, root: str | Path, train: bool) -> Images:
    from torchvision.datasets import CIFAR10, CIFAR100

    data = (CIFAR10 if name == "cifar10" else CIFAR100)(root, train=train, download=True)
    return Images(
        torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous(),
        torch.tensor(data.targets),
        data.classes,
    )


def _digits() -> Images:
    from sklearn.datasets import load_digits

    data = load_digits()
    levels = torch.from_numpy((data.images * (255 / 16)).round().astype(np.uint8)).unsqueeze(1)
    return Images(
        levels, torch.from_numpy(data.target.astype(np.int64)), [str(k) for k in range(10)]
    )
