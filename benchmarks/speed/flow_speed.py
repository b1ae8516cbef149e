"""How fast the flows are, beside the Glows of normflows and FrEIA.

Claim: on 2 CPU cores at 32x32x3, `conv_p4_small` encodes (image to code, with log-det) and decodes (code to
image) at least 4 times as many images a second as normflows' Glow of 3 levels x 8 steps with 128 hidden
channels, both in float32.

    python -m benchmarks.speed.flow_speed

All run side by side, in evaluation mode, without gradients, from the same images; no prior is evaluated.
normflows' decoding has no form without log-det, so its log-det is in its time. Both libraries run as their
documentation builds a network, which is what the claim is about, and also as their users could tune it from
outside: channels_last, and the coupling networks in bfloat16, as `set_net_dtype` does in ours. FrEIA's is of
its AllInOneBlock, its quickest, at the levels, steps and channels of normflows'. Networks differ in size:
"at equal FLOPs" multiplies a ratio of images a second by that of the FLOPs an image, which is the ratio of the
shares of the peak. With `--rivals equal` theirs are built as narrow as gives the FLOPs of ours, and timed. `compiled`
is `torch.compile` of encoding and of decoding (inductor, static shapes), its compilation not in the time.

The last layers of all coupling networks are random instead of zero and the data-dependent layers are set from a
batch, so that nothing measured is an identity. FLOPs are those of convolutions and matrix products in encoding, 2
a multiply-add, padding included, for the networks and the peak alike. On a GPU, TF32 is off. Nothing runs in
bfloat16 where the machine only emulates it.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from numpy.polynomial import Polynomial
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from timm_nfaug import ConditionalFlow, create_flow, pixels
from timm_nfaug.flows.bijections.coupling import AffineCoupling
from timm_nfaug.flows.networks import ViT
from train_flow.trainer import emulates_bfloat16

from ..core.common import (
    command_line,
    disturbed,
    environment,
    markdown_table,
    pin_threads,
    timed,
    write_result,
)

SHAPE = (3, 32, 32)
CLAIMED_FLOW, CLAIMED_SPEEDUP = "conv_p4_small", 4.0
BASELINE = "normflows Glow"
OPPONENTS = (BASELINE, "FrEIA Glow")
RIVALS = (
    "documented",
    "tuned",
    "equal",
)  # as their documentation has them, as users can tune them, of our FLOPs
# float32 gives 1e-6 to 1e-5. With bfloat16 nets an input recovered to 1e-6 can round the other way and shift
# the output by 2^-9 of itself: up to one level of 256.
ROUND_TRIP = {"float32": 1e-4, "bfloat16": 2 / 256}
LAST_LAYER_STD = 0.01  # as in a trained conv_p4_small
DIRECTIONS = ("forward", "inverse")
PARTS = ("convolutions", "1x1 and affine layers, folded", "the rest: element by element, copies")


@dataclass
class Candidate:
    encode: Callable[[Tensor], tuple[Any, Tensor]]  # images to (codes, log_det)
    decode: Callable[[Any], Tensor]  # codes to images
    images: Tensor
    network: nn.Module
    dtype: str  # of the coupling networks
    built: dict[str, Any] = field(
        default_factory=dict
    )  # of a rival of equal FLOPs: whose, hidden channels


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed.flow_speed", description="Times the flows."
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument(
        "--min-seconds", type=float, default=1.0, help="of one repeat of one candidate"
    )
    parser.add_argument("--flows", nargs="+", default=["conv_p4_small", "conv_p4_tiny"])
    parser.add_argument("--rivals", nargs="*", choices=RIVALS, default=["documented", "tuned"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true", help="our flows compiled, too")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", metavar="NAME")
    parser.add_argument(
        "--keep-disturbed", action="store_true", help="write a busy machine's result too"
    )
    args = parser.parse_args(argv)
    if args.device == "cpu" and argv is None:
        pin_threads(args.threads)
    torch.set_num_threads(args.threads)
    torch.backends.cudnn.allow_tf32 = False
    with torch.no_grad():
        results, busy = measure(args)
    report(results)
    if busy:
        print(
            f"\nDisturbed (less than 85% of {args.threads} cores; use an idle machine): {', '.join(busy)}"
        )
        if not args.keep_disturbed:
            return 1
    name = "flow_speed" if args.device == "cpu" else f"flow_speed_{torch.device(args.device).type}"
    path = write_result(
        args.record or name,
        {
            "benchmark": "flow_speed",
            "command": command_line("benchmarks.speed.flow_speed", argv),
            "data": f"{args.batch} synthetic images, {'x'.join(map(str, SHAPE))}",
            "seeds": [args.seed],
            "environment": environment(["normflows", "FrEIA"] if args.rivals else []),
            "claim": __doc__.split("\n\n")[1].replace("\n", " "),
            "settings": {k: v for k, v in vars(args).items() if k != "record"}
            | {"disturbed": busy},
            "results": results,
        },
    )
    print(f"\nwritten to benchmarks/results/{path.name}")
    return 0


def measure(args: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """The results, and the names of the timings that something else disturbed."""
    images = synthetic_images(args.batch, args.seed).to(args.device)
    candidates = make_candidates(args.flows, images, args.seed, args.compile, args.rivals)
    checks, functions, profiles = {}, {}, {}
    for name, candidate in candidates.items():
        codes, checks[name] = check(name, candidate)
        if name in args.flows and args.device == "cpu":
            profiles[name] = profile(candidate, codes)
        functions[f"{name} forward"] = _synchronised(
            lambda c=candidate: c.encode(c.images), args.device
        )
        functions[f"{name} inverse"] = _synchronised(
            lambda c=candidate, z=codes: c.decode(z), args.device
        )
    peaks = peak_functions(args.batch, args.device)
    functions.update({name: function for name, (function, _) in peaks.items()})

    timings = timed(functions, args.repeats, args.min_seconds)
    rates = {name: flops / timings[name]["median"] / 1e9 for name, (_, flops) in peaks.items()}
    peak = {d: max(v for k, v in rates.items() if f" {d} " in k) for d in dtypes(args.device)}
    opponents = [name for name in candidates if name.startswith(OPPONENTS)]
    rows = {}
    for name, candidate in candidates.items():
        row = rows[name] = {"dtype": candidate.dtype, **checks[name]}
        for direction in DIRECTIONS:
            timing = timings[f"{name} {direction}"]
            rate = args.batch / timing["median"]
            peers = [
                o for o in opponents if name.startswith(checks[o].get("of", name))
            ]  # not those built for another flow
            over = {o: speedup(timings[f"{o} {direction}"], timing) for o in peers}
            row[direction] = {
                "images_per_s": rate,
                "share_of_peak": rate * row["flops_per_image"] / 1e9 / peak[candidate.dtype],
                "speedup_over": over,
                "at_equal_flops": {
                    o: ratio["median"] * row["flops_per_image"] / checks[o]["flops_per_image"]
                    for o, ratio in over.items()
                },
                **timing,
            }
        if name in profiles:
            own, inverse = profiles[name], row["inverse"]
            done = inverse["share_of_peak"] * own.pop("convolution_flops") / own["convolutions"]
            inverse["profile"] = own | {"convolutions_share_of_peak": done}
    results = {"conv_peak_gflops": {**peak, "measured": rates}, "flows": rows}
    claimed = rows.get(CLAIMED_FLOW)
    if claimed and args.device == "cpu" and BASELINE in rows:
        results["claim_holds"] = {
            d: claimed[d]["speedup_over"][BASELINE]["median"] >= CLAIMED_SPEEDUP for d in DIRECTIONS
        }
    busy = [k for k, t in timings.items() if args.device == "cpu" and disturbed(t, args.threads)]
    return results, busy


def speedup(slow: dict[str, Any], fast: dict[str, Any]) -> dict[str, float]:
    """Of `fast` over `slow`, repeat by repeat, since those ran next to each other."""
    ratios = [a / b for a, b in zip(slow["seconds"], fast["seconds"])]
    return {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}


def report(results: dict[str, Any]) -> None:
    """Prints the table, the claim, and where normflows is faster."""
    losses = []
    for name, row in results["flows"].items():
        if not name.startswith(OPPONENTS):
            losses += [
                f"{name} {d} against {opponent}: {ratio['median']:.2f} times its speed"
                for d in DIRECTIONS
                for opponent, ratio in row[d]["speedup_over"].items()
                if ratio["median"] < 1
            ]
    for cells in (table(results), equal_table(results), profile_table(results)):
        if cells[1:]:
            print(markdown_table(cells) + "\n")
    peaks = ", ".join(
        f"{v:.0f} GFLOP/s {k}" for k, v in results["conv_peak_gflops"].items() if k != "measured"
    )
    print(f"conv peak (3x3, 128 channels): {peaks}")
    for direction, holds in results.get("claim_holds", {}).items():
        ratios = results["flows"][CLAIMED_FLOW][direction]["speedup_over"]
        print(
            f"claim, {direction} >= {CLAIMED_SPEEDUP:g}x over {BASELINE}: {'holds' if holds else 'FAILS'}"
        )
        for opponent, r in ratios.items():
            print(f"  {r['median']:.2f} ({r['min']:.2f} to {r['max']:.2f}) over {opponent}")
    print("slower than another library's: " + ("; ".join(losses) or "nowhere"))


def table(results: dict[str, Any]) -> list[list[str]]:
    """Cells, the header first; ratios and shares of encoding / decoding."""
    opponents = [o for o in OPPONENTS if o in results["flows"]]
    ratios = [f"times {o}{' at equal FLOPs' * equal}" for o in opponents for equal in (False, True)]
    rows = [
        [
            "flow",
            "MFLOP",
            "forward, images/s",
            "inverse, images/s",
            *ratios,
            "share of the conv peak",
            "round trip",
        ]
    ]
    for name, row in results["flows"].items():
        if "of" in row:  # see equal_table
            continue
        each = [row[d] for d in DIRECTIONS]
        cells = [
            name,
            f"{row['flops_per_image'] / 1e6:.0f}",
            *(f"{d['images_per_s']:.0f}" for d in each),
        ]
        for o in opponents:
            cells.append(" / ".join(f"{d['speedup_over'][o]['median']:.2f}" for d in each))
            cells.append(" / ".join(f"{d['at_equal_flops'][o]:.2f}" for d in each))
        cells.append(" / ".join(f"{d['share_of_peak']:.2f}" for d in each))
        rows.append([*cells, f"{row['round_trip_max']:.0e}"])
    return rows


def equal_table(results: dict[str, Any]) -> list[list[str]]:
    """Cells; times the speed of rivals that were built with the FLOPs of each flow, encoding / decoding."""
    rows = [["flow", "MFLOP", "rival of its FLOPs", "hidden channels", "MFLOP", "times its speed"]]
    for name, rival in results["flows"].items():
        if "of" in rival:
            own = results["flows"][rival["of"]]
            mflop = (f"{row['flops_per_image'] / 1e6:.1f}" for row in (own, rival))
            times = " / ".join(f"{own[d]['speedup_over'][name]['median']:.2f}" for d in DIRECTIONS)
            rows.append(
                [
                    rival["of"],
                    next(mflop),
                    name.replace(f" of {rival['of']}", ""),
                    str(rival["hidden"]),
                    next(mflop),
                    times,
                ]
            )
    return rows


def profile_table(results: dict[str, Any]) -> list[list[str]]:
    """Cells; where the time of decoding goes."""
    rows = [["decoding", *PARTS, "convolutions, share of the conv peak", "the whole"]]
    for name, row in results["flows"].items():
        if own := row["inverse"].get("profile"):
            shares = (
                f"{v:.2f}"
                for v in (own["convolutions_share_of_peak"], row["inverse"]["share_of_peak"])
            )
            rows.append([name, *(f"{own[part]:.0%}" for part in PARTS), *shares])
    return rows


def synthetic_images(count: int, seed: int) -> Tensor:
    """(count, 3, 32, 32) in [-1, 1]: noise at four scales, so that neighbours correlate as in photographs."""
    g = torch.Generator().manual_seed(seed)
    x = torch.zeros(count, *SHAPE)
    for size, weight in ((4, 0.35), (8, 0.2), (16, 0.1), (32, 0.05)):
        noise = torch.randn(count, 3, size, size, generator=g)
        x += weight * F.interpolate(noise, size=SHAPE[1:], mode="bilinear", align_corners=False)
    return pixels.dequantize(pixels.model_to_levels(x), generator=g)


def dtypes(device: str) -> list[str]:
    """Those of the coupling networks."""
    return ["float32"] if emulates_bfloat16(device) else ["float32", "bfloat16"]


def make_candidates(
    flows: list[str],
    images: Tensor,
    seed: int,
    compiled: bool = False,
    rivals: Sequence[str] = RIVALS[:2],
) -> dict[str, Candidate]:
    found = {}
    kinds = dtypes(images.device.type)
    for name in flows:
        for kind in kinds:
            flow = random_flow(name, images, seed)
            flow.set_net_dtype(torch.bfloat16 if kind == "bfloat16" else None)
            label = f"{name}, bf16 nets" if kind == "bfloat16" else name
            found[label] = Candidate(flow, flow.inverse, images, flow.network, kind)
            if compiled:
                encode, decode = (torch.compile(f, dynamic=False) for f in (flow, flow.inverse))
                found[f"{label}, compiled"] = Candidate(encode, decode, images, flow.network, kind)
    for opponent in OPPONENTS:
        if "documented" in rivals:
            found[opponent] = rival(opponent, images, seed)
        if "tuned" in rivals:
            found[f"{opponent}, channels_last"] = rival(opponent, images, seed, tuned=True)
            if "bfloat16" in kinds:
                found[f"{opponent}, channels_last, bf16 nets"] = rival(
                    opponent, images, seed, tuned=True, lower=True
                )
        if "equal" in rivals:
            widths = equal_widths(
                opponent, [flops_per_image(found[name]) for name in flows], images, seed
            )
            for name, hidden in zip(flows, widths, strict=True):
                for suffix, tuned in (("", False), (", channels_last", True))[
                    : 1 + ("tuned" in rivals)
                ]:
                    built = rival(opponent, images, seed, hidden, tuned)
                    built.built = {"of": name, "hidden": hidden}
                    found[f"{opponent} of {name}{suffix}"] = built
    return found


def rival(
    opponent: str,
    images: Tensor,
    seed: int,
    hidden: int = 128,
    tuned: bool = False,
    lower: bool = False,
) -> Candidate:
    """A Glow of another library; `tuned` to channels_last, with `lower` its coupling networks in bfloat16."""
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
    """The hidden channels with which a rival's FLOPs an image, of second degree in them, come nearest to each of `flops`."""
    some = (16, 32, 48)
    found = Polynomial.fit(
        some, [flops_per_image(rival(opponent, images, seed, width)) for width in some], 2
    )
    return [round(max((found - wanted).roots().real)) for wanted in flops]


