"""Bijection: the interface every layer of a flow keeps."""

from __future__ import annotations

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
