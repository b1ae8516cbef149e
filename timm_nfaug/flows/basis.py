"""A basis that all classes share: their modes in a few hundred numbers each, where codes have many.

A latent of a photograph has 25,088 numbers; 32 modes for each of 1,000 classes would take 3 GB. In
a basis of 256 directions of all images together they take 33 MB, and the basis 26 MB.
"""

import math

import torch
import torch.nn.functional as F
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

    The basis turns as codes come, and coordinates follow it at the end. Of each code R numbers are
    kept, and half as many for the turns: with 256 rows 1.5 kB an image, whatever D is.

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
        self._found: list[Tensor] = []  # coordinates (b, R) of codes, each in the basis of its time
        self._turns: list[Tensor] = []  # into each basis from the one before, (R, R)
        self._labels: list[Tensor] = []
        self._waiting: list[Tensor] = []

    @property
    def empty(self) -> bool:
        """Whether no codes came."""
        return self._basis is None and not any(map(len, self._waiting))

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
        n = min(self.rows, max(1, int((s > 1e-6 * s[0].clamp_min(1e-12)).sum())))
        s, v = s[:n], fix_signs(v[:n])
        before = v[:0] if self._basis is None else self._basis
        self._turns.append(before @ v.T)
        self._found.append(new @ v.T)
        self._sketch, self._basis = s[:, None] * v, v

    def finish(self, least: int = 1) -> tuple[Tensor, Tensor, Tensor]:
        """The basis (R, D), coordinates (N, R), and labels (N,).

        Where codes have fewer than R directions there are fewer, and zeros up to `least`.
        """
        if self._waiting:
            self._fold()
        assert self._basis is not None, "no codes came"
        basis, found = self._basis, self._coordinates(self._basis)
        if (lacking := least - len(basis)) > 0:
            basis, found = F.pad(basis, (0, 0, 0, lacking)), F.pad(found, (0, lacking))
        return basis, found, torch.cat(self._labels)

    def _coordinates(self, basis: Tensor) -> Tensor:
        """The coordinates (N, R) of all codes in the last basis."""
        parts, turn = [], torch.eye(len(basis))
        for own, before in zip(reversed(self._found), reversed(self._turns), strict=True):
            parts.append(own @ turn)
            turn = before @ turn
        return torch.cat(parts[::-1])

    def moments(self, num_classes: int, num_modes: int, allow_empty: bool, shrinkage: float):
        """The basis (R, D), and the `ClassMoments` of the coordinates in it."""
        basis, coordinates, labels = self.finish(least=num_modes)
        found = ClassMoments(num_classes, len(basis), num_modes, allow_empty, shrinkage)
        found.update(coordinates, labels)
        return basis, found
