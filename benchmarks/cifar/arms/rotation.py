"""Codes turned about the mean of their class toward a partner (`timm_nfaug.moves.rotation`)."""

from __future__ import annotations

import torch
from torch import Tensor

from timm_nfaug import pixels
from timm_nfaug.augment import NFAugment
from timm_nfaug.change import change_of
from timm_nfaug.flows.model import ConditionalFlow
from timm_nfaug.moves import Rotation
from train_flow.data import Images
from train_flow.evaluate import batches

from .base import Moved, OnLinear, register
from .nfa import fitted


class TowardImages(Rotation):
    """Turns codes toward those of random images of the class, now and then toward their own.

    Args:
        codes: (N, D), about the means of their classes, sorted by class.
        counts: (K,) how many there are of each class.
        strength: the largest angle, radians.
    """

    def __init__(self, codes: Tensor, counts: Tensor, strength: float):
        super().__init__(modes=1, strength=strength)  # one number chooses the image, one the angle
        self.codes, self.counts, self.first = codes, counts, counts.cumsum(0) - counts

    def partner(self, flow: ConditionalFlow, y: Tensor, noise: Tensor) -> Tensor:
        share = torch.special.ndtr(noise[:, 0])  # standard normal to uniform
        place = (share * self.counts[y]).long().minimum(self.counts[y] - 1)
        return self.codes[self.first[y] + place]


@torch.no_grad()
def toward_images(flow: ConditionalFlow, data: Images, strength: float) -> TowardImages:
    """The move toward images of `data`, whose class means are those of the flow."""
    codes = torch.cat([flow(pixels.levels_to_model(levels))[0] for levels, _ in batches(data, 512)])
    codes -= flow.prior.mu[data.labels]
    counts = torch.bincount(data.labels, minlength=len(data.class_names))
    return TowardImages(codes[data.labels.argsort(stable=True)], counts, strength)


@register("rotation")
class RotationArm(Moved):
    """Toward another image of the class."""

    label = (
        "codes turned about the class mean, by up to `s` radians, toward another image of the class"
    )
    settings = ("strength", "modes", "p", "place")  # it takes no modes, but they are on record

    @classmethod
    def augment(cls, data, flow, s):
        flow = fitted(flow, data, s).flow
        return NFAugment.from_change(
            change_of(flow, toward_images(flow, data, s.strength)), p=s.p, labels="given"
        )


@register("mode-rotation")
class ModeRotation(Moved):
    """Toward a draw along the modes of the class, which is shorter than codes are."""

    label = "codes turned so toward a draw from the modes of the class"

    @classmethod
    def augment(cls, data, flow, s):
        return fitted(flow, data, s).replace(kind="rotation")


@register("linear-rotation")
class LinearRotation(OnLinear, RotationArm):
    """In the pixels: a mixture of an image and another of its class."""

    label = "`rotation` on pixels"


@register("linear-mode-rotation")
class LinearModeRotation(OnLinear, ModeRotation):
    """In the pixels, toward a draw from the eigen-images."""

    label = "`mode-rotation` on pixels"
