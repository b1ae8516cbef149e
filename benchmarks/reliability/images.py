"""Odd images through the transform, `from_data` and the preview's reader."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import timm_nfaug as nfa
from benchmarks.reliability import inputs
from benchmarks.reliability.rows import Row
from timm_nfaug.reading import read_image

MODES = ("1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "I;16", "LA", "PA")
SIZES = ((1, 1), (1, 7), (7, 1), (3, 2), (31, 33), (32, 32), (64, 48), (224, 160), (5000, 3), (3, 5000))  # fmt: skip
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
DTYPES = (torch.uint8, *FLOATS, torch.int64, torch.bool, torch.int16)
CHANNELS = (3, 3, 3, 1, 4, 2)
VALUES = ("random", "zeros", "ones", "NaN", "inf", "large", "tiny", "just outside")
FORMATS = {"png": "PNG", "jpg": "JPEG", "bmp": "BMP", "webp": "WEBP", "ppm": "PPM", "tif": "TIFF"}
Tried = tuple[str, str, str]  # kind, end, problem


def run(count: int, seed: int, work: Path, fork: bool = False) -> list[Row]:
    row = Row("images", "odd images")
    target = "benchmarks.reliability.images:try_one"
    return [inputs.run(row, target, count, seed, work, fork=fork)]


def try_one(index: int, seed: int, folder: Path) -> Tried:
    """Makes an odd image of one of four kinds, and tries it."""
    kind, tried = list(KINDS.items())[index % len(KINDS)]
    g = np.random.default_rng([seed, index])
    try:
        return kind, *tried(g, folder)
    except (ValueError, TypeError, OSError) as e:
        end = "refused" if str(e).strip() else "raw"
        return kind, end, f"{type(e).__name__} without a message" if end == "raw" else ""
    except Exception as e:
        return kind, "raw", f"{type(e).__name__}: {e}"


@functools.lru_cache
def _augment(channels: int, strength: float) -> nfa.NFAugment:
    name = "linear.cifar10" if channels == 3 else "conv_p4_tiny.digits"
    return nfa.NFAugment.from_pretrained(name, modes=4, strength=strength, p=1.0, seed=0)


def _any_augment(g: np.random.Generator) -> nfa.NFAugment:
    return _augment(int(g.choice([1, 3])), float(g.choice([0.0, 0.5, 3.0])))


def _pil(g: np.random.Generator) -> Image.Image:
    mode, (w, h) = str(g.choice(MODES)), SIZES[g.integers(len(SIZES))]
    levels = g.integers(0, 256, (h, w, 3), dtype=np.uint8)
    image = Image.fromarray(levels)
    if mode in ("I;16", "I"):
        return Image.fromarray(g.integers(0, 65536, (h, w), dtype=np.uint16)).convert(mode)
    if mode == "F":
        return Image.fromarray(g.standard_normal((h, w)).astype(np.float32) * 1e30)
    if mode in ("LA", "PA", "LAB", "HSV"):
        return Image.frombytes(mode, (w, h), g.bytes(len(mode.replace("LAB", "abc")) * w * h))
    return image.convert(mode)


def try_pil(g: np.random.Generator, folder: Path) -> tuple[str, str]:
    image, augment = _pil(g), _any_augment(g)
    before, label = image.tobytes(), int(g.integers(10))
    new, same = augment(image, label)
    if (new.mode, new.size, same) != (image.mode, image.size, label):
        return "broken", f"{image.mode} {image.size} became {new.mode} {new.size}"
    if image.tobytes() != before:
        return "broken", "the caller's image changed"
    if augment.idle and new.tobytes() != before:
        return "broken", "strength 0 changed the image"
    return "loaded", ""


def _tensor(g: np.random.Generator) -> Tensor:
    dtype, (w, h) = DTYPES[g.integers(len(DTYPES))], SIZES[g.integers(len(SIZES))]
    shape = [int(g.choice(CHANNELS)), h, w]
    shape = shape if g.integers(2) else [int(g.integers(0, 4)), *shape]
    x = torch.from_numpy(g.random(shape))
    some = torch.from_numpy(g.random(shape) < 0.05)
    x = _odd(x, some, str(g.choice(VALUES))) if dtype.is_floating_point else 255 * x
    x = x.to(dtype)
    if g.integers(3) == 0:
        x = x.transpose(-1, -2).contiguous().transpose(-1, -2)  # not contiguous
    return x.requires_grad_(bool(g.integers(2))) if dtype.is_floating_point else x


def _odd(x: Tensor, some: Tensor, values: str) -> Tensor:
    one = lambda v: torch.where(some, v, x)
    return {
        "random": x, "zeros": 0 * x, "ones": 0 * x + 1, "NaN": one(torch.nan), "inf": one(torch.inf),
        "large": one(3e38), "tiny": 1e-42 * x, "just outside": 1.02 * x - 0.005,
    }[values]  # fmt: skip


def try_tensor(g: np.random.Generator, folder: Path) -> tuple[str, str]:
    x, augment = _tensor(g), _any_augment(g)
    before, count = x.detach().clone(), len(x) if x.ndim == 4 else 1
    if g.integers(3) == 0 and x.is_floating_point():
        c = augment.change.size[0]
        augment = augment.replace(mean=[0.5] * c, std=[0.2] * c)
    new, _ = augment(x, torch.from_numpy(g.integers(0, 10, count)))
    if not torch.equal(x.detach().nan_to_num(7.0), before.nan_to_num(7.0)):
        return "broken", "the caller's tensor changed"
    if (new.shape, new.dtype) != (x.shape, x.dtype):
        return "broken", f"{x.dtype} {tuple(x.shape)} became {new.dtype} {tuple(new.shape)}"
    if torch.isfinite(before).all() and not torch.isfinite(new).all():
        return "broken", f"{x.dtype} {tuple(x.shape)} became non-finite"
    if augment.idle and not torch.equal(new.nan_to_num(7.0), before.nan_to_num(7.0)):
        return "broken", "strength 0 changed the image"
    return "loaded", ""


def try_from_data(g: np.random.Generator, folder: Path) -> tuple[str, str]:
    x = _tensor(g).detach()
    x = x if x.ndim == 4 and g.integers(4) else x.reshape(-1, *x.shape[-3:])
    batches = [(x, torch.from_numpy(g.integers(0, 3, len(x)))) for _ in range(3)]
    size = (x.shape[-3] if g.integers(4) else 3, 8, 8)
    labels = str(g.choice(["given", "none"]))
    fitted = nfa.NFAugment.from_data(
        batches,
        num_classes=3,
        input_size=size,
        modes=2,
        p=1.0,
        seed=0,
        labels=labels,
        allow_empty=True,
    )
    if not all(torch.isfinite(v).all() for v in fitted.flow.prior.state_dict().values()):
        return "broken", f"non-finite modes of {x.dtype} {tuple(x.shape)}"
    new, _ = fitted(*batches[0])
    fine = torch.isfinite(new).all() and (new.shape, new.dtype) == (x.shape, x.dtype)
    return ("loaded", "") if fine else ("broken", f"{x.dtype} {tuple(x.shape)} became non-finite")


def try_file(g: np.random.Generator, folder: Path) -> tuple[str, str]:
    image, suffix = _pil(g), str(g.choice(list(FORMATS)))
    file = io.BytesIO()
    try:
        image.save(file, FORMATS[suffix])
    except (OSError, ValueError, KeyError):  # a mode that the format does not know
        image.convert("RGB").save(file, FORMATS[suffix])
    data = bytearray(file.getvalue())
    for at in g.integers(0, len(data) if g.integers(2) else min(64, len(data)), g.integers(0, 6)):
        data[at] = g.integers(256)
    path = folder / f"image.{suffix}"
    path.write_bytes(data if g.integers(3) else data[: g.integers(len(data))])
    try:
        shown = read_image(path, channels := int(g.choice([1, 3])))
    except ValueError as e:
        named = str(path) in str(e)
        return ("refused", "") if named else ("raw", f"the file is not named: {e}")
    return ("loaded", "") if len(shown.getbands()) == channels else ("broken", shown.mode)


KINDS: dict[str, Callable[[np.random.Generator, Path], Any]] = {
    "PIL image in NFAugment": try_pil, "tensor in NFAugment": try_tensor,
    "batches in from_data": try_from_data, "file in preview": try_file,
}  # fmt: skip
