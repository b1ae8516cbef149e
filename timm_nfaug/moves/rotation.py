"""rotation: turns codes about the mean of their class, on the shell where the codes live.

With r = z - mu, the new code is ``mu + cos(t) r + sin(t) r'``, where r' is drawn along the
principal modes of the class and t is uniform between 0 and `strength` radians. If r and r' came
from one Gaussian, so does the turned code (the path of slerp; Shoemake, SIGGRAPH 1985).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..flows.model import ConditionalFlow
from .base import register
from .pca import PCA


@register
class Rotation(PCA):
    """Turns codes toward a draw along the principal modes of the class; strength is in radians.

    >>> import timm_nfaug as nfa
    >>> flow = nfa.create_flow("linear", input_size=(1, 4, 4), num_classes=1, prior={"num_modes": 2})
    >>> move = Rotation(modes=2, strength=0.0)
    >>> z, y, noise = torch.ones(1, 16), torch.tensor([0]), torch.zeros(1, move.noise_size(flow))
    >>> bool((move.displacement(flow, y, noise, z) == 0).all())
    True
    """

    name = "rotation"
    needs_code = True

    def noise_size(self, flow: ConditionalFlow) -> int:
        return self.modes + 1  # the last one gives the angle

    def displacement(
        self, flow: ConditionalFlow, y: Tensor, noise: Tensor, z: Tensor | None = None
    ) -> Tensor:
        partner = self.partner(flow, y, noise[:, :-1])
        share = torch.special.ndtr(noise[:, -1:])  # standard normal to uniform in [0, 1]
        return turned(z, flow.prior.mu[y], partner, self.strength * share)

    def partner(self, flow: ConditionalFlow, y: Tensor, noise: Tensor) -> Tensor:
        """What codes (B, D) about their class mean turn toward."""
        return PCA(self.modes).displacement(flow, y, noise)


def turned(z: Tensor | None, mean: Tensor, partner: Tensor, angle: Tensor) -> Tensor:
    """Displacement (B, D) that turns z - mean by angle (B, 1), in radians, toward a partner.

    >>> z, mean, partner = torch.tensor([[1.0, 0]]), torch.zeros(1, 2), torch.tensor([[0, 1.0]])
    >>> (z + turned(z, mean, partner, torch.tensor([[torch.pi / 2]]))).round().int()
    tensor([[0, 1]], dtype=torch.int32)
    """
    if z is None:
        raise ValueError("a rotation needs the codes z; pass z=")
    return (angle.cos() - 1) * (z - mean) + angle.sin() * partner
