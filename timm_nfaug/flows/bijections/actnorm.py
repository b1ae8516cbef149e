"""ActNorm: a per-channel affine map set from the first batch (Kingma & Dhariwal, Glow, 2018)."""

import torch
from torch import Tensor, nn

from .base import PixelLinear


class ActNorm(PixelLinear):
    """``y = x * exp(log_scale) + bias`` per channel of (B, C, H, W), in the parameters' dtype.

    >>> y = ActNorm(3).initialize(torch.arange(96.0).view(2, 3, 4, 4))
    >>> y.std((0, 2, 3)).round(decimals=3)
    tensor([1., 1., 1.])
    """

    def __init__(self, channels: int):
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scale = self.log_scale.exp().view(-1, 1, 1)
        y = torch.addcmul(self.bias.view(-1, 1, 1), x, scale)
        return y, self._over_pixels(self.log_scale.sum(), x)

    def inverse(self, y: Tensor) -> Tensor:
        return (y - self.bias.view(-1, 1, 1)) * torch.exp(-self.log_scale).view(-1, 1, 1)

    @torch.no_grad()
    def matrix(self) -> tuple[Tensor, Tensor]:
        return self.log_scale.double().exp().diag(), self.bias.double()

    @torch.no_grad()
    def initialize(self, x: Tensor) -> Tensor:
        std, mean = torch.std_mean(x, dim=(0, 2, 3))
        self.log_scale.copy_(-std.clamp_min(1e-4).log())  # a constant channel stays finite
        self.bias.copy_(-mean * self.log_scale.exp())
        return self(x)[0]
