"""Moves codes along the principal modes of their class: z, y, strength, noise -> z'.

``z' = z + strength * sum_k eps_k sigma_k u_k`` with eps ~ N(0, 1) cut at +-3, so that a move has a bound. Kinds:

- ``pca``: u_k are the principal components of the codes of the class, sigma_k their standard deviations.
- ``axes``: u_k are the coordinates of largest variance of the class's diagonal Gaussian.
- ``isotropic``: a random direction of all D coordinates with the energy of the pca move (of the axes move where the
  flow stores no modes); the control that shows what the directions are worth.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._utils.checks import check_strength
from ..flows.model import ConditionalFlow
from ..flows.prior import ClassGaussians

KINDS = ("pca", "axes", "isotropic")
CUT = 3.0


def check_kind(flow: ConditionalFlow, kind: str, modes: int) -> None:
    """Refuses what this flow cannot do, with the remedy."""
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    if not isinstance(modes, int) or modes < 1:
        raise ValueError(f"modes must be a positive integer, got {modes!r}")
    stored = flow.prior.num_modes
    if kind == "pca" and modes > stored:
        raise ValueError(
            f"this flow stores {stored} principal modes a class, {modes} were asked for; lower modes"
        )
    if modes > flow.dim:
        raise ValueError(
            f"codes of this flow have {flow.dim} coordinates, {modes} modes were asked for; lower modes"
        )


def noise_size(flow: ConditionalFlow, kind: str, modes: int) -> int:
    """Random numbers an image needs."""
    return flow.dim if kind == "isotropic" else modes


def draw_noise(count: int, size: int, generator: torch.Generator | None) -> Tensor:
    """(count, size) standard normal numbers, float32 whatever the default dtype, cut at +-3, on the generator's device."""
    device = generator.device if generator is not None else "cpu"
    return torch.randn(count, size, generator=generator, device=device, dtype=torch.float32).clamp_(
        -CUT, CUT
    )


def class_move(prior: ClassGaussians, k: int, noise: Tensor, modes: int) -> Tensor:
    """Move at strength 1 along the principal modes of class k: noise (B, modes) to (B, D)."""
    return (noise * prior.mode_std[k, :modes]) @ prior.modes[k, :modes]


def gathered_move(prior: ClassGaussians, y: Tensor, noise: Tensor, modes: int) -> Tensor:
    """The same for labels y (B,), noise (B, modes): 400 kB an image are read, but no label leaves the device."""
    scaled = noise * prior.mode_std[y, :modes]
    pairs = zip(y.split(512), scaled.split(512), strict=True)
    return torch.cat(
        [torch.bmm(own.unsqueeze(1), prior.modes[k, :modes]).squeeze(1) for k, own in pairs]
    )


def displacement(flow: ConditionalFlow, y: Tensor, noise: Tensor, kind: str, modes: int) -> Tensor:
    """Move of the codes at strength 1: labels y (B,), noise (B, noise_size) to (B, D)."""
    prior = flow.prior
    y = flow.gaussian_labels(y, len(noise))
    if kind == "isotropic":
        if prior.num_modes:
            energy = prior.mode_std[:, :modes].square().sum(1)
        else:
            energy = prior.variance.topk(modes, dim=1).values.sum(1)
        return noise * (energy / flow.dim).sqrt()[y].unsqueeze(1)
    if kind == "pca" and noise.is_cuda and len(y):
        return gathered_move(prior, y, noise, modes)
    # class by class, on a CPU: gathering would move 400 kB an image
    order = y.argsort()
    moves = []
    for k, own in enumerate(noise[order].split(torch.bincount(y, minlength=1).tolist())):
        if not len(own):
            continue
        if kind == "pca":
            moves.append(class_move(prior, k, own, modes))
        else:
            variance, axes = prior.variance[k].topk(modes)
            moves.append(
                own.new_zeros(len(own), flow.dim).index_copy_(1, axes, own * variance.sqrt())
            )
    move = noise.new_empty(len(y), flow.dim)
    if moves:
        move[order] = torch.cat(moves)
    return move


@torch.no_grad()
def perturb(
    flow: ConditionalFlow,
    z: Tensor,
    y: Tensor,
    strength: float = 1.0,
    modes: int = 32,
    kind: str = "pca",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Codes z (B, D) of labels y (B,) to moved codes (B, D).

    Args:
        strength: 0 changes nothing; 1 moves by one standard deviation of the class along each mode.
        modes: number of modes.
        kind: pca, axes or isotropic, see above.
        generator: source of the noise, on the CPU or on the device of z.
    """
    check_strength(strength)
    check_kind(flow, kind, modes)
    if strength == 0:
        return z
    noise = draw_noise(len(z), noise_size(flow, kind, modes), generator).to(z)
    return z + strength * displacement(flow, y, noise, kind, modes)
