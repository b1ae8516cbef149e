"""Lift: a small flow on an image of any size.

The image is brought down to the flow's size, augmented there, and only the change is brought up and added: every fine
detail of the original stays.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 200_000  # values that are worked on at a time on a CPU, so that they stay in its cache
# Added to a change in levels before it is enlarged: positive values are rounded by cutting them off, and 256 too many are gone
# once they are uint8 again. It spares a pass over the image.
SHIFT = 256.5


def down(x: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C, H, W) to (B, C, h, w), antialiased; x itself where it has that size."""
    if tuple(x.shape[2:]) == tuple(size):
        return x
    return F.interpolate(x, size=size, mode="bilinear", antialias=True, align_corners=False)


def add(
    x: Tensor,
    change: Tensor,
    low: Sequence[float],
    high: Sequence[float],
    rows: Tensor | None = None,
) -> Tensor:
    """Images x (B, C, H, W) with the change (b, C, h, w) of some of them added, smoothly enlarged; a new tensor like x.

    Args:
        x: uint8 levels, or floats of any range.
        change: float32, in the units of x; of uint8 within +-256.
        low, high: C numbers, the range that each channel is clamped to.
        rows: indices (b,) of the images that change; None: all, in order.
    """
    out = torch.empty_like(x) if rows is None else x.clone()
    levels = x.dtype == torch.uint8
    change = change + SHIFT if levels else change.clone()  # the caller's stays as it is
    if levels:
        low, high = ([int(v + SHIFT) for v in limits] for limits in (low, high))
    step = max(1, CHUNK // x.shape[1:].numel() if x.device.type == "cpu" else len(change))
    with torch.autocast(x.device.type, enabled=False):
        for i in range(0, len(change), step):
            where = slice(i, i + step) if rows is None else rows[i : i + step]
            part = enlarged(change[i : i + step], x.shape[2:])
            if levels:  # integers are quicker than floats, which would be converted back
                part = part.to(torch.int16)
            part.add_(x[where])
            if len(set(low)) == len(set(high)) == 1:
                part.clamp_(low[0], high[0])
            else:
                for c, (least, most) in enumerate(zip(low, high, strict=True)):
                    part[:, c].clamp_(least, most)
            out[where] = part if rows is None else part.to(x.dtype)
    return out


def add_to_image(image: PIL.Image.Image, change: np.ndarray) -> PIL.Image.Image:
    """`add` to one PIL image of mode L or RGB of a change (C, h, w) in levels, float32, within +-256; in its layout.

    Nothing is copied into planes and back, and numpy's calls cost less than torch's: in a loader's worker they are the price.
    """
    levels = np.frombuffer(image.tobytes(), np.uint8).reshape(image.height, -1)
    c, h, w = change.shape
    change = change + np.float32(SHIFT)
    if (h, w) == (image.height, image.width):
        out = _added(levels, change.reshape(c, -1).T.reshape(h, -1))
    else:
        small, device = torch.from_numpy(change), torch.device("cpu")
        which, weights = _neighbours(h, image.height)
        # torch's product, not numpy's: that would start threads of its own in every worker
        lines = (
            (small.reshape(c * h, w) @ _bilinear(w, image.width, device))
            .view(c, h, -1)
            .permute(1, 2, 0)
            .reshape(h, -1)
        )
        out = np.empty_like(levels)
        step = max(1, CHUNK // levels.shape[1])
        for i in range(0, len(levels), step):
            part = slice(i, i + step)
            out[part] = _added(
                levels[part], _weighted_lines(lines, which[part], weights[part]).numpy()
            )
    return PIL.Image.frombytes(image.mode, image.size, out)


def _added(levels: np.ndarray, change: np.ndarray) -> np.ndarray:
    """uint8 levels and a shifted change in levels (see SHIFT) to uint8 levels."""
    part = change.astype(np.int16)
    part += levels
    np.maximum(part, 256, out=part)  # of numpy's ways to clip the one with least overhead
    return np.minimum(part, 511, out=part).astype(np.uint8)


def enlarged(change: Tensor, size: Sequence[int]) -> Tensor:
    """(B, C, h, w) to (B, C, H, W); bilinear as `F.interpolate` has it, but several times quicker on a CPU.

    The change itself where it has that size.
    """
    if tuple(change.shape[2:]) == tuple(size):
        return change
    b, c, h, w = change.shape
    lines = change.reshape(b * c * h, w) @ _bilinear(w, size[1], change.device)
    if change.device.type != "cpu":
        return _bilinear(h, size[0], change.device).T @ lines.view(b, c, h, -1)
    # a line of the result is the sum of two: on a CPU the product above would cost most of an augmentation
    return _weighted_lines(lines, *_neighbours(h, size[0], b * c)).view(b, c, *size)


def _weighted_lines(lines: Tensor, which: Tensor, weights: Tensor) -> Tensor:
    """Lines (M, W) that are each a sum of two of (N, W)."""
    return F.embedding_bag(
        which.view(-1), lines, _offsets(len(which)), mode="sum", per_sample_weights=weights.view(-1)
    )


@functools.lru_cache(maxsize=64)
def _offsets(count: int) -> Tensor:
    """Where each pair of `count` begins; torch would make it at every call."""
    return torch.arange(0, 2 * count, 2)


@functools.lru_cache(maxsize=64)
def _neighbours(n: int, m: int, count: int = 1) -> tuple[Tensor, Tensor]:
    """Of `count` planes of n lines: the two that each of m lines between them is a mixture of, and weights (count * m, 2)."""
    position = ((torch.arange(m, dtype=torch.float64) + 0.5) * n / m - 0.5).clamp(0, n - 1)
    first = position.long().clamp_max(max(n - 2, 0))
    pair = torch.stack([first, (first + 1).clamp_max(n - 1)], dim=1)
    share = (position - first).float()
    planes = torch.arange(0, count * n, n).view(-1, 1, 1)
    return (planes + pair).view(-1, 2), torch.stack([1 - share, share], dim=1).repeat(count, 1)


@functools.lru_cache(maxsize=64)
def _bilinear(n: int, m: int, device: torch.device) -> Tensor:
    """(n, m): the weights of n values in each of the m between them."""
    unit = torch.eye(n, dtype=torch.float32).unsqueeze(0)
    return (
        F.interpolate(unit, size=m, mode="linear", align_corners=False)[0].contiguous().to(device)
    )
