"""Multiscale: half of the channels leaves after each level (Dinh et al., RealNVP, 2017)."""

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from .base import Bijection


class Multiscale(Bijection):
    """Levels of bijections, from the image (B, C, H, W) inwards; `shape` is (C, H, W).

    All but the last level are followed by a split; the parts that leave join the code (B, D).

    >>> from timm_nfaug.flows.bijections import Squeeze
    >>> Multiscale([Squeeze(2), Squeeze(2)], (3, 8, 8)).kept_shapes
    [(6, 4, 4), (24, 2, 2)]
    """

    def __init__(self, levels: Sequence[Bijection], shape: tuple[int, ...]):
        super().__init__()
        self.levels = cast(Sequence[Bijection], nn.ModuleList(levels))
        self.kept_shapes: list[tuple[int, int, int]] = []
        for i, level in enumerate(levels, start=1):
            c, h, w = level.output_shape(shape)
            leaving = c if i == len(levels) else c // 2
            self.kept_shapes.append((leaving, h, w))
            shape = (c - leaving, h, w)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        parts, log_det = [], x.new_zeros(len(x))
        for level, (leaving, _, _) in zip(self.levels, self.kept_shapes):
            x, ld = level(x)
            x, part = x.split([x.shape[1] - leaving, leaving], dim=1)
            parts.append(part.flatten(1))
            log_det = log_det + ld
        return torch.cat(parts, dim=1), log_det

    def inverse(self, y: Tensor) -> Tensor:
        rows = y.split([math.prod(s) for s in self.kept_shapes], dim=1)
        parts = [r.reshape(-1, *s) for r, s in zip(rows, self.kept_shapes)]
        x = self.levels[-1].inverse(parts[-1])
        for level, part in reversed(list(zip(self.levels, parts[:-1]))):
            x = level.inverse(torch.cat([x, part], dim=1))
        return x

    @torch.no_grad()
    def initialize(self, x: Tensor) -> Tensor:
        inner = x
        for level, (leaving, _, _) in zip(self.levels, self.kept_shapes):
            y = level.initialize(inner)
            inner = y[:, : y.shape[1] - leaving]
        return self(x)[0]

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (math.prod(shape),)
