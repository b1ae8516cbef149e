"""Moves of codes: a registry, one move a file, and `perturb`, which moves codes directly."""

import torch
from torch import Tensor

from ..flows.model import ConditionalFlow as Flow
from .base import CUT, Move, create_move, draw_noise, list_moves, register, usual_modes
from .pca import PCA

from .axes import Axes  # isort: skip
from .isotropic import Isotropic  # isort: skip
from .rotation import Rotation  # isort: skip

__all__ = [
    "CUT", "Axes", "Isotropic", "Move", "PCA", "Rotation",
    "create_move", "draw_noise", "list_moves", "perturb", "register", "usual_modes",
]  # fmt: skip


@torch.no_grad()
def perturb(
    flow: Flow,
    z: Tensor,
    y: Tensor,
    strength: float = 1.0,
    modes: int = 32,
    kind: str = "pca",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Moves codes z (B, D) of labels y (B,); returns moved codes (B, D).

    Args:
        strength: 0 changes nothing; 1 moves by one standard deviation of the class along each mode.
        modes: number of modes.
        kind: a name of `list_moves()`.
        generator: source of the noise, on the CPU or on the device of z.

    >>> import timm_nfaug as nfa
    >>> flow = nfa.create_flow("linear", input_size=(1, 4, 4), num_classes=1, prior={"num_modes": 2})
    >>> z = torch.zeros(3, 16)
    >>> perturb(flow, z, torch.zeros(3, dtype=torch.int64), strength=0, modes=2) is z
    True
    """
    move = create_move(kind, modes, strength)
    move.check(flow)
    if strength == 0:
        return z
    y = flow.gaussian_labels(y, len(z))
    noise = draw_noise(len(z), move.noise_size(flow), generator).to(z)
    return z + move.displacement(flow, y, noise, z)
