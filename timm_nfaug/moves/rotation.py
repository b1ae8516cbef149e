"""rotation: turns codes about the mean of their class, on the shell where the codes live.

With r = z - mu, the new code is ``mu + cos(t) r + sin(t) r'``, where r' is drawn along the
principal modes of the class and t is uniform between 0 and `strength` radians. If r and r' came
from one Gaussian, so does the turned code (the path of slerp; Shoemake, SIGGRAPH 1985).
"""

import torch
from torch import Tensor

from ..flows.model import ConditionalFlow as Flow
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

    def noise_size(self, flow: Flow) -> int:
        return self.modes + 1  # the last one gives the angle

    @torch.no_grad()
    def displacement(self, flow: Flow, y: Tensor, noise: Tensor, z: Tensor | None = None) -> Tensor:
        if z is None:
            raise ValueError("a rotation needs the codes z; pass z=")
        angle = self.strength * torch.special.ndtr(noise[:, -1:])  # normal to uniform in [0, 1]
        partner = self.partner(flow, y, noise[:, :-1])
        return (angle.cos() - 1) * (z - flow.prior.mu[y]) + angle.sin() * partner

    def partner(self, flow: Flow, y: Tensor, noise: Tensor) -> Tensor:
        """What codes (B, D) about their class mean turn toward."""
        return PCA(self.modes).displacement(flow, y, noise)
