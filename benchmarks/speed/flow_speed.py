"""How fast the flows are, beside the Glows of normflows and FrEIA.

Claim: on 2 CPU cores at 32x32x3, `conv_p4_small` encodes (image to code, with log-det) and decodes
(code to image) at least 4 times as many images a second as normflows' Glow of 3 levels x 8 steps
with 128 hidden channels, both in float32.

    python -m benchmarks.speed.flow_speed

Data: 64 synthetic images, one seed, random weights: none of it changes a time. All candidates run
side by side, in evaluation mode, without gradients, from the same images; no prior is evaluated.
normflows' decoding has no form without log-det, so its log-det is in its time.

- `--rivals documented` are the libraries as their documentation builds a network, which the claim
  is about; `tuned` as their users could tune them from outside (`benchmarks.speed.rivals`); `equal`
  as narrow as gives the FLOPs of ours.
- "At equal FLOPs" multiplies a ratio of images a second by that of the FLOPs an image, which is the
  ratio of the shares of the convolution peak (`benchmarks.speed.peak`).
- `compiled` is `torch.compile` of encoding and of decoding (inductor, static shapes); compiling is
  not in the time.

The last layers of all coupling networks are random instead of zero and the data-dependent layers
are set from a batch, so that nothing measured is an identity. On a GPU, TF32 is off. Nothing runs
in bfloat16 where the machine emulates it.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.core.common import (
    command_line,
    disturbed,
    environment,
    markdown_table,
    pin_threads,
    timed,
    write_result,
)
from benchmarks.speed.candidate import (
    DIRECTIONS,
    PARTS,
    SHAPE,
    Candidate,
    check,
    profile,
    random_flow,
    synthetic_images,
)
from benchmarks.speed.peak import dtypes, peak_functions, synchronised
from benchmarks.speed.rivals import BASELINE, BUILDS, OPPONENTS, make_rivals

CLAIMED_FLOW, CLAIMED_SPEEDUP = "conv_p4_small", 4.0


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed.flow_speed", description="Times the flows."
    )
    add = parser.add_argument
    add("--threads", type=int, default=2)
    add("--batch", type=int, default=64)
    add("--repeats", type=int, default=9)
    add("--min-seconds", type=float, default=1.0, help="of one repeat of one candidate")
    add("--flows", nargs="+", default=["conv_p4_small", "conv_p4_tiny"])
    add("--rivals", nargs="*", choices=BUILDS, default=["documented", "tuned"])
    add("--device", default="cpu")
    add("--compile", action="store_true", help="our flows compiled, too")
    add("--seed", type=int, default=0)
    add("--record", metavar="NAME")
    add("--keep-disturbed", action="store_true", help="write a busy machine's result too")
    return parser.parse_args(argv)


def make_candidates(
    flows: list[str],
    images: Tensor,
    seed: int,
    compiled: bool = False,
    rivals: Sequence[str] = BUILDS[:2],
) -> dict[str, Candidate]:
    """Builds our flows, in every dtype that is timed, and the rivals."""
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
    flops = {name: found[name].flops_per_image() for name in flows if "equal" in rivals}
    return found | make_rivals(tuple(rivals), flops, images, seed, "bfloat16" in kinds)


def measure(args: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """Returns the results, and the names of the timings that something else disturbed."""
    images = synthetic_images(args.batch, args.seed).to(args.device)
    candidates = make_candidates(args.flows, images, args.seed, args.compile, args.rivals)
    checks, functions, profiles = {}, {}, {}
    for name, candidate in candidates.items():
        codes, checks[name] = check(name, candidate)
        if name in args.flows and args.device == "cpu":
            profiles[name] = profile(candidate, codes)
        encode, decode = (
            lambda c=candidate: c.encode(c.images),
            lambda c=candidate, z=codes: c.decode(z),
        )
        functions[f"{name} forward"] = synchronised(encode, args.device)
        functions[f"{name} inverse"] = synchronised(decode, args.device)
    peaks = peak_functions(args.batch, args.device)
    functions |= {name: function for name, (function, _) in peaks.items()}

    timings = timed(functions, args.repeats, args.min_seconds)
    busy = [k for k, t in timings.items() if args.device == "cpu" and disturbed(t, args.threads)]
    rates = {name: flops / timings[name]["median"] / 1e9 for name, (_, flops) in peaks.items()}
    peak = {d: max(v for k, v in rates.items() if f" {d} " in k) for d in dtypes(args.device)}
    rows = {
        name: {"dtype": candidate.dtype, **checks[name]}
        | {d: timing_row(name, d, candidate, checks, timings, peak) for d in DIRECTIONS}
        for name, candidate in candidates.items()
    }
    for name, own in profiles.items():
        inverse = rows[name]["inverse"]
        done = inverse["share_of_peak"] * own.pop("convolution_flops") / own["convolutions"]
        inverse["profile"] = own | {"convolutions_share_of_peak": done}
    results = {"conv_peak_gflops": {**peak, "measured": rates}, "flows": rows}
    if CLAIMED_FLOW in rows and args.device == "cpu" and BASELINE in rows:
        results["claim_holds"] = {d: claimed_ratio(rows, d) >= CLAIMED_SPEEDUP for d in DIRECTIONS}
    return results, busy


def timing_row(
    name: str,
    direction: str,
    candidate: Candidate,
    checks: dict[str, dict[str, Any]],
    timings: dict[str, dict[str, Any]],
    peak: dict[str, float],  # of each dtype, in GFLOP/s
) -> dict[str, Any]:
    """Returns images a second of one direction, alone, over the peak, and over each opponent."""
    timing = timings[f"{name} {direction}"]
    rate = len(candidate.images) / timing["median"]
    flops = {other: checks[other]["flops_per_image"] for other in checks}
    opponents = [o for o in checks if o.startswith(OPPONENTS)]
    peers = [
        o for o in opponents if name.startswith(checks[o].get("of", name))
    ]  # or another flow's
    over = {o: speedup(timings[f"{o} {direction}"], timing) for o in peers}
    return {
        "images_per_s": rate,
        "share_of_peak": rate * flops[name] / 1e9 / peak[candidate.dtype],
        "speedup_over": over,
        "at_equal_flops": {o: r["median"] * flops[name] / flops[o] for o, r in over.items()},
        **timing,
    }


def speedup(slow: dict[str, Any], fast: dict[str, Any]) -> dict[str, float]:
    """Divides two timings repeat by repeat, since those ran next to each other."""
    ratios = [a / b for a, b in zip(slow["seconds"], fast["seconds"])]
    return {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}


def claimed_ratio(rows: dict[str, dict[str, Any]], direction: str) -> float:
    return rows[CLAIMED_FLOW][direction]["speedup_over"][BASELINE]["median"]


def report(results: dict[str, Any]) -> None:
    """Prints the tables, the claim, and where another library is faster."""
    losses = [
        f"{name} {d} against {opponent}: {ratio['median']:.2f} times its speed"
        for name, row in results["flows"].items()
        if not name.startswith(OPPONENTS)
        for d in DIRECTIONS
        for opponent, ratio in row[d]["speedup_over"].items()
        if ratio["median"] < 1
    ]
    for cells in (table(results), equal_table(results), profile_table(results)):
        if cells[1:]:
            print(markdown_table(cells) + "\n")
    peaks = {k: v for k, v in results["conv_peak_gflops"].items() if k != "measured"}
    shown = ", ".join(f"{v:.0f} GFLOP/s {k}" for k, v in peaks.items())
    print(f"conv peak (3x3, 128 channels): {shown}")
    for direction, holds in results.get("claim_holds", {}).items():
        ratios = results["flows"][CLAIMED_FLOW][direction]["speedup_over"]
        verdict = "holds" if holds else "FAILS"
        print(f"claim, {direction} >= {CLAIMED_SPEEDUP:g}x over {BASELINE}: {verdict}")
        for opponent, r in ratios.items():
            print(f"  {r['median']:.2f} ({r['min']:.2f} to {r['max']:.2f}) over {opponent}")
    print("slower than another library's: " + ("; ".join(losses) or "nowhere"))


def table(results: dict[str, Any]) -> list[list[str]]:
    """Returns cells, the header first; ratios and shares are of encoding / decoding."""
    opponents = [o for o in OPPONENTS if o in results["flows"]]
    ratios = [f"times {o}{' at equal FLOPs' * equal}" for o in opponents for equal in (False, True)]
    head = ["flow", "MFLOP", "forward, images/s", "inverse, images/s", *ratios]
    rows = [[*head, "share of the conv peak", "round trip"]]
    for name, row in results["flows"].items():
        if "of" in row:  # see equal_table
            continue
        each = [row[d] for d in DIRECTIONS]
        cells = [name, f"{row['flops_per_image'] / 1e6:.0f}"]
        cells += [f"{d['images_per_s']:.0f}" for d in each]
        for o in opponents:
            cells.append(" / ".join(f"{d['speedup_over'][o]['median']:.2f}" for d in each))
            cells.append(" / ".join(f"{d['at_equal_flops'][o]:.2f}" for d in each))
        cells.append(" / ".join(f"{d['share_of_peak']:.2f}" for d in each))
        rows.append([*cells, f"{row['round_trip_max']:.0e}"])
    return rows


def equal_table(results: dict[str, Any]) -> list[list[str]]:
    """Returns cells; times the speed of rivals built with the FLOPs of each flow, encoding / decoding."""
    rows = [["flow", "MFLOP", "rival of its FLOPs", "hidden channels", "MFLOP", "times its speed"]]
    for name, rival in results["flows"].items():
        if "of" in rival:
            own, of = results["flows"][rival["of"]], rival["of"]
            mflop, theirs = (f"{row['flops_per_image'] / 1e6:.1f}" for row in (own, rival))
            times = " / ".join(f"{own[d]['speedup_over'][name]['median']:.2f}" for d in DIRECTIONS)
            title = name.replace(f" of {of}", "")
            rows.append([of, mflop, title, str(rival["hidden"]), theirs, times])
    return rows


def profile_table(results: dict[str, Any]) -> list[list[str]]:
    """Returns cells; where the time of decoding goes."""
    rows = [["decoding", *PARTS, "convolutions, share of the conv peak", "the whole"]]
    for name, row in results["flows"].items():
        if own := row["inverse"].get("profile"):
            shares = own["convolutions_share_of_peak"], row["inverse"]["share_of_peak"]
            parts = (f"{own[part]:.0%}" for part in PARTS)
            rows.append([name, *parts, *(f"{share:.2f}" for share in shares)])
    return rows


def record(args: argparse.Namespace, argv: list[str] | None, results: Any, busy: list[str]) -> str:
    """Writes the record; returns the name of its file."""
    device = torch.device(args.device).type
    name = args.record or ("flow_speed" if device == "cpu" else f"flow_speed_{device}")
    settings = {k: v for k, v in vars(args).items() if k != "record"}
    path = write_result(
        name,
        {
            "benchmark": "flow_speed",
            "command": command_line("benchmarks.speed.flow_speed", argv),
            "data": f"{args.batch} synthetic images, {'x'.join(map(str, SHAPE))}",
            "seeds": [args.seed],
            "environment": environment(["normflows", "FrEIA"] if args.rivals else []),
            "claim": __doc__.split("\n\n")[1].replace("\n", " "),
            "settings": settings | {"disturbed": busy},
            "results": results,
        },
    )
    return path.name


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    if args.device == "cpu" and argv is None:
        pin_threads(args.threads)
    torch.set_num_threads(args.threads)
    torch.backends.cudnn.allow_tf32 = False
    with torch.no_grad():
        results, busy = measure(args)
    report(results)
    if busy:
        few = f"less than 85% of {args.threads} cores; use an idle machine"
        print(f"\nDisturbed ({few}): {', '.join(busy)}")
        if not args.keep_disturbed:
            return 1
    print(f"\nwritten to benchmarks/results/{record(args, argv, results, busy)}")
    return 0


if __name__ == "__main__":
    with warnings.catch_warnings():  # normflows, while it builds
        warnings.filterwarnings("ignore", "torch.lu is deprecated", UserWarning)
        sys.exit(main())
