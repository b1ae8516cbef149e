"""An adversarial step in the code space (Yüksel et al., ICCV 2021): codes move up the classifier's loss."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from timm_nfaug import pixels
from timm_nfaug.flows.model import ConditionalFlow

from .base import KINDS, Arm, Moved, register
from .nfa import fitted

START = 0.1  # of the length, as a step from the image itself meets a vanishing gradient where the loss is small


@register("adversarial")
class Adversarial(Arm):
    """The move has the length that NFAugment's move along the modes has on average at the same strength."""

    label = "a direction in the codes that raises the classifier's loss, as long as the move along the modes"
    kind = KINDS[1]
    flow = "glem"
    settings = Moved.settings
    only = ("after", "needs the image that the classifier sees")

    def __init__(self, flow: ConditionalFlow, strength: float, modes: int, p: float):
        super().__init__()
        self.flow_, self.strength, self.modes, self.p = flow, strength, modes, p
        self.flow_.requires_grad_(False)

    @classmethod
    def make(cls, data, flow, s):
        return cls(fitted(flow, data, s).flow, s.strength, s.modes, s.p)

    def start(self, model: nn.Module, steps: int) -> None:
        self.model = model

    def images(self, levels: Tensor, y: Tensor, g: torch.Generator) -> Tensor:
        chosen = (torch.rand(len(levels), generator=g) < self.p).to(levels.device)
        if not chosen.any():
            return levels
        x, labels = pixels.levels_to_model(levels[chosen]), y[chosen]
        std = self.flow_.prior.mode_std[:, : self.modes]
        length = self.strength * std.square().sum(1).sqrt()[labels].unsqueeze(1)
        with torch.no_grad():
            z = self.flow_(x)[0]
            start = torch.randn(z.shape, generator=g).to(z.device)
            z = z + START * length * F.normalize(start, dim=1)
        gradient = self.gradient(z, labels)
        with torch.no_grad():
            moved = self.flow_.inverse(z + (1 - START) * length * F.normalize(gradient, dim=1))
        finite = moved.flatten(1).isfinite().all(1).view(-1, 1, 1, 1)
        levels = levels.clone()
        levels[chosen] = pixels.model_to_levels(torch.where(finite, moved, x).clamp(-1, 1))
        return levels

    def gradient(self, z: Tensor, labels: Tensor) -> Tensor:
        """Gradient of the classifier's loss with respect to the codes (B, D)."""
        z = z.detach().requires_grad_()
        with torch.enable_grad():
            self.model.eval()  # the statistics of batch norm are not to learn from the search
            loss = F.cross_entropy(self.model(self.flow_.inverse(z) * 2), labels, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, z)
            self.model.train()
        return gradient
