"""Bijection: the interface that every layer of a flow keeps."""

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
