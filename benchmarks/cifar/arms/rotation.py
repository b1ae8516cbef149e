"""Codes turned about the mean of their class toward a partner.

With r = z - mu, the new code is mu + cos(t) r + sin(t) r' for the r' of the partner. If r and r' are drawn from one
Gaussian, so is the turned code, where a straight line between two codes would leave its shell.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from timm_nfaug import pixels
from timm_nfaug.flows.model import ConditionalFlow
from timm_nfaug.moves.perturb import displacement, draw_noise
from train_flow.data import Images
from train_flow.evaluate import batches

from .base import LevelsStep, Moved, OnLinear, Settings, register
from .nfa import fitted

# labels (B,), generator to codes about the class mean (B, D)
Partner = Callable[[Tensor, torch.Generator], Tensor]


def rotation_step(flow: ConditionalFlow, partner: Partner, s: Settings) -> LevelsStep:
    """A step that turns codes by 0 to `strength` radians, each image with probability p."""

    @torch.no_grad()
    def step(levels: Tensor, y: Tensor, g: torch.Generator) -> Tensor:
        chosen, turn = torch.rand(2, len(levels), generator=g).to(levels.device)
        chosen = chosen < s.p
        if not chosen.any():
            return levels
        t = (turn[chosen] * s.strength).unsqueeze(1)
        mu = flow.prior.mu[y[chosen]]
        x = pixels.levels_to_model(levels[chosen])
        moved = flow.inverse(mu + t.cos() * (flow(x)[0] - mu) + t.sin() * partner(y[chosen], g))
        finite = moved.flatten(1).isfinite().all(1).view(-1, 1, 1, 1)
        levels = levels.clone()
        levels[chosen] = pixels.model_to_levels(torch.where(finite, moved, x).clamp(-1, 1))
        return levels

    return step


@torch.no_grad()
def image_partner(flow: ConditionalFlow, data: Images) -> Partner:
    """Partners are the codes of random training images of the class, now and then of the image itself."""
    codes = torch.cat([flow(pixels.levels_to_model(levels))[0] for levels, _ in batches(data, 512)])
    codes -= flow.prior.mu[data.labels]
    members = [torch.nonzero(data.labels == k).flatten() for k in range(len(data.class_names))]

    def partner(y: Tensor, g: torch.Generator) -> Tensor:
        places = torch.rand(len(y), generator=g).tolist()
        rows = [
            members[k][int(u * len(members[k]))] for k, u in zip(y.tolist(), places, strict=True)
        ]
        return codes[torch.stack(rows)]

    return partner


def mode_partner(flow: ConditionalFlow, s: Settings) -> Partner:
    """Partners are drawn from the class's Gaussian along its modes alone, and so are shorter than codes are."""
    modes = min(s.modes, flow.prior.num_modes)

    def partner(y: Tensor, g: torch.Generator) -> Tensor:
        return displacement(flow, y, draw_noise(len(y), modes, g).to(y.device), "pca", modes)

    return partner


@register("rotation")
class Rotation(Moved):
    """Toward another image of the class."""

    label = (
        "codes turned about the class mean, by up to `s` radians, toward another image of the class"
    )
    settings = ("strength", "modes", "p", "place")  # it takes no modes, but they are on record

    @classmethod
    def step(cls, data, flow, s):
        flow = fitted(flow, data, s).flow
        return rotation_step(flow, image_partner(flow, data), s)


@register("mode-rotation")
class ModeRotation(Moved):
    """Toward a draw from the modes of the class."""

    label = "codes turned so toward a draw from the modes of the class"

    @classmethod
    def step(cls, data, flow, s):
        flow = fitted(flow, data, s).flow
        return rotation_step(flow, mode_partner(flow, s), s)


@register("linear-rotation")
class LinearRotation(OnLinear, Rotation):
    """In the pixels: a mixture of an image and another of its class."""

    label = "`rotation` on pixels"


@register("linear-mode-rotation")
class LinearModeRotation(OnLinear, ModeRotation):
    """In the pixels, toward a draw from the eigen-images."""

    label = "`mode-rotation` on pixels"
