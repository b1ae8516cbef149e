"""Bijection: the interface every layer of a flow keeps, and Chain, their composition."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class Bijection(nn.Module):
    """An invertible map with a tractable Jacobian determinant.

    ``forward(x)`` returns ``(y, log_det)``, with ``log_det`` of shape (B,): log abs det dy/dx, summed over all
    dimensions of an image, in nats. ``inverse(y)`` returns ``x``. Neither changes its argument.
    """

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def inverse(self, y: Tensor) -> Tensor:
        raise NotImplementedError

    def initialize(self, x: Tensor) -> Tensor:
        """Sets data-dependent parameters from a first batch; returns the batch after this bijection."""
        return self(x)[0]

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of one output (without the batch axis) for an input of `shape`; raises where it cannot be."""
        return shape


class Chain(Bijection):
    """Composition of bijections, applied from first to last."""

    def __init__(self, layers: Iterable[Bijection]):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        log_det = x.new_zeros(x.shape[0])
        for layer in self.layers:
            x, ld = layer(x)
            log_det = log_det + ld
        return x, log_det

    def inverse(self, y: Tensor) -> Tensor:
        for layer in reversed(self.layers):
            y = layer.inverse(y)
        return y

    @torch.no_grad()
    def initialize(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer.initialize(x)
        return x

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        for layer in self.layers:
            shape = layer.output_shape(shape)
        return shape
