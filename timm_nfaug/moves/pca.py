"""pca: moves along the principal components of the codes of a class.

``z' = z + strength * sum_k noise_k sigma_k u_k``, with the components u_k and the standard
deviations sigma_k of the codes along them that the flow's prior stores.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..flows.model import ConditionalFlow
from .base import Move, register

GATHERED = 512  # images whose modes, 400 kB each, are copied at once on a GPU


@register
class PCA(Move):
    """Moves along the principal modes of the class.

    >>> import timm_nfaug as nfa
    >>> flow = nfa.create_flow("linear", num_classes=2, prior={"num_modes": 4})
    >>> PCA(modes=4).displacement(flow, torch.tensor([0, 1, 1]), torch.ones(3, 4)).shape
    torch.Size([3, 3072])
    """

    name = "pca"

    def check(self, flow: ConditionalFlow) -> None:
        self.check_stored(flow)
        super().check(flow)

    def displacement(
        self, flow: ConditionalFlow, y: Tensor, noise: Tensor, z: Tensor | None = None
    ) -> Tensor:
        # no label may leave a GPU; on a CPU, gathering would move 400 kB per image
        moved = gathered if noise.is_cuda else moved_by_class
        prior = flow.prior
        return moved(prior.modes, prior.mode_std, y, noise.mul(self.strength))


def gathered(modes: Tensor, std: Tensor, y: Tensor, noise: Tensor) -> Tensor:
    """Moves (B, D) of classes y (B,) by noise (B, n), image by image.

    Args:
        modes: (K, r, D), of which the first n are used.
        std: (K, r), the length of a move along each.

    >>> gathered(torch.ones(2, 1, 3), torch.ones(2, 1), torch.tensor([1]), torch.tensor([[2.0]]))
    tensor([[2., 2., 2.]])
    """
    n = noise.shape[1]
    pairs = zip(y.split(GATHERED), (noise * std[y, :n]).split(GATHERED), strict=True)
    return torch.cat([(own.unsqueeze(1) @ modes[k, :n]).squeeze(1) for k, own in pairs])


def moved_by_class(modes: Tensor, std: Tensor, y: Tensor, noise: Tensor) -> Tensor:
    """The same with one product for each class among y.

    >>> moved_by_class(torch.ones(2, 1, 3), torch.ones(2, 1), torch.tensor([1]), torch.ones(1, 1))
    tensor([[1., 1., 1.]])
    """
    n = noise.shape[1]
    if len(y) == 1:
        k = int(y)
        return (noise * std[k, :n]) @ modes[k, :n]
    move = noise.new_empty(len(y), modes.shape[2])
    order = y.argsort()
    counts = torch.bincount(y, minlength=1).tolist()
    for k, rows in enumerate(order.split(counts)):
        if len(rows):
            move[rows] = (noise[rows] * std[k, :n]) @ modes[k, :n]
    return move
