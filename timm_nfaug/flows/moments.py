"""ClassMoments: mean, variance and principal components of every class, in one pass over the codes.

The components come from incremental PCA: each class keeps a small sketch, a matrix whose rows carry the energy of
everything seen so far, and folds new rows in by a thin SVD (Ross et al., "Incremental Learning for Robust Visual
Tracking", IJCV 2008). Memory is K * sketch * D floats and 256 MB of rows that wait for their fold, whatever the size of
the data; on the GPU where the first codes are on one and the sketches take at most 1 GB.
"""

from __future__ import annotations

import torch
from torch import Tensor

WAITING = 2**26  # floats
ON_GPU = 2**28  # floats of sketches that may lie there


class ClassMoments:
    """Accumulates codes with `update`, then gives moments with `finish`.

    Args:
        num_classes: K.
        dim: D.
        num_modes: r, principal components wanted; 0 keeps means and variances only.
        allow_empty: give a class without images the mean and variance of all images, and no modes, instead of raising.
        shrinkage: counts the spread of all classes about their own means for each class as if it had been seen in as many
            more images of it. With few images a class's own covariance is little more than chance (Friedman, "Regularized
            Discriminant Analysis", JASA 1989).
    """

    def __init__(
        self,
        num_classes: int,
        dim: int,
        num_modes: int,
        allow_empty: bool = False,
        shrinkage: float = 0.0,
    ):
        if not 0 <= shrinkage < float("inf"):
            raise ValueError(
                f"shrinkage must be a finite number of images of at least 0, got {shrinkage!r}"
            )
        self.allow_empty, self.shrinkage = allow_empty, shrinkage
        self.num_classes, self.dim, self.num_modes = num_classes, dim, num_modes
        self.count = torch.zeros(num_classes, dtype=torch.int64)
        self.mean = torch.zeros(num_classes, dim, dtype=torch.float64)
        self.square = torch.zeros(
            num_classes, dim, dtype=torch.float64
        )  # sum of squared deviations from the mean
        # twice the modes wanted, and some: what the truncations lose then lies far below the modes kept
        self.sketch_rows = 2 * num_modes + 16 if num_modes else 0
        self._sketch: list[Tensor | None] = [None] * num_classes
        self._pending: list[list[Tensor]] = [[] for _ in range(num_classes)]
        self._pending_rows = [0] * num_classes
        self._started = False

    @torch.no_grad()
    def update(self, z: Tensor, y: Tensor) -> None:
        """Adds codes z (B, D) of labels y (B,)."""
        if len(y) != len(z):
            raise ValueError(
                f"expected one label for each code, got {len(y)} labels for {len(z)} codes"
            )
        if len(y) and not 0 <= int(y.min()) <= int(y.max()) < self.num_classes:
            raise ValueError(
                f"labels must be in 0..{self.num_classes - 1}, got {int(y.min())}..{int(y.max())}"
            )
        if (
            not self._started
            and z.is_cuda
            and self.num_classes * self.sketch_rows * self.dim <= ON_GPU
        ):
            self.mean, self.square = self.mean.to(z.device), self.square.to(z.device)
        self._started = True
        z, y = z.detach().to(self.mean.device), y.to(self.mean.device)
        for k in y.unique().tolist():
            rows = z[y == k]
            if self.num_modes:
                self._pending[k].append(rows.float())
                self._pending_rows[k] += len(rows)
                if self._pending_rows[k] >= 4 * self.sketch_rows:
                    self._fold(k)
                while sum(self._pending_rows) * self.dim > WAITING:
                    self._fold(self._pending_rows.index(max(self._pending_rows)))
            else:
                self._merge_mean(k, rows)

    @property
    def empty(self) -> list[int]:
        """Classes no image of which was seen."""
        return [k for k in range(self.num_classes) if not self.count[k] and not self._pending[k]]

    def _merge_mean(self, k: int, rows: Tensor) -> Tensor:
        """Folds rows into mean and variance; returns the row that corrects a sketch for the moved mean."""
        rows = rows.double()
        n, m = int(self.count[k]), len(rows)
        new_mean = rows.mean(0)
        gap = new_mean - self.mean[k]
        self.square[k] += (rows - new_mean).square().sum(0) + gap.square() * (n * m / (n + m))
        self.mean[k] += gap * (m / (n + m))
        self.count[k] += m
        return gap * (n * m / (n + m)) ** 0.5

    def _fold(self, k: int) -> None:
        rows = torch.cat(self._pending[k])
        self._pending[k], self._pending_rows[k] = [], 0
        correction = self._merge_mean(k, rows).float().unsqueeze(0)
        parts = [rows - rows.mean(0), correction]
        if self._sketch[k] is not None:
            parts.insert(0, self._sketch[k])
        self._sketch[k] = self._reduced(torch.cat(parts))

    @torch.no_grad()
    def finish(self, num_modes: int | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """float32 mean (K, D), variance (K, D), modes (K, r, D), std along the modes (K, r), largest first, on the CPU.

        Without shrinkage a class with n images has at most n - 1 modes; the rest are zero. A class without images raises,
        unless `allow_empty`.
        """
        empty = self.empty
        if empty and (not self.allow_empty or len(empty) == self.num_classes):
            raise ValueError(
                f"no image of class {empty[0]} was seen (of {len(empty)} such classes); every class needs one"
            )
        r = self.num_modes if num_modes is None else num_modes
        if r and not self.num_modes:
            raise ValueError(
                f"these moments have no modes, {r} a class are wanted; gather them with num_modes={r}"
            )
        device = self.mean.device
        modes = torch.zeros(self.num_classes, r, self.dim)
        std = torch.zeros(self.num_classes, r)
        for k in range(self.num_classes):
            if self._pending[k]:
                self._fold(k)
        # sums of squares about the class means, of the class itself and of all classes, to a covariance
        freedom = (self.count - 1).clamp_min(0)
        images = self.shrinkage + freedom.double()
        own = 1 / torch.where(images > 0, images, 1.0)
        shared = self.shrinkage * own / max(1, int(freedom.sum()))
        everyone = self._within() if r and self.shrinkage else None
        for k in range(self.num_classes):
            if not r or not self.count[k] or (everyone is None and not freedom[k]):
                continue
            rows = float(own[k]) ** 0.5 * self._sketch[k]
            if everyone is not None:
                rows = torch.cat([rows, float(shared[k]) ** 0.5 * everyone])
            s, v = _thin_svd(rows)
            n = min(
                r,
                int((s > 1e-6 * s[0].clamp_min(1e-12)).sum()),
                int(freedom[k]) if everyone is None else r,
            )
            modes[k, :n], std[k, :n] = _fix_signs(v[:n]), s[:n]
        variance = own.unsqueeze(1).to(device) * self.square + shared.unsqueeze(1).to(
            device
        ) * self.square.sum(0)
        if empty:
            weight = (self.count / self.count.sum()).unsqueeze(1).to(device)
            mean = (weight * self.mean).sum(0)
            within = (weight * variance).sum(0)
            self.mean[empty] = mean
            variance[empty] = within + (weight * (self.mean - mean).square()).sum(0)
        return self.mean.float().cpu(), variance.float().cpu(), modes, std

    def _within(self) -> Tensor:
        """A sketch of all classes' deviations from their own means."""
        found = torch.zeros(0, self.dim, device=self.mean.device)
        for sketch in self._sketch:
            if sketch is not None:
                found = torch.cat([found, sketch])
                if len(found) >= 4 * self.sketch_rows:
                    found = self._reduced(found)
        return found

    def _reduced(self, rows: Tensor) -> Tensor:
        """(`sketch_rows` at most, D) rows of nearly the same energy as many."""
        s, v = _thin_svd(rows)
        return s[: self.sketch_rows, None] * v[: self.sketch_rows]


def _thin_svd(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Singular values, largest first, and right vectors as rows, of (n, D)."""
    if rows.shape[0] > rows.shape[1]:
        _, s, v = torch.linalg.svd(rows.double(), full_matrices=False)
        return s.float(), v.float()
    rows = (
        rows.double()
    )  # through the n x n Gram matrix, which is small here; float64 pays for the squaring
    values, u = torch.linalg.eigh(rows @ rows.T)
    s = values.flip(0).clamp_min(0).sqrt()
    v = (u.flip(1).T @ rows) / s.clamp_min(1e-12).unsqueeze(1)
    return s.float(), v.float()


def _fix_signs(v: Tensor) -> Tensor:
    """Each row's largest entry made positive, so that the same data give the same modes on any machine."""
    top = v.gather(1, v.abs().argmax(1, keepdim=True))
    return v * torch.where(top < 0, -1.0, 1.0)
