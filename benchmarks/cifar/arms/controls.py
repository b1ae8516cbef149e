"""Controls of a deep flow: other modes at the flow's mean pixel move."""

from __future__ import annotations

import math

import torch
from torch import Tensor

import timm_nfaug as nfa
from timm_nfaug import pixels
from timm_nfaug.augment import NFAugment
from timm_nfaug.flows.bijections.multiscale import Multiscale
from timm_nfaug.flows.model import ConditionalFlow
from timm_nfaug.flows.moments import ClassMoments
from train_flow.data import Images
from train_flow.evaluate import batches

from .base import Moved, register
from .nfa import fitted, linear_flow


def patch_flow(data: Images) -> ConditionalFlow:
    """The conv_p4 flows without their couplings: whitened patches."""
    shape, classes = tuple(data.levels.shape[1:]), len(data.class_names)
    flow = nfa.create_flow("conv_p4_tiny", input_size=shape, num_classes=classes, depth=0)
    flow.initialize(pixels.levels_to_model(data.levels[:2048].cpu()))
    return flow


def mean_move(augment: NFAugment, data: Images, count: int = 256) -> float:
    """Mean absolute change of a pixel, in levels, over images spread over `data`."""
    count = min(count, len(data))
    pick = torch.arange(count, device=data.levels.device) * len(data) // count
    levels, labels = data.levels[pick], data.labels[pick]
    moved, _ = augment.replace(p=1.0)(levels, labels, generator=torch.Generator().manual_seed(0))
    return (moved.float() - levels.float()).abs().mean().item()


@torch.no_grad()
def deep_modes(
    flow: ConditionalFlow, data: Images, count: int, shrinkage: float
) -> tuple[Tensor, Tensor]:
    """Modes (K, count, D) and standard deviations (K, count) of what passes all levels of a multi-scale flow.

    What leaves at the levels before, the finer detail, is in none of them.
    """
    moments = ClassMoments(len(data.class_names), flow.dim, count, shrinkage=shrinkage)
    deepest = math.prod(flow.network.kept_shapes[-1])
    for levels, y in batches(data, 512):
        z = flow(pixels.levels_to_model(levels))[0]
        z[:, :-deepest] = 0
        moments.update(z, y)
    _, _, modes, std = moments.finish()
    return modes, std


class Control(Moved):
    """Another augmentation, with the strength at which pixels move as far on average as by the flow."""

    @classmethod
    def augment(cls, data, flow, s):
        control = cls.control(data, flow, s)
        ratio = mean_move(fitted(flow, data, s), data) / mean_move(control, data)
        return control.replace(strength=control.strength * ratio)

    @classmethod
    def control(cls, data, flow, s) -> NFAugment:
        raise NotImplementedError


@register("pixel-pca")
class PixelPCA(Control):
    """`linear` at the flow's mean pixel move."""

    label = "`linear` at the mean pixel move of `glem`"
    flow_is_a_ruler = True

    @classmethod
    def control(cls, data, flow, s):
        return fitted(linear_flow(data), data, s)


@register("patch-pca")
class PatchPCA(PixelPCA):
    """Principal components of whitened patches, at the flow's mean pixel move."""

    label = "modes of whitened patches, at the mean pixel move of `glem`"

    @classmethod
    def control(cls, data, flow, s):
        return fitted(patch_flow(data), data, s)


@register("deep")
class Deep(Control):
    """Modes of the deepest scale of a multi-scale flow, at the mean pixel move of all of its scales."""

    label = (
        "modes of what passes all levels of a multi-scale flow, at the mean pixel move of `glem`"
    )

    @classmethod
    def control(cls, data, flow, s):
        if not isinstance(flow.network, Multiscale):
            raise ValueError(
                f"arm deep needs a multi-scale flow (resnet_ms3), got {flow.config.architecture}"
            )
        control = fitted(flow, data, s)
        control.flow.prior.set_modes(*deep_modes(flow, data, control.modes, s.shrinkage))
        return control
