"""The architectures by name: what a network of each is made of and its default arguments."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from .._utils.checks import check_keys, closest
from .bijections.actnorm import ActNorm
from .bijections.base import Bijection
from .bijections.chain import Chain
from .bijections.conv1x1 import Conv1x1
from .bijections.coupling import AffineCoupling
from .bijections.flatten import Flatten
from .bijections.multiscale import Multiscale
from .bijections.squeeze import Squeeze
from .bijections.whiten import Whiten
from .networks import ConvNet, ResNet, ViT

Shape = tuple[int, int, int]


def linear(shape: Shape) -> Bijection:
    """Depth 0: the identity; all of the model is in its class Gaussians with a low-rank term."""
    return Flatten(shape)


def conv_p4(
    shape: Shape,
    depth: int = 12,
    hidden: int = 128,
    patch: int = 4,
    clamp: float = 0.6,
    whiten: bool = True,
) -> Bijection:
    """Squeeze by `patch`, patch-PCA whitening, then `depth` steps of [affine, 1x1, convolutional coupling]."""
    return _on_patches(shape, patch, whiten, depth, lambda i, o, size: ConvNet(i, hidden, o), clamp)


def jet_p4(
    shape: Shape,
    depth: int = 32,
    hidden: int = 128,
    blocks: int = 1,
    heads: int = 4,
    patch: int = 4,
    clamp: float = 0.6,
    whiten: bool = True,
) -> Bijection:
    """As `conv_p4`, with a vision transformer of `blocks` blocks in each coupling: every coupling sees the whole image."""
    return _on_patches(
        shape,
        patch,
        whiten,
        depth,
        lambda i, o, size: ViT(i, hidden, o, size, blocks, heads),
        clamp,
    )


def _on_patches(
    shape: Shape,
    patch: int,
    whiten: bool,
    depth: int,
    make_net: Callable[[int, int, tuple[int, int]], nn.Module],
    clamp: float,
) -> Bijection:
    """`make_net` gets the channels that go in, those that come out, and (H, W) after the squeeze."""
    squeeze = Squeeze(patch)
    inner = squeeze.output_shape(shape)
    channels, half = inner[0], inner[0] // 2
    steps: list[Bijection] = [Whiten(channels)] if whiten else []
    for _ in range(depth):
        net = make_net(channels - half, 2 * half, inner[1:])
        steps += [ActNorm(channels), Conv1x1(channels), AffineCoupling(net, channels, clamp)]
    return Chain([squeeze, *steps, Flatten(inner)])


def resnet_ms(
    shape: Shape,
    levels: int = 3,
    steps: int = 8,
    blocks: list[int] | int = (8, 4, 2),
    hidden: int = 128,
    clamp: float = 0.6,
) -> Bijection:
    """The paper's reference network: `levels` x `steps`, level i with blocks[i] residual blocks in each coupling."""
    blocks = [blocks] * levels if isinstance(blocks, int) else list(blocks)
    if len(blocks) != levels:
        raise ValueError(
            f"blocks must give one number for each of the {levels} levels, got {blocks}"
        )
    parts: list[Bijection] = []
    current: tuple[int, ...] = shape
    for i in range(levels):
        squeeze = Squeeze(2)
        channels = squeeze.output_shape(current)[0]
        half = channels // 2
        layers: list[Bijection] = [squeeze]
        for _ in range(steps):
            net = ResNet(channels - half, hidden, 2 * half, blocks[i])
            layers += [ActNorm(channels), Conv1x1(channels), AffineCoupling(net, channels, clamp)]
        parts.append(Chain(layers))
        c, h, w = parts[-1].output_shape(current)
        current = (c - c // 2, h, w)
    return Multiscale(parts, shape)


# name: (builder, its arguments, default arguments of the prior)
ARCHITECTURES: dict[str, tuple[Callable[..., Bijection], dict[str, Any], dict[str, Any]]] = {
    "linear": (linear, {}, {"a": None, "num_modes": 32, "low_rank": True}),
    "conv_p4_tiny": (conv_p4, {"depth": 6, "hidden": 64}, {"num_modes": 32}),
    "conv_p4_small": (conv_p4, {"depth": 12, "hidden": 128}, {"num_modes": 32}),
    "conv_p4_base": (conv_p4, {"depth": 24, "hidden": 256}, {"num_modes": 32}),
    "jet_p4": (jet_p4, {"depth": 32, "hidden": 128}, {"num_modes": 32}),
    "resnet_ms3": (resnet_ms, {"levels": 3, "steps": 8, "blocks": [8, 4, 2]}, {"num_modes": 32}),
}


def default_arguments(architecture: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Default (network, prior) arguments of an architecture."""
    _, network, prior = _entry(architecture)
    return dict(network), dict(prior)


def build_network(architecture: str, shape: Shape, arguments: dict[str, Any]) -> Bijection:
    """The bijection from images of `shape` (C, H, W) to codes (D,)."""
    builder, _, _ = _entry(architecture)
    check_keys(
        arguments,
        set(inspect.signature(builder).parameters) - {"shape"},
        f"network of {architecture}",
    )
    return builder(shape, **arguments)


def _entry(architecture: str):
    if architecture not in ARCHITECTURES:
        raise ValueError(
            f"unknown flow architecture {architecture!r}{closest(architecture, ARCHITECTURES)}; "
            f"known: {', '.join(ARCHITECTURES)}"
        )
    return ARCHITECTURES[architecture]
