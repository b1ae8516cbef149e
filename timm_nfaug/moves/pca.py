"""pca: moves along the principal components of the codes of a class.

``z' = z + strength * sum_k noise_k sigma_k u_k``, with the components u_k and the standard
deviations sigma_k of the codes along them that the flow's prior stores.
"""

import torch
from torch import Tensor

from ..flows.model import ConditionalFlow as Flow
from .base import Move, register

_ZERO = torch.zeros(())
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

    def check(self, flow: Flow) -> None:
        self._check_count(flow.prior.num_modes, "this flow stores {} principal modes per class")
        super().check(flow)

    def unmoved(self, flow: Flow) -> Tensor:
        return (flow.prior.mode_std[:, : self.modes] == 0).all(1)

    def displacement(self, flow: Flow, y: Tensor, noise: Tensor, z: Tensor | None = None) -> Tensor:
        # no label may leave a GPU; on a CPU, gathering would move 400 kB per image
        return self._gathered(flow, y, noise) if noise.is_cuda else self._by_class(flow, y, noise)

    def _gathered(self, flow: Flow, y: Tensor, noise: Tensor) -> Tensor:
        """The displacement with the modes of each image side by side."""
        n, modes = self.modes, flow.prior.modes
        scaled = noise * flow.prior.mode_std[y, :n] * self.strength
        pairs = zip(y.split(GATHERED), scaled.split(GATHERED), strict=True)
        return torch.cat([(own.unsqueeze(1) @ modes[k, :n]).squeeze(1) for k, own in pairs])

    def _by_class(self, flow: Flow, y: Tensor, noise: Tensor) -> Tensor:
        """The displacement by one product for each class among y."""
        if y.shape[0] == 1:
            return self._along(flow, int(y), noise)
        move = noise.new_empty(len(y), flow.dim)
        counts = torch.bincount(y, minlength=1).tolist()
        for k, rows in enumerate(y.argsort().split(counts)):
            if len(rows):
                move[rows] = self._along(flow, k, noise[rows])
        return move

    def _along(self, flow: Flow, k: int, noise: Tensor) -> Tensor:
        prior, n = flow.prior, self.modes
        # one operation for strength * noise * std: for one image each call counts
        scaled = torch.addcmul(_ZERO, noise, prior.mode_std[k, :n], value=self.strength)
        return scaled @ prior.modes[k, :n]
