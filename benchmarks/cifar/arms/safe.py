"""Moves that are taken back where the classifier, as it stands, loses the label by them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from timm_nfaug import pixels

from .base import KINDS, Arm, LevelsStep, Moved, OnLinear, register
from .nfa import fitted, nfa_step


@register("safe")
class Safe(Arm):
    """A step is taken back where the classifier had an image right before it and not after it."""

    label = "`glem`, taken back where the classifier, as it stands, loses the label by the move"
    kind = KINDS[1]
    flow = "glem"
    settings = Moved.settings
    only = ("after", "needs the image that the classifier sees")

    def __init__(self, step: LevelsStep):
        super().__init__()
        self.step = step

    @classmethod
    def make(cls, data, flow, s):
        return cls(nfa_step(fitted(flow, data, s)))

    def start(self, model: nn.Module, steps: int) -> None:
        self.model = model

    @torch.no_grad()
    def images(self, levels: Tensor, y: Tensor, g: torch.Generator) -> Tensor:
        moved = self.step(levels, y, g)
        self.model.eval()
        before, after = (
            self.model(pixels.levels_to_model(v) * 2).argmax(1) == y for v in (levels, moved)
        )
        self.model.train()
        return torch.where((before & ~after).view(-1, 1, 1, 1), levels, moved)


@register("linear-safe")
class LinearSafe(OnLinear, Safe):
    """The same with linear NFA."""

    label = "`linear`, taken back in the same way"
