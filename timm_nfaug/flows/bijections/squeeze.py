"""Squeeze (space to depth) and Flatten: volume-preserving changes of shape (Dinh et al., RealNVP, 2017)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import Bijection


class Squeeze(Bijection):
    """(B, C, H, W) to (B, C * f * f, H / f, W / f), in the channel order of `torch.nn.PixelUnshuffle`."""

    def __init__(self, factor: int):
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = F.pixel_unshuffle(x, self.factor).contiguous(
            memory_format=torch.channels_last
        )  # what CPU convs run best in
        return y, x.new_zeros(x.shape[0])

    def inverse(self, y: Tensor) -> Tensor:
        return F.pixel_shuffle(y, self.factor)

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        c, h, w = shape
        f = self.factor
        if h % f or w % f:
            raise ValueError(
                f"image height and width must be multiples of {f}, got {h} x {w}; resize the images first"
            )
        return c * f * f, h // f, w // f

    def extra_repr(self) -> str:
        return f"factor={self.factor}"
