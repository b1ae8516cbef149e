"""Lift: a small flow on an image of any size.

The image is brought down to the flow's size, augmented there, and only the change is brought up and added: every fine
detail of the original stays.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def down(x: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C, H, W) to (B, C, h, w), antialiased; x itself where it has that size."""
    if tuple(x.shape[2:]) == tuple(size):
        return x
    return F.interpolate(x, size=size, mode="bilinear", antialias=True, align_corners=False)


def up(x: Tensor, change: Tensor) -> Tensor:
    """x (B, C, H, W) plus the change (B, C, h, w), smoothly enlarged."""
    if x.shape[2:] != change.shape[2:]:
        change = F.interpolate(change, size=x.shape[2:], mode="bilinear", align_corners=False)
    return x + change
