"""Multiscale: levels of steps, half of the channels leaving after each level (Dinh et al., RealNVP, 2017).

The halves that leave are kept in the code, never resampled: the code is one flat exact tensor.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .base import Bijection


class Multiscale(Bijection):
    """(B, C, H, W) to (B, D), D = C * H * W.

    Args:
        levels: one bijection a level, from the image inwards; each but the last is followed by a split.
        shape: (C, H, W) of the input.
    """

    def __init__(self, levels: list[Bijection], shape: tuple[int, int, int]):
        super().__init__()
        self.levels = nn.ModuleList(levels)
        self.kept_shapes: list[tuple[int, int, int]] = []  # of the part of each level that leaves
        for i, level in enumerate(levels):
            c, h, w = shape = level.output_shape(shape)
            last = i == len(levels) - 1
            leaving = c if last else c // 2
            self.kept_shapes.append((leaving, h, w))
            shape = (c - leaving, h, w)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        log_det = x.new_zeros(x.shape[0])
        parts = []
        for level, (leaving, _, _) in zip(self.levels, self.kept_shapes, strict=True):
            x, ld = level(x)
            log_det = log_det + ld
            x, part = x.split([x.shape[1] - leaving, leaving], dim=1)
            parts.append(part.reshape(part.shape[0], -1))
        return torch.cat(parts, dim=1), log_det

    def inverse(self, y: Tensor) -> Tensor:
        parts = y.split([math.prod(s) for s in self.kept_shapes], dim=1)
        x = None
        for level, part, shape in zip(
            reversed(self.levels), reversed(parts), reversed(self.kept_shapes), strict=True
        ):
            part = part.reshape(-1, *shape)
            x = level.inverse(part if x is None else torch.cat([x, part], dim=1))
        return x

    @torch.no_grad()
    def initialize(self, x: Tensor) -> Tensor:
        parts = []
        for level, (leaving, _, _) in zip(self.levels, self.kept_shapes, strict=True):
            x = level.initialize(x)
            x, part = x.split([x.shape[1] - leaving, leaving], dim=1)
            parts.append(part.reshape(part.shape[0], -1))
        return torch.cat(parts, dim=1)

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (math.prod(shape),)
