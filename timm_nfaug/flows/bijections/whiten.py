"""Whiten: a fixed linear map to decorrelated channels of unit variance, set from data."""

import torch
from torch import Tensor, nn

from .base import PixelLinear

FLOOR = 2e-3  # smallest standard deviation to divide by: channels without variance stay finite


class Whiten(PixelLinear):
    """``y = W (x - mean)`` at every pixel of (B, C, H, W); the identity until `initialize`.

    On patches it spares the learned layers the second-order statistics of natural images.

    >>> y = Whiten(2).initialize(torch.randn(8, 2, 4, 4).cumsum(1))
    >>> torch.allclose(torch.cov(y.transpose(0, 1).flatten(1)), torch.eye(2), atol=1e-4)
    True
    """

    def __init__(self, channels: int):
        super().__init__()
        self.mean = nn.Buffer(torch.zeros(channels))
        self.weight = nn.Buffer(torch.eye(channels))
        self.inverse_weight = nn.Buffer(torch.eye(channels))
        self.log_det = nn.Buffer(torch.zeros(()))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        shift = -(self.weight * self.mean).sum(1)  # a matmul would obey autocast
        return self._mix(x, self.weight, shift), self._over_pixels(self.log_det, x)

    def inverse(self, y: Tensor) -> Tensor:
        return self._mix(y, self.inverse_weight, self.mean)

    @torch.no_grad()
    def matrix(self) -> tuple[Tensor, Tensor]:
        w = self.weight.double()
        return w, -(w @ self.mean.double())

    @torch.no_grad()
    def is_consistent(self) -> bool:
        """Whether the inverse and the log-determinant are those of the weight, up to rounding."""
        product = self.inverse_weight.double() @ self.weight.double()
        off = (product - torch.eye(len(product), dtype=torch.float64).to(product)).abs().max()
        log_det = torch.linalg.slogdet(self.weight.double())[1]
        return bool(off < 1e-2 and (log_det - self.log_det).abs() < 1e-2 * len(product))

    @torch.no_grad()
    def initialize(self, x: Tensor) -> Tensor:
        c = x.shape[1]
        rows = x.permute(0, 2, 3, 1).reshape(-1, c).double()  # (N, C)
        variance, axes = torch.linalg.eigh(torch.cov(rows.T).view(c, c))
        std, axes = variance.clamp_min(0).sqrt().clamp_min(FLOOR).flip(0), axes.flip(1)
        self.mean.copy_(rows.mean(0))
        self.weight.copy_((axes / std).T)  # largest first
        self.inverse_weight.copy_(axes * std)
        self.log_det.copy_(-std.log().sum())
        return self(x)[0]
