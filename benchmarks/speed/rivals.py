"""The Glows of normflows and FrEIA, as documented, as their users can tune them, and as wide as gives equal FLOPs.

normflows' is the class-conditional Glow of its examples. FrEIA's is of its AllInOneBlock, its
quickest, at the levels, steps and channels of normflows'. Tuned means what can be done from
outside: channels_last, and the coupling networks in bfloat16, as `set_net_dtype` does in ours.
"""

from __future__ import annotations

import functools

import torch
from numpy.polynomial import Polynomial
from torch import Tensor, nn

from benchmarks.speed.candidate import SHAPE, Candidate, randomize

BASELINE = "normflows Glow"
OPPONENTS = (BASELINE, "FrEIA Glow")
BUILDS = ("documented", "tuned", "equal")
TRIED_WIDTHS = (16, 32, 48)  # the FLOPs of which say how they grow with the width


def make_rivals(
    builds: tuple[str, ...], flops: dict[str, float], images: Tensor, seed: int, bf16: bool
) -> dict[str, Candidate]:
    """Builds the opponents.

    Args:
        builds: some of `BUILDS`.
        flops: of an image, for each of our flows that a rival of equal FLOPs is built for.
        bf16: tuned ones in bfloat16 too.
    """
    found = {}
    for opponent in OPPONENTS:
        if "documented" in builds:
            found[opponent] = rival(opponent, images, seed)
        if "tuned" in builds:
            name = f"{opponent}, channels_last"
            found[name] = rival(opponent, images, seed, tuned=True)
            if bf16:
                found[f"{name}, bf16 nets"] = rival(opponent, images, seed, tuned=True, lower=True)
        if "equal" in builds:
            widths = equal_widths(opponent, list(flops.values()), images, seed)
            for name, hidden in zip(flops, widths, strict=True):
                for tuned in (False, True)[: 1 + ("tuned" in builds)]:
                    built = rival(opponent, images, seed, hidden, tuned)
                    built.built = {"of": name, "hidden": hidden}
                    found[f"{opponent} of {name}{', channels_last' * tuned}"] = built
    return found


def rival(
    opponent: str,
    images: Tensor,
    seed: int,
    hidden: int = 128,
    tuned: bool = False,
    lower: bool = False,
) -> Candidate:
    """Builds a Glow of another library; `tuned` to channels_last, with `lower` its networks in bfloat16."""
    torch.manual_seed(seed)
    build = normflows_glow if opponent == BASELINE else freia_glow
    model = build(lower, hidden=hidden).to(images.device).eval()
    if tuned:
        model, images = (v.to(memory_format=torch.channels_last) for v in (model, images))
    kind = "bfloat16" if lower else "float32"
    if opponent == BASELINE:
        model.inverse_and_log_det(images)  # its ActNorm takes its values from the first batch
        decode = functools.partial(_normflows_decode, model)
        return Candidate(model.inverse_and_log_det, decode, images, model.flows, kind)
    return Candidate(model, functools.partial(_freia_decode, model), images, model, kind)


def equal_widths(opponent: str, flops: list[float], images: Tensor, seed: int) -> list[int]:
    """Returns the hidden channels with which a rival's FLOPs an image come nearest to each of `flops`.

    The FLOPs are a polynomial of second degree in the channels.
    """
    tried = [rival(opponent, images, seed, width).flops_per_image() for width in TRIED_WIDTHS]
    found = Polynomial.fit(TRIED_WIDTHS, tried, 2)
    return [round(max((found - wanted).roots().real)) for wanted in flops]


def normflows_glow(lower: bool, levels: int = 3, steps: int = 8, hidden: int = 128) -> nn.Module:
    import normflows as nf

    c, h, w = SHAPE
    bases, flows, merges = [], [], []
    for i in range(levels):
        width = c * 2 ** (levels + 1 - i)
        block = functools.partial(nf.flows.GlowBlock, split_mode="channel", scale=True)
        flows.append([*(block(width, hidden) for _ in range(steps)), nf.flows.Squeeze()])
        if i:
            merges.append(nf.flows.Merge())
        channels = c * 2 ** (levels - i if i else levels + 1)
        shape = (channels, h // 2 ** (levels - i), w // 2 ** (levels - i))
        bases.append(nf.distributions.GlowBase(shape, num_classes=10))
    model = nf.MultiscaleFlow(bases, flows, merges, class_cond=True)
    for module in model.modules():
        if isinstance(module, nf.flows.AffineCoupling):
            randomize(module.param_map.net[-1])
            if lower:
                module.param_map = LowPrecision(module.param_map)
    return model


def _normflows_decode(model: nn.Module, codes: list[Tensor]) -> Tensor:
    return model.forward_and_log_det(codes)[0]  # it has no form without the log-det


def freia_glow(lower: bool, levels: int = 3, steps: int = 8, hidden: int = 128) -> nn.Module:
    import FrEIA.framework as Ff
    import FrEIA.modules as Fm

    def network(channels_in: int, channels_out: int) -> nn.Module:
        last = nn.Conv2d(hidden, channels_out, 3, padding=1)
        randomize(last)
        first, second = nn.Conv2d(channels_in, hidden, 3, padding=1), nn.Conv2d(hidden, hidden, 1)
        net = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), last)
        return LowPrecision(net) if lower else net

    model = Ff.SequenceINN(*SHAPE)
    for _ in range(levels):
        model.append(Fm.IRevNetDownsampling)
        for _ in range(steps):
            model.append(Fm.AllInOneBlock, subnet_constructor=network, permute_soft=True)
    return model


def _freia_decode(model: nn.Module, codes: Tensor) -> Tensor:
    return model(codes, rev=True, jac=False)[0]


class LowPrecision(nn.Module):
    """Runs a network in bfloat16 and returns float32."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, dtype=torch.bfloat16):
            return self.net(x).to(x.dtype)
