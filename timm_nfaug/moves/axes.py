"""axes: moves along the coordinates in which a class varies most, the paper's choice.

``z' = z + strength * sum_k noise_k sigma_k e_k`` over the `modes` coordinates of largest variance
of the class's diagonal Gaussian (Enescu & Sahbi, ACCV 2024).
"""

import torch
from torch import Tensor

from ..flows.model import ConditionalFlow as Flow
from ..hub import COSINE
from .base import STILL, Move, register


@register
class Axes(Move):
    """Moves along the coordinates of largest variance of the class.

    >>> import timm_nfaug as nfa, torch
    >>> flow = nfa.create_flow("linear", input_size=(1, 4, 4), num_classes=2, prior={"num_modes": 1})
    >>> move = Axes(modes=3).displacement(flow, torch.tensor([1]), torch.ones(1, 3))
    >>> int((move != 0).sum())
    3
    """

    name = "axes"

    def check(self, flow: Flow) -> None:
        super().check(flow)
        if flow.config.title == COSINE:  # of no data, in which no pixel varies more than another
            raise ValueError(
                "kind axes needs the variances of your data, cosine has none: take pca"
            )

    def unmoved(self, flow: Flow) -> Tensor:
        return flow.prior.variance.amax(1).sqrt() < STILL  # that of one image is not quite 0

    @torch.no_grad()
    def displacement(self, flow: Flow, y: Tensor, noise: Tensor, z: Tensor | None = None) -> Tensor:
        own, place = y.unique(return_inverse=True)
        variance, axes = flow.prior.variance[own].topk(
            self.modes, dim=1
        )  # (classes among y, modes)
        move = noise.new_zeros(len(y), flow.dim)
        return move.scatter_(1, axes[place], noise * (self.strength * variance.sqrt()[place]))
