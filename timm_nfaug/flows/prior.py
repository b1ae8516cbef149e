"""ClassGaussians: one Gaussian a class over the codes of a flow, and the principal modes of each class.

Diagonal covariances are reparametrised as ``sigma^2 = a * sigmoid(s) + c`` (Enescu & Sahbi, ACCV 2024). A low-rank term
along the principal modes can join the diagonal: ``Sigma = U diag(l) U' + diag(sigma^2)``; with it, log densities go
through the matrix determinant lemma and the Woodbury identity, and no D x D matrix is ever made.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

LOG_2PI = math.log(2 * math.pi)


class ClassGaussians(nn.Module):
    """K Gaussians N(mu_y, Sigma_y) over codes z of shape (B, D).

    Args:
        num_classes: K.
        dim: D.
        a, c: range of the variances, (c, a + c); a = 1 and c = 0.25 start them at 0.75. ``a=None`` leaves the variances
            free (``sigma^2 = exp(s)``), which is what a closed-form fit needs.
        num_modes: r, principal modes stored for each class (0: none).
        low_rank: the modes are part of the covariance, not only directions of augmentation.

    Attributes:
        mu: (K, D). s: (K, D). modes: (K, r, D), orthonormal rows. mode_std: (K, r), standard deviation of the codes of
        the class along each mode, largest first; 0 where the data gave fewer modes.
    """

    def __init__(
        self,
        num_classes: int,
        dim: int,
        a: float | None = 1.0,
        c: float = 0.25,
        num_modes: int = 0,
        low_rank: bool = False,
    ):
        super().__init__()
        if num_classes < 1 or dim < 1:
            raise ValueError(f"num_classes and dim must be positive, got {num_classes} and {dim}")
        if a is not None and (a <= 0 or c < 0):
            raise ValueError(f"variance range needs a > 0 and c >= 0, got a={a}, c={c}")
        if low_rank and num_modes < 1:
            raise ValueError("low_rank=True needs num_modes >= 1")
        self.a, self.c, self.low_rank = a, c, low_rank
        self.mu = nn.Parameter(torch.zeros(num_classes, dim))
        self.s = nn.Parameter(torch.zeros(num_classes, dim))
        self.register_buffer("modes", torch.zeros(num_classes, num_modes, dim))
        self.register_buffer("mode_std", torch.zeros(num_classes, num_modes))

    @property
    def num_classes(self) -> int:
        return self.mu.shape[0]

    @property
    def dim(self) -> int:
        return self.mu.shape[1]

    @property
    def num_modes(self) -> int:
        return self.modes.shape[1]

    @property
    def variance(self) -> Tensor:
        """(K, D) diagonal part of the covariances."""
        return self.s.exp() if self.a is None else self.a * torch.sigmoid(self.s) + self.c

    @torch.no_grad()
    def set_variance(self, variance: Tensor) -> None:
        """Sets the diagonal part; values outside the reparametrisation's range go to its nearest end."""
        if self.a is None:
            self.s.copy_(variance.clamp_min(1e-12).log())
        else:
            unit = ((variance - self.c) / self.a).clamp(1e-4, 1 - 1e-4)
            self.s.copy_(torch.logit(unit))

    @torch.no_grad()
    def randomize(self, generator: torch.Generator | None = None) -> None:
        """Means uniform in [-1, 1], variances uniform in [(a + c) / 10, a + c]: the paper's `random` ablation.

        Variances below c cannot be reached by the reparametrisation, so they start at its lower end.
        """
        u = torch.rand(2, *self.mu.shape, generator=generator)
        self.mu.copy_(2 * u[0] - 1)
        top = 1.0 if self.a is None else self.a + self.c
        self.set_variance((top / 10 + (top - top / 10) * u[1]).to(self.s))

    def log_prob(self, z: Tensor, y: Tensor) -> Tensor:
        """(B,) log density of codes z (B, D) under the Gaussians of labels y (B,), in nats."""
        variance = self.variance[y]
        d = z - self.mu[y]
        quad = (d.square() / variance).sum(1)
        log_det = variance.log().sum(1)
        if self.low_rank:
            chol, log_det_low, projected = self._low_rank_terms()
            u = torch.einsum("brd,bd->br", projected[y], d)
            quad = quad - _solve_square(chol[y], u)
            log_det = log_det + log_det_low[y]
        return -0.5 * (quad + log_det + self.dim * LOG_2PI)

    def log_prob_all(self, z: Tensor) -> Tensor:
        """(B, K) log density of codes z (B, D) under every class, in nats."""
        precision = 1 / self.variance
        quad = (
            z.square() @ precision.T
            - 2 * z @ (self.mu * precision).T
            + (self.mu.square() * precision).sum(1)
        )
        log_det = -precision.log().sum(1)
        if self.low_rank:
            chol, log_det_low, projected = self._low_rank_terms()
            k, r, d = projected.shape
            u = (z @ projected.reshape(k * r, d).T).view(-1, k, r) - torch.einsum(
                "krd,kd->kr", projected, self.mu
            )
            quad = quad - _solve_square(chol, u.transpose(0, 1)).T
            log_det = log_det + log_det_low
        return -0.5 * (quad + log_det + self.dim * LOG_2PI)

    def _low_rank_terms(self) -> tuple[Tensor, Tensor, Tensor]:
        """Cholesky factors (K, r, r) of I + F' D^-1 F, their log-dets (K,), and D^-1 F (K, r, D), F = U sqrt(l)."""
        factor = self.modes * self.mode_std.unsqueeze(2)  # (K, r, D)
        projected = factor / self.variance.unsqueeze(1)
        capacitance = projected @ factor.transpose(1, 2)
        chol = torch.linalg.cholesky(
            capacitance + torch.eye(self.num_modes, dtype=factor.dtype, device=factor.device)
        )
        return chol, 2 * chol.diagonal(dim1=1, dim2=2).log().sum(1), projected

    def posterior(self, z: Tensor) -> Tensor:
        """(B, K) p(y given z) under equal class priors."""
        return self.log_prob_all(z).softmax(1)

    def pairwise_kl(self) -> Tensor:
        """(K, K) KL(N_i || N_j) in nats, of the diagonal parts; zero on the diagonal."""
        variance = self.variance
        precision = 1 / variance
        log_det = variance.log().sum(1)
        trace = variance @ precision.T
        cross = self.mu.square() @ precision.T - 2 * self.mu @ (self.mu * precision).T
        shift = cross + (self.mu.square() * precision).sum(1)
        return 0.5 * (trace + shift - self.dim + log_det.unsqueeze(0) - log_det.unsqueeze(1))

    def sample(
        self,
        y: Tensor,
        temperature: float = 1.0,
        mean_scale: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Codes (B, D) of labels y (B,): ``mean_scale * mu + temperature * noise``.

        The paper rescales the means by 1.3 for realism and uses temperatures from 1.0 down to 0.1.
        """
        if temperature < 0:
            raise ValueError(f"temperature must be at least 0, got {temperature}")
        noise = (
            _randn(len(y), self.dim, generator=generator, like=self.mu) * self.variance[y].sqrt()
        )
        if self.low_rank:
            eps = (
                _randn(len(y), self.num_modes, generator=generator, like=self.mu) * self.mode_std[y]
            )
            noise = noise + torch.einsum("br,brd->bd", eps, self.modes[y])
        return mean_scale * self.mu[y] + temperature * noise

    @torch.no_grad()
    def set_moments(self, moments) -> None:
        """Closed-form fit from a `modes.ClassMoments`: means, variances, modes.

        With `low_rank` the diagonal takes what the modes leave of each variance, so that every coordinate keeps its
        variance; without, it takes the whole.
        """
        mean, variance, modes, std = moments.finish(self.num_modes)
        self.mu.copy_(mean)
        if self.low_rank:
            explained = (modes * std.unsqueeze(2)).square().sum(1)
            # a floor of 2% of the mean variance keeps the density proper where the modes explain everything
            variance = (variance - explained).maximum(
                0.02 * variance.mean(1, keepdim=True).clamp_min(1e-6)
            )
        self.set_variance(variance)
        self.set_modes(modes, std)

    @torch.no_grad()
    def set_modes(self, modes: Tensor, std: Tensor) -> None:
        """Stores principal modes (K, r, D) and their standard deviations (K, r)."""
        self.modes = modes.to(self.mu)
        self.mode_std = std.to(self.mu)

    def extra_repr(self) -> str:
        return (
            f"num_classes={self.num_classes}, dim={self.dim}, a={self.a}, c={self.c}, "
            f"num_modes={self.num_modes}, low_rank={self.low_rank}"
        )


def _solve_square(chol: Tensor, u: Tensor) -> Tensor:
    """``u' (L L')^-1 u``: chol (K, r, r) with u (K, B, r) gives (K, B); chol (B, r, r) with u (B, r) gives (B,)."""
    if u.ndim == chol.ndim:
        return torch.linalg.solve_triangular(chol, u.transpose(1, 2), upper=False).square().sum(1)
    return torch.linalg.solve_triangular(chol, u.unsqueeze(2), upper=False).square().sum((1, 2))


def _randn(*shape: int, generator: torch.Generator | None, like: Tensor) -> Tensor:
    device = generator.device if generator is not None else like.device
    return torch.randn(*shape, generator=generator, device=device, dtype=like.dtype).to(like.device)
