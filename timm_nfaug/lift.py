"""Lift: a small flow on an image of any size.

The image is brought down to the flow's size, augmented there, and only the change is brought up and added: every fine
detail of the original stays.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 200_000  # values that are worked on at a time on a CPU, so that they stay in its cache


def down(x: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C, H, W) to (B, C, h, w), antialiased; x itself where it has that size."""
    if tuple(x.shape[2:]) == tuple(size):
        return x
    return F.interpolate(x, size=size, mode="bilinear", antialias=True, align_corners=False)


def add(x: Tensor, change: Tensor, low: Sequence[float], high: Sequence[float], rows: Tensor | None = None) -> Tensor:
    """Images x (B, C, H, W) with the change (b, C, h, w) of some of them added, smoothly enlarged; a new tensor like x.

    Args:
        x: uint8 levels, or floats of any range.
        change: float32, in the units of x.
        low, high: C numbers, the range that each channel is clamped to.
        rows: indices (b,) of the images that change; None: all, in order.
    """
    out = torch.empty_like(x) if rows is None else x.clone()
    step = max(1, CHUNK // x.shape[1:].numel() if x.device.type == "cpu" else len(change))
    for i in range(0, len(change), step):
        where = slice(i, i + step) if rows is None else rows[i : i + step]
        part = enlarged(change[i : i + step], x.shape[2:])
        if x.dtype == torch.uint8:  # integers are quicker than floats, which would be converted back
            part = part.round_().to(torch.int16)
        part.add_(x[where])
        if len(set(low)) == len(set(high)) == 1:
            part.clamp_(low[0], high[0])
        else:
            for c, (least, most) in enumerate(zip(low, high, strict=True)):
                part[:, c].clamp_(least, most)
        out[where] = part if rows is None else part.to(x.dtype)
    return out


def enlarged(change: Tensor, size: Sequence[int]) -> Tensor:
    """(B, C, h, w) to (B, C, H, W), a new tensor; bilinear as `F.interpolate` has it, but several times quicker on a CPU."""
    if tuple(change.shape[2:]) == tuple(size):
        return change.clone()
    rows, columns = (_bilinear(n, m, change.device) for n, m in zip(change.shape[2:], size, strict=True))
    with torch.autocast(change.device.type, enabled=False):
        return rows @ (change @ columns.T)


@functools.lru_cache(maxsize=64)
def _bilinear(n: int, m: int, device: torch.device) -> Tensor:
    """(m, n): the weights of n values in each of the m between them."""
    unit = torch.eye(n, dtype=torch.float32).unsqueeze(0)
    return F.interpolate(unit, size=m, mode="linear", align_corners=False)[0].T.contiguous().to(device)
