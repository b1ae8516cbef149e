"""Invertible 1x1 convolution: a learned mixing of the channels (Kingma & Dhariwal, Glow, 2018)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .bijection import Bijection


class Conv1x1(Bijection):
    """``y = W x`` at every pixel of (B, C, H, W).

    ``W`` starts as a random rotation. Its inverse and log-det are computed in float64 once per value of ``W`` and kept
    while gradients are off; the key is the version counter of the parameter, so an optimizer step, `load_state_dict`
    or a move to another device renews them.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.linalg.qr(torch.randn(channels, channels, dtype=torch.float64))[0].float())
        self._cache: tuple | None = None

    def _inverse_and_log_det(self) -> tuple[Tensor, Tensor]:
        w = self.weight
        key = (None if w.is_inference() else w._version, w.data_ptr(), w.dtype, w.device)
        if self._cache is None or self._cache[0] != key:
            with torch.no_grad(), torch.autocast(w.device.type, enabled=False):
                w64 = w.detach().double()
                self._cache = (key, torch.linalg.inv(w64).to(w.dtype), torch.linalg.slogdet(w64)[1].to(w.dtype))
        return self._cache[1:]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if torch.is_grad_enabled() and self.weight.requires_grad:
            log_det = torch.linalg.slogdet(self.weight)[1]
        else:
            log_det = self._inverse_and_log_det()[1]
        return mix_channels(x, self.weight), (log_det * (x.shape[2] * x.shape[3])).expand(x.shape[0])

    def inverse(self, y: Tensor) -> Tensor:
        if torch.is_grad_enabled() and self.weight.requires_grad:
            return mix_channels(y, torch.linalg.inv(self.weight))
        return mix_channels(y, self._inverse_and_log_det()[0])

    def _apply(self, *args, **kwargs):
        self._cache = None  # a move can leave another weight at the old address with the old version
        return super()._apply(*args, **kwargs)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_cache": None}  # a copy or another process computes its own

    def extra_repr(self) -> str:
        return f"channels={self.weight.shape[0]}"


def mix_channels(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``W x + b`` at every pixel, in the dtype of `weight` even under autocast."""
    with torch.autocast(x.device.type, enabled=False):
        return F.linear(x.to(weight.dtype).permute(0, 2, 3, 1), weight, bias).permute(0, 3, 1, 2)
