"""Whiten: a fixed linear map to decorrelated, unit-variance channels, set from data.

On patches (after `Squeeze`) this is PCA whitening of the patches: it spares the learned layers the second-order
statistics of natural images.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .pixel_linear import PixelLinear, mix_channels


class Whiten(PixelLinear):
    """``y = W (x - mean)`` at every pixel of (B, C, H, W); identity until `initialize` has seen data.

    Args:
        channels: C.
        floor: smallest standard deviation divided by, in units of x, so that channels without variance stay finite.
    """

    def __init__(self, channels: int, floor: float = 2e-3):
        super().__init__()
        self.floor = floor
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("weight", torch.eye(channels))
        self.register_buffer("inverse_weight", torch.eye(channels))
        self.register_buffer("log_det", torch.zeros(()))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = mix_channels(
            x, self.weight, -(self.weight * self.mean).sum(1)
        )  # a matmul would obey autocast
        return y, (self.log_det * (x.shape[2] * x.shape[3])).expand(x.shape[0])

    def inverse(self, y: Tensor) -> Tensor:
        return mix_channels(y, self.inverse_weight, self.mean)

    @torch.no_grad()
    def matrix(self) -> tuple[Tensor, Tensor]:
        w = self.weight.double()
        return w, -(w @ self.mean.double())

    @torch.no_grad()
    def initialize(self, x: Tensor) -> Tensor:
        rows = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1]).double()
        mean = rows.mean(0)
        variance, axes = torch.linalg.eigh(torch.cov(rows.T).view(x.shape[1], x.shape[1]))
        std = variance.clamp_min(0).sqrt().clamp_min(self.floor).flip(0)  # largest first
        axes = axes.flip(1)
        self.mean.copy_(mean)
        self.weight.copy_((axes / std).T)
        self.inverse_weight.copy_(axes * std)
        self.log_det.copy_(-std.log().sum())
        return self(x)[0]
