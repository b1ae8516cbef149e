"""The losses: likelihood of the flow, separation of the class Gaussians, and their alternation (GLEM).

The cross-entropy beside the likelihood, and its temperature, follow Ardizzone et al., "Training Normalizing Flows with
the Information Bottleneck for Competitive Generative Classification", NeurIPS 2020.
"""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from timm_nfaug import pixels
from timm_nfaug.flows.model import ConditionalFlow


class FlowLoss(nn.Module):
    """Bits/dim of dequantised images, plus `discriminative` times the cross-entropy of the class logits in nats.

    The logits are divided by `temperature` first: log densities of thousands of dimensions differ by tens of nats, and
    undivided they leave a gradient only to the images that are classified wrongly.

    One forward pass, so that it can be wrapped in DistributedDataParallel.
    """

    def __init__(
        self, flow: ConditionalFlow, discriminative: float = 0.0, temperature: float = 1.0
    ):
        super().__init__()
        self.flow = flow
        self.discriminative = discriminative
        self.temperature = temperature

    def forward(
        self, x: Tensor, y: Tensor, whole: int | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Images x (B, C, H, W), labels y (B,) to loss (), bits/dim () and class accuracy ().

        Args:
            whole: the first so many images count in bits/dim and accuracy; the others, which were shifted, only in the
                cross-entropy. None: all.
        """
        flow = self.flow
        z, log_det = flow(x, y)
        if flow.config.code_rows:
            log_prob = flow.prior.log_prob(z, torch.zeros_like(y)) + log_det
            bpd = pixels.bits_per_dim(log_prob, flow.dim, flow.config.bits).mean()
            return bpd, bpd.detach(), bpd.new_full((), math.nan)
        per_class = flow.prior.log_prob_all(z)
        log_prob = flow.prior.log_prob(z[:whole], y[:whole]) + log_det[:whole]
        bpd = pixels.bits_per_dim(log_prob, flow.dim, flow.config.bits).mean()
        loss = bpd
        if self.discriminative:
            loss = loss + self.discriminative * F.cross_entropy(per_class / self.temperature, y)
        accuracy = (per_class.detach()[:whole].argmax(1) == y[:whole]).float().mean()
        return loss, bpd.detach(), accuracy


def gaussian_loss(
    prior,
    z: Tensor,
    y: Tensor,
    kld_weight: float,
    discriminative: float,
    flow_dim: int,
    temperature: float = 1.0,
) -> Tensor:
    """Loss of the class Gaussians for given codes: L_NF plus `kld_weight` times L_KLD, each divided by its range.

    The range is that of L_NF over the images and that of the mean KL of a class to the others over the classes,
    widened by 5% of its ends; both without gradient. At the start, where all Gaussians are equal, there is no
    direction to separate them in and the second term is zero.
    """
    nll = -prior.log_prob(z, y)  # (B,)
    loss = nll.mean() / _range(nll)
    if discriminative:
        # the weight means the same as in FlowLoss, where the likelihood is divided by D log 2
        scale = discriminative * flow_dim * math.log(2)
        loss = loss + scale * F.cross_entropy(prior.log_prob_all(z) / temperature, y) / _range(nll)
    if kld_weight and prior.num_classes > 1:
        kl = prior.pairwise_kl()
        k = prior.num_classes
        per_class = (kl + kl.T).sum(1) / (k - 1)  # (K,)
        if float(per_class.detach().max()) > 1e-6:
            loss = loss - kld_weight * kl.sum() / (k * (k - 1)) / _range(per_class)
    return loss


def _range(values: Tensor) -> Tensor:
    values = values.detach()
    low, high = values.min(), values.max()
    return (high - low) + 0.05 * (high.abs() + low.abs()) + 1e-12


def piecewise(points: list, t: float, geometric: bool) -> float:
    """Value at `t` of a schedule through [position, value] points, linear or geometric between them."""
    if t <= points[0][0]:
        return float(points[0][1])
    for (t0, v0), (t1, v1) in itertools.pairwise(points):
        if t <= t1:
            w = (t - t0) / (t1 - t0)
            return float(v0 ** (1 - w) * v1**w if geometric else (1 - w) * v0 + w * v1)
    return float(points[-1][1])
