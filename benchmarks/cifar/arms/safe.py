"""Moves that are taken back where the classifier, as it stands, loses the label by them."""

from __future__ import annotations

import torch
from torch import Tensor

from timm_nfaug import lift, pixels
from timm_nfaug.augment import NFAugment
from timm_nfaug.change import Change

from .base import ClassifierChange, Moved, OnLinear, register
from .nfa import fitted


class SafeChange(ClassifierChange):
    """Another change, but none where the classifier has an image right before it and not after it."""

    def __init__(self, inner: Change):
        self.inner = inner
        self.size, self.num_classes = inner.size, inner.num_classes
        self.noise_size = inner.noise_size

    def change(self, images, y: Tensor | None, noise: Tensor) -> Tensor:
        x = lift.down(images(), self.size[1:])
        change = self.inner.change(images, y, noise)
        # in levels, as the classifier will see them
        moved = pixels.levels_to_model(pixels.model_to_levels((x + change).clamp(-1, 1)))
        with self.evaluated() as model:
            before, after = (model(v * 2).argmax(1) == y for v in (x, moved))
        return torch.where((before & ~after).view(-1, 1, 1, 1), 0.0, change)


@register("safe")
class Safe(Moved):
    """NFA with a deep flow."""

    label = "`glem`, taken back where the classifier, as it stands, loses the label by the move"
    only = ("after", "needs the image that the classifier sees")

    @classmethod
    def augment(cls, data, flow, s):
        return NFAugment.from_change(
            SafeChange(fitted(flow, data, s).change), p=s.p, labels="given"
        )


@register("linear-safe")
class LinearSafe(OnLinear, Safe):
    """Linear NFA."""

    label = "`linear`, taken back in the same way"
