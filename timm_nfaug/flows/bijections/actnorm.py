"""ActNorm: a per-channel affine map set from the first batch (Kingma & Dhariwal, Glow, 2018)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .pixel_linear import PixelLinear


class ActNorm(PixelLinear):
    """``y = x * exp(log_scale) + bias`` per channel of (B, C, H, W), in the dtype of the parameters."""

    def __init__(self, channels: int):
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.addcmul(_per_channel(self.bias), x, _per_channel(self.log_scale.exp()))
        return y, (self.log_scale.sum() * (x.shape[2] * x.shape[3])).expand(x.shape[0])

    def inverse(self, y: Tensor) -> Tensor:
        return (y - _per_channel(self.bias)) * _per_channel(torch.exp(-self.log_scale))

    @torch.no_grad()
    def matrix(self) -> tuple[Tensor, Tensor]:
        return self.log_scale.double().exp().diag(), self.bias.double()

    @torch.no_grad()
    def initialize(self, x: Tensor) -> Tensor:
        std, mean = torch.std_mean(x, dim=(0, 2, 3))
        self.log_scale.copy_(-std.clamp_min(1e-4).log())
        self.bias.copy_(-mean * self.log_scale.exp())
        return self(x)[0]


def _per_channel(v: Tensor) -> Tensor:
    return v.view(1, -1, 1, 1)
