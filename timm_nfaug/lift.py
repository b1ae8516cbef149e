"""Lift: applies the change of a small image to an image of any size.

The change is enlarged smoothly and added, so that every fine detail of the original stays.
"""

import functools
import math
from collections.abc import Sequence

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 200_000  # values worked on at a time on a CPU, so that they stay in its cache
# Added to a change in levels before it is enlarged: positive values are rounded by cutting off the
# fraction, and the 256 too many vanish in the conversion to uint8, without a pass over the image.
SHIFT = np.float32(256.5)

Limits = Sequence[float]  # a number for each channel


def down(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Shrinks images (B, C, H, W) to (B, C, h, w), antialiased; x itself where it has that size.

    >>> down(torch.zeros(1, 3, 64, 48), (32, 32)).shape
    torch.Size([1, 3, 32, 32])
    """
    if tuple(x.shape[2:]) == tuple(size):
        return x
    return F.interpolate(x, size=size, mode="bilinear", antialias=True, align_corners=False)


def add(
    x: Tensor, change: Tensor, low: Limits, high: Limits, rows: Tensor | None = None,
    keep: bool = False,
) -> Tensor:  # fmt: skip
    """Adds a change (b, C, h, w), enlarged, to images (B, C, H, W); returns a new tensor like x.

    Args:
        x: uint8 levels, or floats of any range; with `keep` integers, too.
        change: float32, in the units of x; for uint8 within +-256.
        low, high: the range that each channel is clamped to.
        rows: indices (b,) of the images that change; None: all, in order.
        keep: values outside of the range are left there, and move no further out.

    >>> x = torch.full((1, 1, 2, 2), 250, dtype=torch.uint8)
    >>> add(x, torch.full((1, 1, 1, 1), 9.0), [0], [255]).unique()
    tensor([255], dtype=torch.uint8)
    """
    out = torch.empty_like(x) if rows is None else x.clone()
    levels = x.dtype == torch.uint8 and not keep
    if levels:
        change = change + SHIFT
        low, high = ([int(v + SHIFT) for v in limits] for limits in (low, high))
    step = max(1, CHUNK // x.shape[1:].numel() if x.is_cpu else len(change))
    with torch.autocast(x.device.type, enabled=False):
        for i in range(0, len(change), step):
            where = slice(i, i + step) if rows is None else rows[i : i + step]
            part = enlarged(change[i : i + step], x.shape[2:])
            if keep:
                part = _added_within(x[where], part, low, high)
            else:  # integers are faster than floats, which would have to be converted back
                part = part.to(torch.int16).add_(x[where]) if levels else part + x[where]
                part = _clamped(part, low, high)
            out[where] = part if rows is None else part.to(x.dtype)  # a slice converts as it copies
    return out


def _clamped(x: Tensor, low: Limits, high: Limits) -> Tensor:
    """Clamps each channel of (B, C, H, W) in place."""
    if len(set(low)) == len(set(high)) == 1:
        return x.clamp_(low[0], high[0])
    for c, limits in enumerate(zip(low, high, strict=True)):
        x[:, c].clamp_(*limits)
    return x


def _added_within(x: Tensor, change: Tensor, low: Limits, high: Limits) -> Tensor:
    """Adds a change, rounded for integers, up to the ends of each channel, or the value itself."""
    kind = torch.promote_types(x.dtype, torch.float32)
    if not x.is_floating_point():
        change, kind = change.round(), torch.float32
        low, high = [math.ceil(v) for v in low], [math.floor(v) for v in high]
        if max(map(abs, (*low, *high))) > 2**23:  # integers that float32 does not hold exactly
            kind = torch.float64
    x = x.to(kind)
    least, most = (x.new_tensor(v).view(-1, 1, 1) for v in (low, high))
    return torch.clamp(x + change, torch.minimum(x, least), torch.maximum(x, most))


def add_to_image(image: PIL.Image.Image, change: np.ndarray) -> PIL.Image.Image:
    """Adds a change (C, h, w), enlarged, to a PIL image of mode L or RGB; returns a new image.

    The change is float32, in levels, within +-256; the image's `info` is kept. It is added in the
    image's own layout by numpy, whose calls cost less than torch's on one image.

    >>> image, change = PIL.Image.new("L", (2, 2), 100), np.full((1, 1, 1), 9, np.float32)
    >>> add_to_image(image, change).getpixel((0, 0))
    109
    """
    if torch.is_autocast_enabled("cpu"):  # a context costs as much as the addition
        with torch.autocast("cpu", enabled=False):
            return add_to_image(image, change)
    levels = np.frombuffer(image.tobytes(), np.uint8).reshape(image.height, -1)  # (H, W * C)
    change = change + SHIFT
    c, h, w = change.shape
    if (h, w) == (image.height, image.width):
        out = _added(levels, change.reshape(c, -1).T.reshape(h, -1))
        return _like(image, out)
    # torch's product, as numpy's would start threads of its own in every worker
    lines = torch.from_numpy(change).reshape(c * h, w)
    which, weights = _neighbours(h, image.height)
    step = max(1, CHUNK // levels.shape[1])
    chunks = [slice(i, i + step) for i in range(0, len(levels), step)]
    wide = (lines @ _bilinear(w, image.width, lines.device)).view(c, h, -1)
    lines = wide.permute(1, 2, 0).reshape(h, -1)  # (h, W * C)
    parts = [_added(levels[i], _mixed(lines, which[i], weights[i]).numpy()) for i in chunks]
    out = np.concatenate(parts) if len(parts) > 1 else parts[0]
    return _like(image, out)


def _like(image: PIL.Image.Image, levels: np.ndarray) -> PIL.Image.Image:
    """An image of these levels with the size, mode and `info` (EXIF, profile) of another one."""
    new = PIL.Image.frombytes(image.mode, image.size, levels)
    if image.info:
        new.info = image.info.copy()
    return new


def _added(levels: np.ndarray, change: np.ndarray) -> np.ndarray:
    """Adds a shifted change (see SHIFT) to uint8 levels."""
    part = change.astype(np.int16)
    part += levels
    np.maximum(part, 256, out=part)  # of numpy's ways to clip the one with the least overhead
    return np.minimum(part, 511, out=part).astype(np.uint8)


def enlarged(change: Tensor, size: Sequence[int]) -> Tensor:
    """Enlarges (B, C, h, w) to (B, C, H, W) as bilinear `F.interpolate` does, but faster on a CPU.

    >>> enlarged(torch.ones(1, 3, 2, 2), (5, 4)).shape
    torch.Size([1, 3, 5, 4])
    """
    if tuple(change.shape[2:]) == tuple(size):
        return change
    b, c, h, w = change.shape
    lines = change.reshape(b * c * h, w) @ _bilinear(w, size[1], change.device)
    if not change.is_cpu:
        return _bilinear(h, size[0], change.device).T @ lines.view(b, c, h, -1)
    # each line of the result is the sum of two; a product would cost most of an augmentation
    return _mixed(lines, *_neighbours(h, size[0], b * c)).view(b, c, *size)


def _mixed(lines: Tensor, which: Tensor, weights: Tensor) -> Tensor:
    """Lines (M, W), each a weighted sum of two of the lines (N, W); the rest is (M, 2)."""
    two, own = _every_second(len(which)), weights.view(-1)
    return F.embedding_bag(which.view(-1), lines, two, mode="sum", per_sample_weights=own)


@functools.lru_cache(maxsize=64)
def _every_second(count: int) -> Tensor:
    return torch.arange(0, 2 * count, 2)  # kept, as torch would make it at every call


@functools.lru_cache(maxsize=64)
def _neighbours(n: int, m: int, planes: int = 1) -> tuple[Tensor, Tensor]:
    """The two of n lines that each of m lines lies between, and their weights: (planes * m, 2)."""
    position = ((torch.arange(m, dtype=torch.float64) + 0.5) * n / m - 0.5).clamp(0, n - 1)
    first = position.long().clamp_max(max(n - 2, 0))
    pair = torch.stack([first, (first + 1).clamp_max(n - 1)], dim=1)
    share = (position - first).float()
    starts = torch.arange(0, planes * n, n).view(-1, 1, 1)
    return (starts + pair).view(-1, 2), torch.stack([1 - share, share], dim=1).repeat(planes, 1)


@functools.lru_cache(maxsize=64)
def _bilinear(n: int, m: int, device: torch.device) -> Tensor:
    """(n, m): the weights of n values in each of the m between them."""
    unit = torch.eye(n, dtype=torch.float32).unsqueeze(0)
    return F.interpolate(unit, size=m, mode="linear")[0].contiguous().to(device)
