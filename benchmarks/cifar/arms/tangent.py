"""Images moved by a cache of their own tangents, before the crop: the exact flow is not asked again."""

from __future__ import annotations

import tempfile

import torch
from torch import Tensor

from timm_nfaug.augment import NFAugment
from timm_nfaug.data.cache import NFACache
from train_flow.data import Images

from .base import LevelsStep, Moved, Settings, register
from .nfa import fitted


def tangent_step(augment: NFAugment, data: Images, s: Settings) -> LevelsStep:
    """A step on images of `data`, which are found by their bytes and labels in a cache made here."""
    # a class of few images has fewer
    augment = augment.replace(modes=min(augment.modes, augment.flow.prior.num_modes))
    pairs = list(zip(data.levels.cpu(), data.labels.tolist(), strict=True))
    with tempfile.TemporaryDirectory() as folder:  # the open files outlive their names
        cache = NFACache.build(augment, pairs, folder, step=s.strength)
    rows = {(image.numpy().tobytes(), label): i for i, (image, label) in enumerate(pairs)}

    def step(levels: Tensor, y: Tensor, g: torch.Generator) -> Tensor:
        images = zip(levels.cpu(), y.tolist(), strict=True)
        own = torch.tensor([rows[image.numpy().tobytes(), label] for image, label in images])
        return cache.augment(levels, y, own, g, s.strength, s.p)

    return step


@register("tangent")
class Tangent(Moved):
    """The first-order (and bent) picture of `glem`, one cache for a training."""

    label = "`glem` by tangents computed once for each image"
    only = ("before", "knows the training images as they are stored")

    @classmethod
    def step(cls, data, flow, s):
        return tangent_step(fitted(flow, data, s), data, s)
