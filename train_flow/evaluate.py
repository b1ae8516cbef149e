"""What a flow is worth on held-out images: likelihood, accuracy, exact inverse, separation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import torch
from torch import Tensor

from timm_nfaug._utils.progress import progress
from timm_nfaug.flows.model import ConditionalFlow
from timm_nfaug.flows.moments import ClassMoments

from .images import Examples, Images
from .objective import per_dim, unit_of

E = TypeVar("E", bound=Examples)


def batches(data: Images, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields levels (B, C, H, W) and labels (B,) in order, `size` at a time; the last may be fewer.

    >>> data = Images(torch.zeros(5, 1, 2, 2, dtype=torch.uint8), torch.arange(5), list("abcde"))
    >>> [y.tolist() for _, y in batches(data, 2)]
    [[0, 1], [2, 3], [4]]
    """
    for i in range(0, len(data), size):
        yield data.levels[i : i + size], data.labels[i : i + size]


def _shown(data: Examples, size: int, purpose: str) -> Iterator[Examples]:
    """The images, `size` at a time, with a bar that says what they are for."""
    with progress(len(data), f"train_flow, {purpose}", "images") as bar:
        for part in torch.arange(len(data)).split(size):
            yield data.subset(part)
            bar.update(len(part))


def evenly(data: E, limit: int) -> E:
    """`limit` images evenly spaced over `data`, which may be sorted by class; 0: all.

    >>> data = Images(torch.zeros(6, 1, 2, 2, dtype=torch.uint8), torch.arange(6), list("abcdef"))
    >>> evenly(data, 3).labels.tolist()
    [0, 2, 4]
    """
    if not limit or limit >= len(data):
        return data
    return data.subset(torch.arange(limit) * len(data) // limit)


def code_moments(flow: ConditionalFlow, data: Examples) -> ClassMoments:
    """Moments of the codes of `data`, with as many modes as the flow stores."""
    pairs = ((part.centres(), part.labels) for part in _shown(data, 512, "modes"))
    return flow.moments(pairs, num_modes=flow.prior.num_modes)


@torch.no_grad()
def evaluate(
    flow: ConditionalFlow, data: Examples, seed: int = 0, batch_size: int = 256, limit: int = 0
) -> dict[str, float]:
    """Measures a flow on `data`, or on `limit` images evenly spaced in it.

    Returns:
        images: how many. bits_per_dim: mean, with one draw of dequantisation noise from `seed`; of
        latents nats_per_dim, of the raw ones. class_accuracy: of `class_logits` at the centres of
        the levels. round_trip_max: largest error of a number of inverse(forward(x)), in [-1, 1]
        units; of latents in standard deviations. mean_pairwise_kl: between the diagonal parts of the
        class Gaussians, in nats.

    >>> from timm_nfaug import create_flow
    >>> data = Images(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.arange(4) % 2, ["a", "b"])
    >>> report = evaluate(create_flow("linear", input_size=(1, 8, 8), num_classes=2), data)
    >>> report["images"], report["round_trip_max"], report["mean_pairwise_kl"]
    (4, 0.0, 0.0)
    """
    training = flow.training
    flow.eval()
    g = torch.Generator().manual_seed(seed)
    nll, correct, worst, count = 0.0, 0.0, 0.0, 0
    for part in _shown(evenly(data, limit), batch_size, "evaluation"):
        x, y = part.drawn(flow.config.bits, g).to(flow.device), part.labels.to(flow.device)
        nll += per_dim(flow.log_prob(x, y), flow).double().sum().item()
        centre = part.centres().to(flow.device)
        correct += (flow.class_logits(centre).argmax(1) == y).sum().item()
        worst = max(worst, (flow.inverse(flow(centre, y)[0]) - centre).abs().max().item())
        count += len(y)
    flow.train(training)
    k = flow.prior.num_classes
    kl = flow.prior.pairwise_kl().double().sum().item() / (k * (k - 1)) if k > 1 else 0.0
    return {
        "images": count,
        unit_of(flow.config): nll / count,
        "class_accuracy": correct / count,
        "round_trip_max": worst,
        "mean_pairwise_kl": kl,
    }