def random_flow(name: str, images: Tensor, seed: int) -> ConditionalFlow:
    """A flow none of whose layers is an identity."""
    torch.manual_seed(seed)
    flow = create_flow(name, input_size=SHAPE).to(images.device).eval()
    for module in flow.modules():
        if isinstance(module, AffineCoupling):
            _randomize(module.net.head if isinstance(module.net, ViT) else module.net[-1])
    flow.initialize(images)
    return flow


def normflows_glow(lower: bool, levels: int = 3, steps: int = 8, hidden: int = 128) -> nn.Module:
    """The class-conditional Glow of normflows' examples; with `lower` its coupling networks in bfloat16."""
    import normflows as nf

    c, h, w = SHAPE
    bases, flows, merges = [], [], []
    for i in range(levels):
        width = c * 2 ** (levels + 1 - i)
        blocks = [
            nf.flows.GlowBlock(width, hidden, split_mode="channel", scale=True)
            for _ in range(steps)
        ]
        flows.append([*blocks, nf.flows.Squeeze()])
        if i:
            merges.append(nf.flows.Merge())
        channels = c * 2 ** (levels - i if i else levels + 1)
        reduction = 2 ** (levels - i)
        bases.append(
            nf.distributions.GlowBase((channels, h // reduction, w // reduction), num_classes=10)
        )
    model = nf.MultiscaleFlow(bases, flows, merges, class_cond=True)
    for module in model.modules():
        if isinstance(module, nf.flows.AffineCoupling):
            _randomize(module.param_map.net[-1])
            if lower:
                module.param_map = LowPrecision(module.param_map)
    return model


def _normflows_decode(model: nn.Module, codes: list[Tensor]) -> Tensor:
    return model.forward_and_log_det(codes)[0]


def freia_glow(lower: bool, levels: int = 3, steps: int = 8, hidden: int = 128) -> nn.Module:
    """Glow's steps as FrEIA's documentation chains them; with `lower` its coupling networks in bfloat16."""
    import FrEIA.framework as Ff
    import FrEIA.modules as Fm

    def network(channels_in: int, channels_out: int) -> nn.Module:
        last = nn.Conv2d(hidden, channels_out, 3, padding=1)
        _randomize(last)
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


def _randomize(conv: nn.Conv2d) -> None:
    nn.init.normal_(conv.weight, std=LAST_LAYER_STD)


def check(name: str, candidate: Candidate) -> tuple[Any, dict[str, Any]]:
    """Codes, and what must hold before a timing means anything: exact inverse, log-det dependent on x."""
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
        "flops_per_image": flops_per_image(candidate),
        "parameters": sum(p.numel() for p in candidate.network.parameters()),
    }


def flops_per_image(candidate: Candidate) -> float:
    return counted(lambda: candidate.encode(candidate.images)).get_total_flops() / len(
        candidate.images
    )


def counted(function: Callable[[], Any]) -> FlopCounterMode:
    in_place = {
        torch.ops.aten.addmm_: lambda y, a, b, **_: 2 * a[0] * a[1] * b[1]
    }  # of shapes; torch counts addmm only
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        function()
    return counter


def profile(candidate: Candidate, codes: Tensor, calls: int = 10) -> dict[str, float]:
    """Shares of the CPU time of decoding by `PARTS`, and the convolutions' share of its FLOPs."""
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
    flops = sum(
        n for op, n in counter.get_flop_counts()["Global"].items() if "convolution" in str(op)
    )
    return dict(zip(PARTS, (*shares, 1 - sum(shares)))) | {
        "convolution_flops": flops / counter.get_total_flops()
    }


def peak_functions(batch: int, device: str) -> dict[str, tuple[Callable, float]]:
    """Calls and FLOPs of a 3x3 convolution with 128 channels, channels_last, at the flows' resolutions."""
    found = {}
    for dtype in dtypes(device):
        for size in (8, 32):
            place = {
                "device": device,
                "dtype": getattr(torch, dtype),
                "memory_format": torch.channels_last,
            }
            conv = nn.Conv2d(128, 128, 3, padding=1).to(**place)
            x = torch.randn(batch, 128, size, size).to(**place)
            name = f"conv {dtype} {size}x{size}"
            found[name] = (
                _synchronised(functools.partial(conv, x), device),
                2 * 9 * 128**2 * batch * size**2,
            )
    return found


def _synchronised(function: Callable, device: str) -> Callable:
    if torch.device(device).type != "cuda":
        return function

    def call():
        function()
        torch.cuda.synchronize()

    return call


if __name__ == "__main__":
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "torch.lu is deprecated", UserWarning
        )  # normflows, while it builds
        sys.exit(main())
