"""The losses of the flow and of its class Gaussians.

The flow's: likelihood, and beside it a cross-entropy with a temperature (Ardizzone et al.,
"Training Normalizing Flows with the Information Bottleneck for Competitive Generative
Classification", NeurIPS 2020). The Gaussians': likelihood and separation (Enescu & Sahbi,
"Learning Classwise Untangled Continuums for Conditional Normalizing Flows", ACCV 2024).
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from timm_nfaug import pixels
from timm_nfaug.config import FlowConfig
from timm_nfaug.flows.model import ConditionalFlow
from timm_nfaug.flows.prior import ClassGaussians

from .config import TrainConfig


def unit_of(config: FlowConfig) -> str:
    """What the likelihood is called and counted in: bits a dimension of images, nats of latents.

    >>> unit_of(FlowConfig("linear", (3, 8, 8), num_classes=2))
    'bits_per_dim'
    """
    return "nats_per_dim" if config.latent else "bits_per_dim"


def nats_of_unit(config: FlowConfig) -> float:
    """How many nats a unit of the likelihood is.

    >>> nats_of_unit(FlowConfig("linear", (4, 8, 8), num_classes=2, latent={"size": 64}))
    1.0
    """
    return 1.0 if config.latent else math.log(2)


def per_dim(log_prob: Tensor, flow: ConditionalFlow) -> Tensor:
    """Minus the log densities (B,) of what the flow takes, a dimension, in the unit of `unit_of`.

    Of latents it is that of the raw ones: they are `std` times as wide as what the flow takes.

    >>> import timm_nfaug, torch
    >>> latent = {"size": 16, "mean": [0.0], "std": [math.e]}
    >>> flow = timm_nfaug.create_flow("linear", input_size=(1, 8, 8), latent=latent)
    >>> per_dim(torch.zeros(1), flow)
    tensor([1.])
    """
    config = flow.config
    if not config.latent:
        return pixels.bits_per_dim(log_prob, flow.dim, config.bits)
    _, height, width = config.input_size
    widened = height * width * sum(map(math.log, config.latent.get("std", [1.0])))  # log-det
    return (widened - log_prob) / flow.dim


def make_loss(flow: ConditionalFlow, config: TrainConfig) -> nn.Module:
    """The flow's loss: of class Gaussians or, with objective ce, of a label band."""
    if config.objective == "ce":
        return BandLoss(flow)
    return FlowLoss(flow, config.discriminative, config.temperature)


class FlowLoss(nn.Module):
    """Bits/dim of images or nats/dim of latents, plus a weighted cross-entropy of the class logits.

    One forward pass, so that DistributedDataParallel can wrap it.

    Args:
        discriminative: weight of the cross-entropy, which is in nats.
        temperature: divides the logits in it. Log densities of thousands of dimensions differ by
            tens of nats; undivided, only wrongly classified images would have a gradient.

    >>> import torch, timm_nfaug
    >>> flow = timm_nfaug.create_flow("linear", input_size=(1, 8, 8), num_classes=2)
    >>> x, y = torch.zeros(4, 1, 8, 8), torch.tensor([0, 1, 0, 1])
    >>> loss, bpd, accuracy = FlowLoss(flow, discriminative=0.5)(x, y)
    >>> bool(loss > bpd), float(accuracy)
    (True, 0.5)
    """

    def __init__(
        self, flow: ConditionalFlow, discriminative: float = 0.0, temperature: float = 1.0
    ):
        super().__init__()
        self.flow, self.discriminative, self.temperature = flow, discriminative, temperature

    def forward(
        self, x: Tensor, y: Tensor, whole: int | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Computes loss, likelihood and class accuracy of images (B, C, H, W) and labels (B,).

        Args:
            whole: number of images, from the first, that count in likelihood and accuracy; the
                others, which were shifted, count in the cross-entropy only. None: all.
        """
        flow = self.flow
        z, log_det = flow(x)  # (B, D), (B,)
        per_class = flow.prior.log_prob_all(z)  # (B, K)
        log_prob = flow.prior.log_prob(z[:whole], y[:whole]) + log_det[:whole]
        loss = found = per_dim(log_prob, flow).mean()
        if self.discriminative:
            loss = loss + self.discriminative * F.cross_entropy(per_class / self.temperature, y)
        accuracy = (per_class.detach()[:whole].argmax(1) == y[:whole]).float().mean()
        return loss, found.detach(), accuracy


class BandLoss(nn.Module):
    """Likelihood of images and their label bands under one shared Gaussian: the ce baseline."""

    def __init__(self, flow: ConditionalFlow):
        super().__init__()
        self.flow = flow

    def forward(self, x: Tensor, y: Tensor, whole: None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Computes the likelihood twice, as loss and to be shown, and NaN for the class accuracy."""
        found = per_dim(self.flow.log_prob(x, y), self.flow).mean()
        return found, found.detach(), found.new_full((), math.nan)


def gaussian_loss(
    prior: ClassGaussians,
    z: Tensor,
    y: Tensor,
    kld_weight: float,
    discriminative: float,
    flow_dim: int,
    temperature: float = 1.0,
    unit: float = math.log(2),
) -> Tensor:
    """Loss () of the class Gaussians for fixed codes: L_NF plus `kld_weight` times L_KLD.

    Each term is divided by its range: L_NF by that over the images, L_KLD by that over the classes
    of the mean KL to the others. A range is widened by 5% of its ends and has no gradient. At the
    start, where all Gaussians are equal, no direction separates them and the second term is zero.

    Args:
        z, y: codes (B, D) and labels (B,).
        discriminative, temperature: of a cross-entropy beside L_NF, as in `FlowLoss`.
        flow_dim: D.
        unit: `nats_of_unit`.

    >>> import torch
    >>> prior = ClassGaussians(num_classes=2, dim=3)
    >>> z, y = torch.ones(4, 3), torch.tensor([0, 1, 0, 1])
    >>> gaussian_loss(prior, z, y, 50.0, 0.0, 3).shape
    torch.Size([])
    """
    nll = -prior.log_prob(z, y)  # (B,)
    loss = nll.mean() / _range(nll)
    if discriminative:
        # the weight means the same as in FlowLoss, where the likelihood is divided by D units
        scale = discriminative * flow_dim * unit
        loss = loss + scale * F.cross_entropy(prior.log_prob_all(z) / temperature, y) / _range(nll)
    if kld_weight and prior.num_classes > 1:
        kl = prior.pairwise_kl()  # (K, K)
        k = prior.num_classes
        per_class = (kl + kl.T).sum(1) / (k - 1)  # (K,)
        if float(per_class.detach().max()) > 1e-6:  # float32 rounding of equal Gaussians is below
            loss = loss - kld_weight * kl.sum() / (k * (k - 1)) / _range(per_class)
    return loss


def _range(values: Tensor) -> Tensor:
    values = values.detach()
    low, high = values.min(), values.max()
    return (high - low) + 0.05 * (high.abs() + low.abs()) + 1e-12
