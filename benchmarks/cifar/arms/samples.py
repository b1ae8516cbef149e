"""Images replaced by samples of their class: what a generative model is usually used for."""

from __future__ import annotations

import torch
from torch import Tensor

from timm_nfaug import pixels
from timm_nfaug.flows.model import ConditionalFlow

from .base import KINDS, LevelsStep, Moved, Settings, register
from .nfa import fitted


def sample_step(flow: ConditionalFlow, s: Settings) -> LevelsStep:
    """A step that replaces images, each with probability p."""

    @torch.no_grad()
    def step(levels: Tensor, y: Tensor, g: torch.Generator) -> Tensor:
        chosen = (torch.rand(len(levels), generator=g) < s.p).to(levels.device)
        x = flow.sample(y[chosen], s.temperature, generator=g)
        levels = levels.clone()
        finite = x.flatten(1).isfinite().all(1).view(-1, 1, 1, 1)
        levels[chosen] = torch.where(finite, pixels.model_to_levels(x.clamp(-1, 1)), levels[chosen])
        return levels

    return step


@register("samples")
class Samples(Moved):
    """Samples at `temperature` by a flow whose Gaussians are those of the run's own images."""

    label = "images replaced by samples of their class"
    kind = KINDS[2]
    settings = ("p", "place", "shrinkage", "temperature")

    @classmethod
    def step(cls, data, flow, s):
        return sample_step(fitted(flow, data, s).flow, s)
