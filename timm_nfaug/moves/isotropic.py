"""isotropic: moves in a random direction of all coordinates, the control of the other moves.

Its mean square length is that of the pca move with as many modes (of the axes move where the flow
stores no modes), so that a comparison shows what the directions alone are worth.
"""

import torch
from torch import Tensor

from ..flows.model import ConditionalFlow as Flow
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

    def check(self, flow: Flow) -> None:
        super().check(flow)
        if flow.config.network.get("basis"):
            raise ValueError(
                f"kind isotropic is for all coordinates of a code, and classes that share a basis have "
                f'its {flow.dim} alone; find modes of all images together, labels="none", or take pca'
            )

    def noise_size(self, flow: Flow) -> int:
        return flow.dim

    def unmoved(self, flow: Flow) -> Tensor:
        return self._energy(flow) == 0

    @torch.no_grad()
    def displacement(self, flow: Flow, y: Tensor, noise: Tensor, z: Tensor | None = None) -> Tensor:
        return noise * (self.strength * (self._energy(flow) / flow.dim).sqrt()[y]).unsqueeze(1)

    def _energy(self, flow: Flow) -> Tensor:
        """Mean square length (K,) of the move of each class at strength 1."""
        prior, n = flow.prior, self.modes
        squares = prior.mode_std[:, :n] ** 2 if prior.num_modes else prior.variance.topk(n)[0]
        return squares.sum(1)
