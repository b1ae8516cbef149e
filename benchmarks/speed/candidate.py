"""A flow that is timed: its two directions, the images, and what must hold before a timing means anything.

FLOPs are those of convolutions and matrix products in encoding, 2 a multiply-add, padding included.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from timm_nfaug import ConditionalFlow, create_flow, pixels
from timm_nfaug.flows.bijections.coupling import AffineCoupling
from timm_nfaug.flows.networks import ViT

SHAPE = (3, 32, 32)
DIRECTIONS = ("forward", "inverse")
PARTS = ("convolutions", "1x1 and affine layers, folded", "the rest: element by element, copies")
# Largest difference of an image and its decoded code. float32 gives 1e-6 to 1e-5. With networks in
# bfloat16 an input recovered to 1e-6 can round the other way and shift the output by 2^-9 of itself,
# which is up to one level of 256.
ROUND_TRIP = {"float32": 1e-4, "bfloat16": 2 / 256}
LAST_LAYER_STD = (
    0.01  # of the weights of a coupling network's last layer in a trained conv_p4_small
)


@dataclass
class Candidate:
    """A flow, ours or another library's, with the images it encodes."""

    encode: Callable[[Tensor], tuple[Any, Tensor]]  # images to (codes, log_det)
    decode: Callable[[Any], Tensor]  # codes to images
    images: Tensor
    network: nn.Module
    dtype: str  # of the coupling networks
    built: dict[str, Any] = field(default_factory=dict)  # a rival of equal FLOPs: "of", "hidden"

    def flops_per_image(self) -> float:
        return counted(lambda: self.encode(self.images)).get_total_flops() / len(self.images)


def synthetic_images(count: int, seed: int) -> Tensor:
    """Returns (count, 3, 32, 32) in [-1, 1]: noise at four scales, so that neighbours correlate."""
    g = torch.Generator().manual_seed(seed)
    x = torch.zeros(count, *SHAPE)
    for size, weight in ((4, 0.35), (8, 0.2), (16, 0.1), (32, 0.05)):
        noise = torch.randn(count, 3, size, size, generator=g)
        x += weight * F.interpolate(noise, size=SHAPE[1:], mode="bilinear", align_corners=False)
    return pixels.dequantize(pixels.model_to_levels(x), generator=g)


def random_flow(name: str, images: Tensor, seed: int) -> ConditionalFlow:
    """Creates a flow none of whose layers is an identity."""
    torch.manual_seed(seed)
    flow = create_flow(name, input_size=SHAPE).to(images.device).eval()
    for module in flow.modules():
        if isinstance(module, AffineCoupling):
            randomize(module.net.head if isinstance(module.net, ViT) else module.net[-1])
    flow.initialize(images)
    return flow


def randomize(conv: nn.Conv2d) -> None:
    """Gives a last layer, which starts at zero, the weights of a trained one's size."""
    nn.init.normal_(conv.weight, std=LAST_LAYER_STD)


def check(name: str, candidate: Candidate) -> tuple[Any, dict[str, Any]]:
    """Returns the codes and what is on record beside the timing.

    Raises:
        SystemExit: the inverse is not exact, or the log-det does not depend on the image.
    """
    codes, log_det = candidate.encode(candidate.images)
    error = (candidate.decode(codes) - candidate.images).abs().max().item()
    spread = log_det.std(correction=0).item()
    alike = len(log_det) > 1 and not spread > 0
    if not error <= ROUND_TRIP[candidate.dtype] or alike:
        raise SystemExit(
            f"{name}: round-trip error {error:.2e}, log-det spread {spread:.2e}: not timed"
        )
    return codes, {
        **candidate.built,
        "round_trip_max": error,
        "log_det_std": spread,
        "flops_per_image": candidate.flops_per_image(),
        "parameters": sum(p.numel() for p in candidate.network.parameters()),
    }


def counted(function: Callable[[], Any]) -> FlopCounterMode:
    """Calls a function and returns the counter of its FLOPs."""
    # torch counts addmm, but not in place; the arguments are shapes
    in_place = {torch.ops.aten.addmm_: lambda y, a, b, **_: 2 * a[0] * a[1] * b[1]}
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        function()
    return counter


def profile(candidate: Candidate, codes: Tensor, calls: int = 10) -> dict[str, float]:
    """Returns the shares of `PARTS` in the CPU time of decoding, and the convolutions' share of its FLOPs."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
        for _ in range(calls):
            candidate.decode(codes)
    events = found.key_averages()
    whole = sum(e.self_cpu_time_total for e in events)
    shares = [
        sum(e.cpu_time_total for e in events if e.key.startswith(op)) / whole
        for op in ("aten::conv2d", "aten::addmm")
    ]
    counter = counted(lambda: candidate.decode(codes))
    by_op = counter.get_flop_counts()["Global"].items()
    flops = sum(n for op, n in by_op if "convolution" in str(op))
    parts = dict(zip(PARTS, (*shares, 1 - sum(shares))))
    return parts | {"convolution_flops": flops / counter.get_total_flops()}
