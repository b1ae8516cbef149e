"""ClassGaussians: a Gaussian a class over the codes of a flow, and each class's principal modes."""

import math

import torch
from torch import Tensor, nn

from .moments import ClassMoments, fix_signs, thin_svd

Random = torch.Generator | None  # None: torch's own


class ClassGaussians(nn.Module):
    """K Gaussians over codes z (B, D), of means `mu` (K, D) (Enescu & Sahbi, ACCV 2024).

    Each class has r principal modes `modes` (K, r, D), orthonormal rows, and standard deviations
    along them, `mode_std` (K, r), largest first; 0 where there are no more.

    Args:
        a, c: variances are ``a * sigmoid(s) + c``, at first in the middle of that range; ``a=None``
            leaves them free (``exp(s)``), as a closed-form fit needs. `s` is (K, D).
        low_rank: the modes add their variance to that diagonal; else they only direct augmentation.

    >>> prior = ClassGaussians(num_classes=3, dim=8)
    >>> prior.log_prob_all(prior.sample(torch.tensor([0, 2]))).shape
    torch.Size([2, 3])
    """

    def __init__(
        self, num_classes: int, dim: int, a: float | None = 1.0, c=0.25, num_modes=0, low_rank=False
    ):
        super().__init__()
        if num_classes < 1 or dim < 1:
            raise ValueError(f"num_classes and dim must be positive, got {num_classes} and {dim}")
        if a is not None and (a <= 0 or c < 0):
            raise ValueError(f"variance range needs a > 0 and c >= 0, got a={a}, c={c}")
        if low_rank and num_modes < 1:
            raise ValueError("low_rank=True needs num_modes >= 1")
        self.num_classes, self.dim = num_classes, dim
        self.a, self.c, self.low_rank = a, c, low_rank
        self.mu = nn.Parameter(torch.zeros(num_classes, dim))
        self.s = nn.Parameter(torch.zeros(num_classes, dim))
        self.modes: Tensor = nn.Buffer(torch.zeros(num_classes, num_modes, dim))
        self.mode_std: Tensor = nn.Buffer(torch.zeros(num_classes, num_modes))

    @property
    def num_modes(self) -> int:
        return self.modes.shape[1]

    @property
    def variance(self) -> Tensor:
        """(K, D) diagonal part of the covariances."""
        return self.s.exp() if self.a is None else self.a * torch.sigmoid(self.s) + self.c

    @torch.no_grad()
    def set_variance(self, variance: Tensor) -> None:
        """Sets the diagonal part (K, D); values out of range go to its nearest end."""
        if self.a is None:
            self.s.copy_(variance.clamp_min(1e-12).log())
        else:
            unit = (variance - self.c) / self.a
            self.s.copy_(torch.logit(unit.clamp(1e-4, 1 - 1e-4)))  # at 0 and 1, s is infinite

    @torch.no_grad()
    def set_modes(self, modes: Tensor, std: Tensor) -> None:
        """Stores principal modes (K, r, D) and their standard deviations (K, r)."""
        self.modes, self.mode_std = modes.to(self.mu), std.to(self.mu)

    @torch.no_grad()
    def set_moments(self, moments: ClassMoments) -> None:
        """Fits means, modes and variances, or with `low_rank` what the modes leave of these."""
        self._set(*moments.finish(self.num_modes))

    def _set(self, mean: Tensor, variance: Tensor, modes: Tensor, std: Tensor) -> None:
        self.mu.copy_(mean)
        if self.low_rank:
            rest = variance - (modes * std.unsqueeze(2)).square().sum(1)
            # a floor of 2% of the mean keeps the density proper where the modes explain everything
            variance = rest.maximum(0.02 * variance.mean(1, keepdim=True).clamp_min(1e-6))
        self.set_variance(variance)
        self.set_modes(modes, std)

    @torch.no_grad()
    def pooled(self, weight: Tensor) -> "ClassGaussians":
        """The Gaussian of all classes together: mean, variance and modes of the mixture.

        Args:
            weight: (K,) share of each class, of sum 1.

        >>> prior = ClassGaussians(num_classes=3, dim=8, num_modes=2)
        >>> prior.pooled(torch.full((3,), 1 / 3)).modes.shape
        torch.Size([1, 2, 8])
        """
        w = weight.to(self.mu).unsqueeze(1)  # (K, 1)
        mean = (w * self.mu).sum(0, keepdim=True)  # (1, D)
        gap, along = self.mu - mean, self.modes * self.mode_std.unsqueeze(2)  # (K, D), (K, r, D)
        variance = self.variance + (along.square().sum(1) if self.low_rank else 0.0)
        variance = (w * (variance + gap.square())).sum(0, keepdim=True)
        r, rows = self.num_modes, self.mu.new_zeros(0, self.dim)
        for k in torch.arange(self.num_classes).split(max(1, 1024 // (r + 1))):  # some at a time
            new = torch.cat([gap[k].unsqueeze(1), along[k]], 1) * w[k].sqrt().unsqueeze(2)
            std, modes = thin_svd(torch.cat([rows, new.flatten(0, 1)]))
            rows = (std.unsqueeze(1) * modes)[: 2 * r + 16]  # what is dropped lies far below
        modes, std = _padded(fix_signs(modes[:r]), r), _padded(std[:r], r)
        pooled = ClassGaussians(1, self.dim, None, self.c, r, self.low_rank).to(self.mu)
        pooled._set(mean, variance, modes.unsqueeze(0), std.unsqueeze(0))
        return pooled

    @torch.no_grad()
    def randomize(self, generator: Random = None) -> None:
        """Draws means in [-1, 1], variances in [(a + c) / 10, a + c] but above c: an ablation."""
        u = torch.rand(2, *self.mu.shape, generator=generator)
        self.mu.copy_(2 * u[0] - 1)
        top = 1.0 if self.a is None else self.a + self.c
        self.set_variance((top / 10 + (top - top / 10) * u[1]).to(self.s))

    def log_prob(self, z: Tensor, y: Tensor) -> Tensor:
        """(B,) log density of codes z (B, D) under the Gaussians of labels y (B,), in nats."""
        variance, d = self.variance[y], z - self.mu[y]  # (B, D)
        square, log_det = (d.square() / variance).sum(1), variance.log().sum(1)  # (B,)
        if self.low_rank:
            chol, low_log_det, projected = self._low_rank_terms()
            u = torch.einsum("brd,bd->br", projected[y], d).unsqueeze(2)
            square = square - _solved_square(chol[y], u).squeeze(1)
            log_det = log_det + low_log_det[y]
        return -0.5 * (square + log_det + self.dim * math.log(2 * math.pi))

    def log_prob_all(self, z: Tensor) -> Tensor:
        """(B, K) log density of codes z (B, D) under every class, in nats."""
        precision = 1 / self.variance  # (K, D)
        cross, means = z @ (self.mu * precision).T, (self.mu.square() * precision).sum(1)
        square = z.square() @ precision.T - 2 * cross + means  # (B, K)
        log_det = -precision.log().sum(1)  # (K,)
        if self.low_rank:
            chol, low_log_det, projected = self._low_rank_terms()
            u = (z @ projected.flatten(0, 1).T).unflatten(1, projected.shape[:2])  # (B, K, r)
            u = u - torch.einsum("krd,kd->kr", projected, self.mu)
            square = square - _solved_square(chol, u.permute(1, 2, 0)).T
            log_det = log_det + low_log_det
        return -0.5 * (square + log_det + self.dim * math.log(2 * math.pi))

    def _low_rank_terms(self, classes: slice = slice(None)) -> tuple[Tensor, Tensor, Tensor]:
        """Cholesky factors (K, r, r) of ``I + F' V^-1 F``, log-dets (K,) and ``F' V^-1`` (K, r, D).

        Of all classes, or of a slice. V is the diagonal part and F modes times std: the matrix
        determinant lemma and Woodbury.
        """
        factor = self.modes[classes] * self.mode_std[classes].unsqueeze(2)  # (K, r, D)
        projected = factor / self.variance[classes].unsqueeze(1)
        one = torch.eye(self.num_modes, dtype=factor.dtype, device=factor.device)
        chol = torch.linalg.cholesky(projected @ factor.transpose(1, 2) + one)
        return chol, 2 * chol.diagonal(dim1=1, dim2=2).log().sum(1), projected

    def check_covariances(self) -> None:
        """Raises a ValueError where a class has no density, a few classes at a time."""
        if not ((self.variance > 0) & self.variance.isfinite()).all():
            raise ValueError("prior.s gives variances that are not positive and finite")
        step = max(1, 2**22 // max(1, self.num_modes * self.dim))
        for k in range(0, self.num_classes if self.low_rank else 0, step):
            try:
                self._low_rank_terms(slice(k, k + step))
            except torch.linalg.LinAlgError:
                last = min(k + step, self.num_classes) - 1
                what = f"no covariance to a class of {k}..{last}"
                raise ValueError(f"prior.modes, mode_std and s give {what}") from None

    def pairwise_kl(self) -> Tensor:
        """(K, K) KL(N_i || N_j) in nats, of the diagonal parts; zero on the diagonal."""
        variance = self.variance
        precision, log_det = 1 / variance, variance.log().sum(1)
        trace = variance @ precision.T
        cross = self.mu.square() @ precision.T - 2 * self.mu @ (self.mu * precision).T
        shift = cross + (self.mu.square() * precision).sum(1)
        return 0.5 * (trace + shift - self.dim + log_det.unsqueeze(0) - log_det.unsqueeze(1))

    def sample(
        self, y: Tensor, temperature: float = 1.0, mean_scale: float = 1.0, generator: Random = None
    ) -> Tensor:
        """Draws codes (B, D) of labels y (B,): ``mean_scale * mu + temperature * noise``."""
        if temperature < 0:
            raise ValueError(f"temperature must be at least 0, got {temperature}")
        noise = self._randn(len(y), self.dim, generator) * self.variance[y].sqrt()
        if self.low_rank:
            along = self._randn(len(y), self.num_modes, generator) * self.mode_std[y]
            noise = noise + torch.einsum("br,brd->bd", along, self.modes[y])
        return mean_scale * self.mu[y] + temperature * noise

    def _randn(self, rows: int, columns: int, generator: Random) -> Tensor:
        device, dtype = generator.device if generator else self.mu.device, self.mu.dtype
        noise = torch.randn(rows, columns, generator=generator, device=device, dtype=dtype)
        return noise.to(self.mu.device)


def _padded(rows: Tensor, count: int) -> Tensor:
    """The first axis brought to `count` by zeros."""
    return torch.cat([rows, rows.new_zeros(count - len(rows), *rows.shape[1:])])


def _solved_square(chol: Tensor, u: Tensor) -> Tensor:
    """``u' (L L')^-1 u`` (N, M) of each column: chol (N, r, r), u (N, r, M)."""
    return torch.linalg.solve_triangular(chol, u, upper=False).square().sum(1)
