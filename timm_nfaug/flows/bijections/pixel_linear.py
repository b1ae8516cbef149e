"""PixelLinear: bijections that are one affine map of the channels, the same at every pixel."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import Bijection


class PixelLinear(Bijection):
    """``y = W x + b`` at every pixel of (B, C, H, W); `Chain` folds neighbours of this kind.

    >>> from timm_nfaug.flows.bijections import ActNorm, Conv1x1, Whiten
    >>> all(issubclass(layer, PixelLinear) for layer in (ActNorm, Conv1x1, Whiten))
    True
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
