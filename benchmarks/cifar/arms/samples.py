"""Images replaced by samples of their class: what a generative model is usually used for."""

from __future__ import annotations

from torch import Tensor

from timm_nfaug import lift
from timm_nfaug.augment import NFAugment
from timm_nfaug.change import Change
from timm_nfaug.flows.model import ConditionalFlow

from .base import Moved, register
from .nfa import fitted


class SampleChange(Change):
    """The difference between an image and a sample of its class; of a flow without a low-rank part.

    Args:
        temperature: factor of the standard deviations of the class.
    """

    def __init__(self, flow: ConditionalFlow, temperature: float):
        if flow.prior.low_rank:
            raise ValueError("samples need a flow without low_rank; got one with it")
        self.flow, self.temperature = flow, temperature
        self.size, self.num_classes, self.noise_size = (
            flow.config.input_size,
            flow.num_classes,
            flow.dim,
        )

    def change(self, images, y: Tensor | None, noise: Tensor) -> Tensor:
        prior, x = self.flow.prior, lift.down(images(), self.size[1:])
        y = self.flow.gaussian_labels(y, len(noise))
        code = prior.mu[y] + self.temperature * noise.to(x) * prior.variance[y].sqrt()
        return self.flow.inverse(code) - x


@register("samples")
class Samples(Moved):
    """Samples at `temperature` by a flow whose Gaussians are those of the run's own images."""

    label = "images replaced by samples of their class"
    settings = ("p", "place", "shrinkage", "temperature")

    @classmethod
    def augment(cls, data, flow, s):
        return NFAugment.from_change(
            SampleChange(fitted(flow, data, s).flow, s.temperature), p=s.p, labels="given"
        )
