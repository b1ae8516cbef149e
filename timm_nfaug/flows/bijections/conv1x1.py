"""Invertible 1x1 convolution: a learned mixing of the channels (Kingma & Dhariwal, Glow, 2018)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .pixel_linear import PixelLinear, mix_channels


class Conv1x1(PixelLinear):
    """``y = W x`` at every pixel of (B, C, H, W); `W` starts as a random rotation."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(
            torch.linalg.qr(torch.randn(channels, channels, dtype=torch.float64))[0].float()
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        log_det = torch.linalg.slogdet(self.weight)[1]
        return mix_channels(x, self.weight), (log_det * (x.shape[2] * x.shape[3])).expand(
            x.shape[0]
        )

    def inverse(self, y: Tensor) -> Tensor:
        return mix_channels(y, torch.linalg.inv(self.weight))

    @torch.no_grad()
    def matrix(self) -> tuple[Tensor, Tensor]:
        w = self.weight.double()
        return w, w.new_zeros(len(w))

    def extra_repr(self) -> str:
        return f"channels={self.weight.shape[0]}"
