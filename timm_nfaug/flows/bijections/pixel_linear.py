"""PixelLinear: bijections that are one affine map of the channels, the same at every pixel."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import Bijection


class PixelLinear(Bijection):
    """``y = W x + b`` at every pixel of (B, C, H, W). `Chain` folds neighbours of this kind into one matrix."""

    def matrix(self) -> tuple[Tensor, Tensor]:
        """W (C, C) and b (C,) in float64, without gradient."""
        raise NotImplementedError


def mix_channels(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``W x + b`` at every pixel, in the dtype of `weight` even under autocast."""
    with torch.autocast(x.device.type, enabled=False):
        return F.linear(x.to(weight.dtype).permute(0, 2, 3, 1), weight, bias).permute(0, 3, 1, 2)
