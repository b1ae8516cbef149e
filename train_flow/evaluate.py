"""What a flow is worth on held-out images: bits/dim, class accuracy, exactness of the inverse, separation."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from timm_nfaug import pixels
from timm_nfaug.flows.model import ConditionalFlow

from .data import Images


def batches(data: Images, size: int, limit: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    n = min(limit, len(data)) if limit else len(data)
    for i in range(0, n, size):
        yield data.levels[i : min(i + size, n)], data.labels[i : min(i + size, n)]


@torch.no_grad()
def evaluate(flow: ConditionalFlow, data: Images, seed: int = 0, batch_size: int = 256, limit: int = 0) -> dict:
    """Means over `data` (its first `limit` images, if given).

    bits_per_dim: one draw of dequantisation noise, seeded. class_accuracy: of `class_logits` at the level centres.
    round_trip_max: largest pixel error of inverse(forward(x)) in [-1, 1] units. mean_pairwise_kl: of the Gaussians'
    diagonal parts, in nats.
    """
    training = flow.training
    flow.eval()
    g = torch.Generator().manual_seed(seed)
    nll, correct, worst, count = 0.0, 0, 0.0, 0
    for levels, y in batches(data, batch_size, limit):
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
