"""What a flow is worth on held-out images: bits/dim, class accuracy, exactness of the inverse, separation."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from timm_nfaug import pixels
from timm_nfaug.flows.model import ConditionalFlow

from .data import Images


def batches(data: Images, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    for i in range(0, len(data), size):
        yield data.levels[i : i + size], data.labels[i : i + size]


def evenly(data: Images, limit: int) -> Images:
    """`limit` images evenly spaced over `data`, which may be sorted by class; all of them for 0."""
    if not limit or limit >= len(data):
        return data
    return data.subset(torch.arange(limit) * len(data) // limit)


@torch.no_grad()
def evaluate(
    flow: ConditionalFlow, data: Images, seed: int = 0, batch_size: int = 256, limit: int = 0
) -> dict:
    """Means over `data`, or over `limit` images evenly spaced in it.

    bits_per_dim: one draw of dequantisation noise, seeded. class_accuracy: of `class_logits` at the level centres.
    round_trip_max: largest pixel error of inverse(forward(x)) in [-1, 1] units. mean_pairwise_kl: of the Gaussians'
    diagonal parts, in nats.
    """
    training = flow.training
    flow.eval()
    g = torch.Generator().manual_seed(seed)
    nll, correct, worst, count = 0.0, 0, 0.0, 0
    for levels, y in batches(evenly(data, limit), batch_size):
        x = pixels.dequantize(levels, flow.config.bits, g).to(flow.device)
        y = y.to(flow.device)
        nll += flow.bits_per_dim(x, y).double().sum().item()
        centre = pixels.levels_to_model(levels).to(flow.device)
        correct += (flow.class_logits(centre).argmax(1) == y).sum().item()
        worst = max(worst, (flow.inverse(flow(centre, y)[0]) - centre).abs().max().item())
        count += len(y)
    flow.train(training)
    k = flow.prior.num_classes
    kl = flow.prior.pairwise_kl().double().sum().item() / (k * (k - 1)) if k > 1 else 0.0
    return {
        "images": count,
        "bits_per_dim": nll / count,
        "class_accuracy": correct / count,
        "round_trip_max": worst,
        "mean_pairwise_kl": kl,
    }
