"""Bijection, the interface of every layer of a flow, and PixelLinear, that of its linear layers."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Bijection(nn.Module):
    """An invertible map with a tractable Jacobian determinant. It leaves its arguments alone.

    >>> Bijection().output_shape((3, 8, 8))  # where a subclass does not say otherwise
    (3, 8, 8)
    """

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """y and log abs det dy/dx (B,), summed over all dimensions of an image, in nats."""
        raise NotImplementedError

    def inverse(self, y: Tensor) -> Tensor:
        raise NotImplementedError

    def initialize(self, x: Tensor) -> Tensor:
        """Sets data-dependent parameters from a first batch; returns the batch's output."""
        return self(x)[0]

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the output for an input of `shape`, both without B; raises where none fits."""
        return shape


class PixelLinear(Bijection):
    """``y = W x + b`` at every pixel of (B, C, H, W); a chain folds neighbours of this kind.

    >>> PixelLinear._over_pixels(torch.ones(()), torch.zeros(2, 3, 4, 4))  # log-det of images
    tensor([16., 16.])
    """

    def matrix(self) -> tuple[Tensor, Tensor]:
        """W (C, C) and b (C,) in float64, without gradient."""
        raise NotImplementedError

    @staticmethod
    def _mix(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """``W x + b`` at every pixel, in the dtype of `weight` even under autocast."""
        with torch.autocast(x.device.type, enabled=False):
            rows = x.to(weight.dtype).permute(0, 2, 3, 1)  # (B, H, W, C)
            return F.linear(rows, weight, bias).permute(0, 3, 1, 2)

    @staticmethod
    def _over_pixels(log_det: Tensor, x: Tensor) -> Tensor:
        """(B,) log-det of images x (B, C, H, W) from that of one pixel ()."""
        return (log_det * (x.shape[2] * x.shape[3])).expand(x.shape[0])
