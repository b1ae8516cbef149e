"""ClassMoments: mean, variance and principal components of every class, in one pass over the codes.

Incremental PCA: each class keeps a sketch, a few rows that carry the energy of all codes so far,
and folds new rows in by a thin SVD (Ross et al., IJCV 2008).
"""

import torch
from torch import Tensor

from .._utils.checks import check_labels

WAITING = 2**26  # floats that may wait for their fold (256 MB)
ON_GPU = 2**28  # floats of sketches that may lie on the GPU of the first codes (1 GB)


class ClassMoments:
    """Accumulates codes of K classes and D dimensions with `update`; `finish` gives their moments.

    `num_modes` is r, or 0 for means and variances only. With `allow_empty` a class without images
    has mean and variance of all images, and no modes. By `shrinkage` the spread within all classes
    counts for each as if seen in so many more images of it (Friedman, JASA 1989).

    >>> moments = ClassMoments(num_classes=2, dim=8, num_modes=3)
    >>> moments.update(torch.randn(20, 8), torch.arange(20) % 2)
    >>> [tuple(t.shape) for t in moments.finish()]
    [(2, 8), (2, 8), (2, 3, 8), (2, 3)]
    """

    def __init__(
        self, num_classes: int, dim: int, num_modes: int, allow_empty=False, shrinkage: float = 0.0
    ):
        if not 0 <= shrinkage < float("inf"):
            wanted = "shrinkage must be a finite number of images of at least 0"
            raise ValueError(f"{wanted}, got {shrinkage!r}")
        self.num_classes, self.dim, self.num_modes = num_classes, dim, num_modes
        self.allow_empty, self.shrinkage = allow_empty, shrinkage
        self.count = torch.zeros(num_classes, dtype=torch.int64)
        self.mean = torch.zeros(num_classes, dim, dtype=torch.float64)
        self.square = torch.zeros_like(self.mean)  # sum of squared deviations from the mean
        # more than the modes wanted: what the folds drop lies far below the modes kept
        self.sketch_rows = 2 * num_modes + 16 if num_modes else 0
        self._sketch = [torch.zeros(0, dim)] * num_classes
        self._pending = list(self._sketch)  # rows that wait for their fold
        self._waiting = 0  # number of these rows

    @property
    def empty(self) -> list[int]:
        """Classes without images so far."""
        seen = zip(self.count.tolist(), self._pending)
        return [k for k, (count, pending) in enumerate(seen) if not count and not len(pending)]

    @torch.no_grad()
    def update(self, z: Tensor, y: Tensor) -> None:
        """Adds codes z (B, D) of labels y (B,)."""
        small = self.num_classes * self.sketch_rows * self.dim <= ON_GPU
        if z.is_cuda and small and not self._waiting and not self.count.any():
            self.mean, self.square = self.mean.to(z.device), self.square.to(z.device)
            self._sketch = [torch.zeros(0, self.dim, device=z.device)] * self.num_classes
            self._pending = list(self._sketch)
        y = check_labels(y, self.num_classes, self.mean.device, len(z))
        z = z.detach().to(self.mean.device)
        for k in y.unique().tolist():
            if self.num_modes:
                self._wait(k, z[y == k].float())
            else:
                self._merge_mean(k, z[y == k])

    def _wait(self, k: int, rows: Tensor) -> None:
        self._pending[k] = torch.cat([self._pending[k], rows])
        self._waiting += len(rows)
        if len(self._pending[k]) >= 4 * self.sketch_rows:
            self._fold(k)
        while self._waiting * self.dim > WAITING:
            self._fold(max(range(self.num_classes), key=lambda k: len(self._pending[k])))

    def _fold(self, k: int) -> None:
        rows = self._pending[k]
        self._pending[k] = rows.new_zeros(0, self.dim)
        self._waiting -= len(rows)
        gap = self._merge_mean(k, rows).float().unsqueeze(0)
        self._sketch[k] = self._reduced(torch.cat([self._sketch[k], rows - rows.mean(0), gap]))

    def _merge_mean(self, k: int, rows: Tensor) -> Tensor:
        """Merges rows into mean and variance; returns the row (D,) that the moved mean is worth."""
        rows = rows.double()
        n, m = int(self.count[k]), len(rows)
        new_mean = rows.mean(0)
        gap = new_mean - self.mean[k]
        self.square[k] += (rows - new_mean).square().sum(0) + gap.square() * (n * m / (n + m))
        self.mean[k] += gap * (m / (n + m))
        self.count[k] += m
        return gap * (n * m / (n + m)) ** 0.5

    def _reduced(self, rows: Tensor) -> Tensor:
        """Makes at most `sketch_rows` rows (., D) of nearly the same energy as `rows`."""
        s, v = thin_svd(rows)
        return s[: self.sketch_rows, None] * v[: self.sketch_rows]

    @torch.no_grad()
    def finish(self, num_modes: int | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Mean and variance (K, D), modes (K, r, D), and std (K, r) along them, largest first.

        Without shrinkage a class of n images has at most n - 1 modes, then zeros.
        """
        r = self.num_modes if num_modes is None else num_modes
        self._check_finished(r)
        for k, rows in enumerate(self._pending):
            if len(rows):
                self._fold(k)
        # sums of squares about the class means, of the class itself and of all, to a covariance
        freedom = (self.count - 1).clamp_min(0)  # (K,)
        images = self.shrinkage + freedom.double()
        own = 1 / torch.where(images > 0, images, 1.0)
        shared = self.shrinkage * own / max(1, int(freedom.sum()))
        modes, std = self._modes(r, own.tolist(), shared.tolist())
        own, shared = (w.unsqueeze(1).to(self.mean.device) for w in (own, shared))
        mean, variance = self._filled(own * self.square + shared * self.square.sum(0))
        return mean.float().cpu(), variance.float().cpu(), modes, std

    def _check_finished(self, r: int) -> None:
        empty = self.empty
        if empty and (not self.allow_empty or len(empty) == self.num_classes):
            raise ValueError(f"saw no image of class {empty[0]} (of {len(empty)} such); add some")
        if r and not self.num_modes:
            hint = f"gather them with num_modes={r}"
            raise ValueError(f"these moments have no modes, {r} a class are wanted; {hint}")

    def _modes(self, r: int, own: list[float], shared: list[float]) -> tuple[Tensor, Tensor]:
        """Modes (K, r, D) and std (K, r) of each class's sketch and the shared one, weighted."""
        modes, std = torch.zeros(self.num_classes, r, self.dim), torch.zeros(self.num_classes, r)
        everyone = self._within() if r and self.shrinkage else self._sketch[0][:0]
        for k, images in enumerate(self.count.tolist()):
            most = r if self.shrinkage and images else min(r, images - 1)
            if most > 0:
                parts = [own[k] ** 0.5 * self._sketch[k], shared[k] ** 0.5 * everyone]
                s, v = thin_svd(torch.cat(parts))
                # float32 sketches: what is below 1e-6 of the largest is rounding
                n = min(most, int((s > 1e-6 * s[0].clamp_min(1e-12)).sum()))
                modes[k, :n], std[k, :n] = fix_signs(v[:n]), s[:n]
        return modes, std

    def _within(self) -> Tensor:
        """A sketch (., D) of all classes' deviations from their own means."""
        found = self._sketch[0][:0]
        for sketch in self._sketch:
            found = torch.cat([found, sketch])
            if len(found) >= 4 * self.sketch_rows:
                found = self._reduced(found)
        return found

    def _filled(self, variance: Tensor) -> tuple[Tensor, Tensor]:
        """Means and variances (K, D) where classes without images have those of all images."""
        mean, empty = self.mean.clone(), self.empty
        if empty:
            weight = (self.count / self.count.sum()).unsqueeze(1).to(mean.device)  # (K, 1)
            mean[empty] = middle = (weight * mean).sum(0)
            between = (weight * (mean - middle).square()).sum(0)
            variance[empty] = (weight * variance).sum(0) + between
        return mean, variance


def thin_svd(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Singular values (m,), largest first, and right vectors (m, D) of rows (n, D), m = min(n, D).

    >>> thin_svd(torch.diag(torch.tensor([3.0, 4.0])))[0]
    tensor([4., 3.])
    """
    rows = rows.double()
    if rows.shape[0] > rows.shape[1]:
        _, s, v = torch.linalg.svd(rows, full_matrices=False)
    else:  # through the n x n Gram matrix, which is small; float64 pays for the squaring
        values, u = torch.linalg.eigh(rows @ rows.T)
        s = values.flip(0).clamp_min(0).sqrt()
        v = (u.flip(1).T @ rows) / s.clamp_min(1e-12).unsqueeze(1)
    return s.float(), v.float()


def fix_signs(v: Tensor) -> Tensor:
    """Makes the largest entry of each row positive: the same data give the same modes anywhere.

    >>> fix_signs(torch.tensor([[1.0, -2.0]]))
    tensor([[-1.,  2.]])
    """
    top = v.gather(1, v.abs().argmax(1, keepdim=True))
    return v * torch.where(top < 0, -1.0, 1.0)
