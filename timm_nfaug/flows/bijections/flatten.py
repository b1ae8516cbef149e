"""Flatten: an image as one long vector, its exact code."""

import math

from torch import Tensor

from .base import Bijection


class Flatten(Bijection):
    """(B, *shape) to (B, D), row-major whatever the memory format.

    >>> Flatten((3, 8, 8)).output_shape((3, 8, 8))
    (192,)
    """

    def __init__(self, shape: tuple[int, ...]):
        super().__init__()
        self.shape = tuple(shape)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.reshape(x.shape[0], -1), x.new_zeros(x.shape[0])

    def inverse(self, y: Tensor) -> Tensor:
        return y.reshape(y.shape[0], *self.shape)

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (math.prod(shape),)
