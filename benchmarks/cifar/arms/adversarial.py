"""An adversarial step in the code space (Yüksel et al., ICCV 2021): codes move up the classifier's loss."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from timm_nfaug import lift
from timm_nfaug.augment import NFAugment
from timm_nfaug.flows.model import ConditionalFlow

from .base import ClassifierChange, Moved, register
from .nfa import fitted

START = 0.1  # of the length, as a step from the image itself meets a vanishing gradient where the loss is small


class AdversarialChange(ClassifierChange):
    """One step up the loss, as long as NFAugment's move along the modes is on average.

    Args:
        strength, modes: of that move.
    """

    def __init__(self, flow: ConditionalFlow, strength: float, modes: int):
        self.flow = flow.requires_grad_(False)
        self.size, self.num_classes, self.noise_size = (
            flow.config.input_size,
            flow.num_classes,
            flow.dim,
        )
        self.length = strength * flow.prior.mode_std[:, :modes].square().sum(1).sqrt()  # (K,)

    def change(self, images, y: Tensor | None, noise: Tensor) -> Tensor:
        x = lift.down(images(), self.size[1:])
        z, y = self.flow.encode(x, y)
        length = self.length[y].unsqueeze(1)
        z = z + START * length * F.normalize(noise.to(z), dim=1)
        gradient = self.gradient(z, y)
        return self.flow.inverse(z + (1 - START) * length * F.normalize(gradient, dim=1)) - x

    def gradient(self, z: Tensor, y: Tensor) -> Tensor:
        """Gradient of the classifier's loss with respect to the codes (B, D)."""
        z = z.detach().requires_grad_()
        with torch.enable_grad(), self.evaluated() as model:
            loss = F.cross_entropy(model(self.flow.inverse(z) * 2), y, reduction="sum")
            return torch.autograd.grad(loss, z)[0]


@register("adversarial")
class Adversarial(Moved):
    """One setting of it, that of NFAugment; it was not searched for."""

    label = "a direction in the codes that raises the classifier's loss, as long as the move along the modes"
    only = ("after", "needs the image that the classifier sees")

    @classmethod
    def augment(cls, data, flow, s):
        change = AdversarialChange(fitted(flow, data, s).flow, s.strength, s.modes)
        return NFAugment.from_change(change, p=s.p, labels="given")
