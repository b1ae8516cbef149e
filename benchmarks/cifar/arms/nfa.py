"""NFA itself: images moved along principal modes, by the linear flow or by a deep one.

In the record an arm on a deep flow is called after the objective of the flow that it takes by
default; the run names the flow, and the flow's configuration its objective.
"""

from __future__ import annotations

import torch

import timm_nfaug as nfa
from timm_nfaug.augment import NFAugment
from timm_nfaug.flows.model import ConditionalFlow
from train_flow.data import Images
from train_flow.evaluate import batches

from .base import Moved, OnLinear, Settings, register


def linear_flow(data: Images) -> ConditionalFlow:
    """The linear flow of the size of `data`, up to 32 px as `from_data` has it; nothing is trained."""
    c, h, w = data.levels.shape[1:]
    return nfa.create_flow("linear", input_size=(c, min(32, h), min(32, w)))


def fitted(flow: ConditionalFlow, data: Images, s: Settings, labels: str = "given") -> NFAugment:
    """NFAugment with the Gaussians and modes of `data`, per class or, with labels "none", of all images."""
    flow = flow.to(data.levels.device).eval()
    if labels == "none":
        data = data.without_labels()
    count = torch.bincount(data.labels, minlength=len(data.class_names))
    rank = int((count - 1).clamp_min(0).sum() if s.shrinkage else count.min() - 1)
    modes = min(s.modes, rank)
    if modes < 1:
        raise ValueError(
            f"modes of a class need two images or more, one class has {int(count.min())}; take a larger fraction"
        )
    settings = {"strength": s.strength, "p": s.p, "kind": s.move, "labels": labels}
    return NFAugment.to_fit(flow, modes, **settings).fit(
        batches(data, 512), len(data.class_names), shrinkage=s.shrinkage
    )


@register("glem")
class Glem(Moved):
    """A deep flow with class modes of the run's own images."""

    label = "NFA with a deep flow, class modes of the run's own images"
    settings = (*Moved.settings, "move")

    @classmethod
    def augment(cls, data, flow, s):
        return fitted(flow, data, s)


@register("ml")
class ML(Glem):
    """The same with a flow trained by maximum likelihood of Gaussians and network together."""

    label = "the same with a flow trained by `ml`"
    flow = "ml"


@register("random")
class Random(Glem):
    """The same with a flow trained with fixed, random Gaussians."""

    label = "the same with a flow trained by `random`"
    flow = "random"


@register("linear")
class Linear(OnLinear, Glem):
    """The eigen-images of each class, or modes of its pixels: no network, fitted in a moment."""

    label = "linear NFA: eigen-images of each class, no network"


@register("pooled")
class Pooled(Moved):
    """Modes of all classes together."""

    label = "NFA with a deep flow, modes of all classes together"
    settings = ("strength", "modes", "p", "place", "move")  # one class has no others to lean on

    @classmethod
    def augment(cls, data, flow, s):
        return fitted(flow, data, s, labels="none")


@register("linear-pooled")
class LinearPooled(OnLinear, Pooled):
    """The eigen-images of all images together."""

    label = "linear NFA: eigen-images of all images together"


@register("isotropic")
class Isotropic(Moved):
    """A random direction of all coordinates, as long as the move along the modes."""

    label = "a random direction in the codes, as long as the move along the modes"

    @classmethod
    def augment(cls, data, flow, s):
        return fitted(flow, data, s).replace(kind="isotropic", modes=s.modes)


@register("own-modes")
class OwnModes(Moved):
    """The modes that the flow was trained with."""

    label = "NFA with the modes that its flow came with"
    flow = "own-modes"
    keeps_modes = True
    settings = ("strength", "modes", "p", "place")

    @classmethod
    def augment(cls, data, flow, s):
        classes = len(data.class_names)
        if flow.num_classes not in (1, classes):
            raise ValueError(
                f"arm {cls.name} keeps the modes of the flow's own {flow.num_classes} classes, the data has {classes}"
            )
        labels = "none" if flow.num_classes == 1 else "given"
        modes = min(s.modes, flow.prior.num_modes)
        return NFAugment(flow, s.strength, modes, s.p, labels=labels)


@register("ce")
class CE(OwnModes):
    """A flow with conditional encoding, the paper's baseline; it has no classes to fit modes to."""

    label = "NFA with the paper's conditional encoding, and the modes of that flow"
    flow = "ce"
    label_band = True
