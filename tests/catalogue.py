"""One catalogue of every bijection and network, small and with random parameters, for the generic tests."""

from collections.abc import Callable

import torch

from timm_nfaug.flows.architectures import ARCHITECTURES, build_network
from timm_nfaug.flows.bijections import (
    ActNorm,
    AffineCoupling,
    Bijection,
    Chain,
    Conv1x1,
    Flatten,
    Multiscale,
    Squeeze,
    Whiten,
)
from timm_nfaug.flows.networks import ConvNet, ResNet, ViT

CONV = {"depth": 2, "hidden": 8}
SMALL = {  # arguments that make each architecture small; a new architecture needs a line here
    "linear": {},
    "conv_p4_tiny": CONV,
    "conv_p4_small": CONV,
    "conv_p4_base": CONV,
    "conv_latent": CONV,
    "jet_latent": {**CONV, "heads": 2},
    "jet_p4": {**CONV, "heads": 2},
    "resnet_ms3": {"levels": 3, "steps": 2, "blocks": [2, 1, 1], "hidden": 8},
}


def coupling(channels: int, net=ConvNet, **kwargs) -> AffineCoupling:
    half = channels // 2
    return AffineCoupling(net(channels - half, 8, 2 * half, **kwargs), channels)


# name: (makes the bijection, shape of its input)
CATALOGUE: dict[str, tuple[Callable[[], Bijection], tuple[int, ...]]] = {
    "actnorm": (lambda: ActNorm(5), (5, 3, 2)),
    "conv1x1": (lambda: Conv1x1(5), (5, 3, 4)),
    "whiten": (lambda: Whiten(6), (6, 3, 4)),
    "whiten one channel": (lambda: Whiten(1), (1, 3, 4)),
    "squeeze": (lambda: Squeeze(2), (3, 4, 6)),
    "flatten": (lambda: Flatten((3, 4, 2)), (3, 4, 2)),
    "coupling, convolutions": (lambda: coupling(4), (4, 3, 4)),
    "coupling, convolutions, odd channels": (lambda: coupling(5), (5, 4, 3)),
    "coupling, residual, odd channels": (lambda: coupling(3, ResNet, blocks=2), (3, 4, 4)),
    "coupling, transformer, odd channels": (
        lambda: coupling(5, ViT, size=(3, 4), blocks=2, heads=2),
        (5, 3, 4),
    ),
    "chain": (lambda: Chain([ActNorm(4), Conv1x1(4), coupling(4), Flatten((4, 3, 3))]), (4, 3, 3)),
    "multiscale, odd channels": (
        lambda: Multiscale([Chain([Conv1x1(5), coupling(5)]), Squeeze(2), Conv1x1(6)], (5, 4, 4)),
        (5, 4, 4),
    ),
    "conv_p4, patch 2, no whitening": (
        lambda: build_network("conv_p4_tiny", (3, 4, 6), {**CONV, "patch": 2, "whiten": False}),
        (3, 4, 6),
    ),
    "conv_p4, image with a code band": (
        lambda: build_network("conv_p4_tiny", (1, 8 + 4, 4), CONV),
        (1, 12, 4),
    ),
    **{
        f"architecture {name}": (
            lambda name=name: build_network(name, (1, 8, 8), SMALL[name]),
            (1, 8, 8),
        )
        for name in ARCHITECTURES
        if name in SMALL
    },
}


def make(
    name: str, dtype: torch.dtype = torch.float64, batch: int = 3
) -> tuple[Bijection, torch.Tensor]:
    """The bijection, far from the identity and the same at every call, and an input (batch, *shape) for it."""
    build, shape = CATALOGUE[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        bijection = build().to(dtype)
        # whitening is set from channels that are correlated and of unequal size
        mixed = torch.randn(64, *shape, dtype=dtype).cumsum(1) * torch.rand(
            shape[0], 1, 1, dtype=dtype
        ).add(0.2)
        bijection.initialize(mixed)
        with torch.no_grad():
            for p in bijection.parameters():
                p.add_(0.4 * torch.randn_like(p) / max(1, p[0].numel()) ** 0.5)
        return bijection.requires_grad_(False), torch.randn(batch, *shape, dtype=dtype)
