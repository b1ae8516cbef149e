"""The architectures by name: what a network of each is made of and its default arguments."""

import inspect
from collections.abc import Callable
from typing import Any

from .._utils.checks import check_keys, closest
from .basis import Projection
from .bijections import ActNorm, Bijection, Chain, Conv1x1, Flatten, Multiscale, Squeeze, Whiten
from .bijections.coupling import AffineCoupling
from .networks import ConvNet, ResNet, ViT

# builder, its default arguments, default arguments of the prior
Architecture = tuple[Callable[..., Bijection | Projection], dict[str, Any], dict[str, Any]]


def _linear(shape, basis=0) -> Bijection | Projection:
    """The pixels themselves, or with `basis` their coordinates in so many directions."""
    return Projection(shape, basis) if basis else Flatten(shape)


def _conv_p4(shape, depth=12, hidden=128, patch=4, clamp=0.6, whiten=True) -> Bijection:
    """Squeeze by `patch`, whitening, then `depth` steps with convolutional couplings."""
    make_net = lambda i, o, h, w: ConvNet(i, hidden, o)
    layers = _level(shape, patch, depth, clamp, make_net, whiten)
    return Chain([*layers, Flatten(layers[0].output_shape(shape))])


def _jet_p4(shape, depth=32, hidden=128, blocks=1, heads=4, patch=4, clamp=0.6, whiten=True):
    """`_conv_p4` with vision transformers of `blocks` blocks: a coupling sees the whole image."""
    make_net = lambda i, o, h, w: ViT(i, hidden, o, (h, w), blocks, heads)
    layers = _level(shape, patch, depth, clamp, make_net, whiten)
    return Chain([*layers, Flatten(layers[0].output_shape(shape))])


def _resnet_ms(shape, levels=3, steps=8, blocks=(8, 4, 2), hidden=128, clamp=0.6) -> Bijection:
    """The paper's network: level i has `steps` couplings, each of blocks[i] residual blocks."""
    blocks = [blocks] * levels if isinstance(blocks, int) else list(blocks)
    if len(blocks) != levels:
        raise ValueError(f"blocks must be one number for each of the {levels} levels, got {blocks}")
    inner, parts = shape, []
    for count in blocks:
        make_net = lambda i, o, h, w, count=count: ResNet(i, hidden, o, count)
        parts.append(Chain(_level(inner, 2, steps, clamp, make_net)))
        c, h, w = parts[-1].output_shape(inner)
        inner = (c - c // 2, h, w)
    return Multiscale(parts, shape)


def _level(shape, factor, steps, clamp, make_net, whiten=False) -> list[Bijection]:
    if shape[1] % factor or shape[2] % factor:
        what = f"patch {factor}: height and width must be multiples of {factor}"
        got = f"{shape[1]} x {shape[2]}: resize"
        raise ValueError(f"{what}, got {got}, or set patch=1 (network.patch=1 in a config)")
    squeeze = Squeeze(factor)
    c, h, w = squeeze.output_shape(shape)
    layers: list[Bijection] = [squeeze, Whiten(c)] if whiten else [squeeze]
    for _ in range(steps):
        net = make_net(c - c // 2, 2 * (c // 2), h, w)
        layers += [ActNorm(c), Conv1x1(c), AffineCoupling(net, c, clamp)]
    return layers


ARCHITECTURES: dict[str, Architecture] = {
    "linear": (_linear, {}, {"a": None, "num_modes": 32, "low_rank": True}),
    "conv_p4_tiny": (_conv_p4, {"depth": 6, "hidden": 64}, {"num_modes": 32}),
    "conv_p4_small": (_conv_p4, {"depth": 12, "hidden": 128}, {"num_modes": 32}),
    "conv_p4_base": (_conv_p4, {"depth": 24, "hidden": 256}, {"num_modes": 32}),
    "conv_latent": (_conv_p4, {"depth": 12, "hidden": 128, "patch": 2}, {"num_modes": 32}),
    "jet_latent": (_jet_p4, {"depth": 16, "hidden": 128, "patch": 2}, {"num_modes": 32}),
    "jet_p4": (_jet_p4, {"depth": 32, "hidden": 128}, {"num_modes": 32}),
    "resnet_ms3": (_resnet_ms, {"levels": 3, "steps": 8, "blocks": [8, 4, 2]}, {"num_modes": 32}),
}


def find_architecture(name: str) -> Architecture:
    """Finds an architecture by name.

    >>> find_architecture("conv_p4_tiny")[1:]
    ({'depth': 6, 'hidden': 64}, {'num_modes': 32})
    """
    if name not in ARCHITECTURES:
        similar = closest(name, ARCHITECTURES)
        raise ValueError(f"unknown flow {name!r}{similar}; known: {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name]


def build_network(
    architecture: str, shape: tuple[int, ...], arguments: dict[str, Any]
) -> Bijection | Projection:
    """Builds the bijection from images of `shape` (C, H, W) to codes (D,).

    >>> build_network("conv_p4_tiny", (3, 8, 8), {"depth": 1}).output_shape((3, 8, 8))
    (192,)
    """
    builder = find_architecture(architecture)[0]
    known = inspect.signature(builder).parameters.keys() - {"shape"}
    check_keys(arguments, known, f"network of {architecture}")
    return builder(shape, **arguments)
