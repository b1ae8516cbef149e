"""isotropic: moves in a random direction of all coordinates, the control of the other moves.

Its mean square length is that of the pca move with as many modes (of the axes move where the flow
stores no modes), so that a comparison shows what the directions alone are worth.
"""

from __future__ import annotations

from torch import Tensor

from ..flows.model import ConditionalFlow
from .base import Move, register


@register
class Isotropic(Move):
    """Moves in a random direction with the energy of the pca move.

    >>> import timm_nfaug as nfa
    >>> flow = nfa.create_flow("linear", input_size=(1, 4, 4), num_classes=1)
    >>> Isotropic(modes=3).noise_size(flow)
    16
    """

    name = "isotropic"

    def noise_size(self, flow: ConditionalFlow) -> int:
        return flow.dim

    def displacement(
        self, flow: ConditionalFlow, y: Tensor, noise: Tensor, z: Tensor | None = None
    ) -> Tensor:
        prior = flow.prior
        if prior.num_modes:
            energy = prior.mode_std[:, : self.modes].square().sum(1)  # (K,)
        else:
            energy = prior.variance.topk(self.modes, dim=1).values.sum(1)
        return noise * (self.strength * (energy / flow.dim).sqrt()[y]).unsqueeze(1)
