"""Conv1x1: a learned mixing of the channels (Kingma & Dhariwal, Glow, 2018)."""

import torch
from torch import Tensor, nn

from .base import PixelLinear


class Conv1x1(PixelLinear):
    """``y = W x`` at every pixel of (B, C, H, W); `W` starts as a random rotation.

    >>> y, log_det = Conv1x1(3)(torch.randn(2, 3, 4, 4))
    >>> bool(log_det.abs().max() < 1e-4)  # a rotation keeps volumes
    True
    """

    def __init__(self, channels: int):
        super().__init__()
        rotation = torch.linalg.qr(torch.randn(channels, channels, dtype=torch.float64))[0]
        self.weight = nn.Parameter(rotation.float())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        log_det = self._over_pixels(torch.linalg.slogdet(self.weight)[1], x)
        return self._mix(x, self.weight), log_det

    def inverse(self, y: Tensor) -> Tensor:
        return self._mix(y, torch.linalg.inv(self.weight))

    @torch.no_grad()
    def matrix(self) -> tuple[Tensor, Tensor]:
        w = self.weight.double()
        return w, w.new_zeros(len(w))
