"""A basis that all classes share: their modes in a few hundred numbers each, where codes have many.

A latent of a photograph has 25,088 numbers; 32 modes for each of 1,000 classes would take 3 GB. In
a basis of 256 directions of all images together they take 33 MB, and the basis 26 MB.
"""

import math

import torch
from torch import Tensor, nn

from .moments import ClassMoments, fix_signs, thin_svd

ROWS = 256  # of a basis, or four for each mode if that is more


class Projection(nn.Module):
    """The coordinates (B, R) of images (B, *shape) in R orthonormal directions.

    In place of a bijection in a linear flow: `inverse` gives the part of an image in their span, so
    that a move of coordinates is exact, which is all that a linear flow needs of it.

    >>> Projection((3, 8, 8), rows=4)(torch.zeros(2, 3, 8, 8))[0].shape
    torch.Size([2, 4])
    """

    def __init__(self, shape: tuple[int, ...], rows: int):
        super().__init__()
        if not 1 <= rows <= math.prod(shape):
            most = math.prod(shape)
            raise ValueError(f"basis must be from 1 to {most} for codes of {shape}, got {rows}")
        self.shape = tuple(shape)
        self.basis: Tensor = nn.Buffer(torch.zeros(rows, math.prod(shape)))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.reshape(x.shape[0], -1) @ self.basis.T, x.new_zeros(x.shape[0])

    def inverse(self, u: Tensor) -> Tensor:
        return (u @ self.basis).view(u.shape[0], *self.shape)

    def initialize(self, x: Tensor) -> Tensor:
        """Nothing to set: `SharedBasis` finds the directions."""
        return self(x)[0]

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (len(self.basis),)


class SharedBasis:
    """Finds the R directions of most energy in codes (B, D), and the coordinates of all, in one pass.

    The coordinates follow the basis as it turns: R numbers for each code are kept, never the code.

    >>> shared = SharedBasis(rows=2)
    >>> shared.update(torch.tensor([[3.0, 0, 0], [0, 0, 4.0]]), torch.tensor([0, 1]))
    >>> basis, coordinates, labels = shared.finish()
    >>> (coordinates @ basis).round(decimals=4).tolist(), labels.tolist()
    ([[3.0, 0.0, 0.0], [0.0, 0.0, 4.0]], [0, 1])
    """

    def __init__(self, rows: int):
        self.rows = rows
        self._sketch: Tensor | None = None  # (R, D), the directions times their energy
        self._basis: Tensor | None = None  # (R, D)
        self._found: list[Tensor] = []  # coordinates (b, R) of codes
        self._labels: list[Tensor] = []
        self._waiting: list[Tensor] = []

    @torch.no_grad()
    def update(self, z: Tensor, y: Tensor) -> None:
        """Adds codes z (B, D) of labels y (B,)."""
        self._waiting.append(z.detach().float().cpu())
        self._labels.append(y.cpu())
        if sum(map(len, self._waiting)) >= 2 * self.rows:
            self._fold()

    def _fold(self) -> None:
        new, self._waiting = torch.cat(self._waiting), []
        known = [] if self._sketch is None else [self._sketch]
        s, v = thin_svd(torch.cat([*known, new]))
        # float32 codes: what is below 1e-6 of the largest is rounding
        n = min(self.rows, int((s > 1e-6 * s[0].clamp_min(1e-12)).sum()))
        s, v = s[:n], fix_signs(v[:n])
        if self._basis is not None:
            turn = self._basis @ v.T  # (R, n)
            self._found = [torch.cat(self._found) @ turn]
        self._found.append(new @ v.T)
        self._sketch, self._basis = s[:, None] * v, v

    def finish(self) -> tuple[Tensor, Tensor, Tensor]:
        """The basis (R, D), fewer rows where codes have fewer directions, coordinates, and labels."""
        if self._waiting:
            self._fold()
        if self._basis is None:
            raise ValueError("no codes came")
        return self._basis, torch.cat(self._found), torch.cat(self._labels)

    def moments(self, num_classes: int, num_modes: int, allow_empty: bool, shrinkage: float):
        """The basis (R, D), and the `ClassMoments` of the coordinates in it."""
        basis, coordinates, labels = self.finish()
        found = ClassMoments(num_classes, len(basis), num_modes, allow_empty, shrinkage)
        found.update(coordinates, labels)
        return basis, found
