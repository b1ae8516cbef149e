"""Squeeze: space to depth (Dinh et al., RealNVP, 2017)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import Bijection


class Squeeze(Bijection):
    """(B, C, H, W) to (B, C * f * f, H / f, W / f), channels as in `torch.nn.PixelUnshuffle`.

    >>> Squeeze(2)(torch.zeros(1, 3, 8, 8))[0].shape
    torch.Size([1, 12, 4, 4])
    """

    def __init__(self, factor: int):
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = F.pixel_unshuffle(x, self.factor)
        # the layout that convolutions on a CPU run best in
        return y.contiguous(memory_format=torch.channels_last), x.new_zeros(x.shape[0])

    def inverse(self, y: Tensor) -> Tensor:
        return F.pixel_shuffle(y, self.factor)

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        c, h, w = shape
        f = self.factor
        if h % f or w % f:
            raise ValueError(f"height and width must be multiples of {f}, got {h} x {w}: resize")
        return c * f * f, h // f, w // f
