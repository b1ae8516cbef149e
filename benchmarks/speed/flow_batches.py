"""Images a second of every registered flow at several batch sizes, and how much of the machine that is.

    python -m benchmarks.speed.flow_batches

Claim: none beforehand. Data: synthetic images of 3 x 32 x 32, one seed. Float32 networks,
evaluation mode, no gradients; the share is that of the convolution peak (`benchmarks.speed.peak`)
at the same batch. A batch is left out where one call would take more than `--limit` seconds.
"""

from __future__ import annotations

import argparse
import sys
import time
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
    SHAPE,
    Candidate,
    check,
    random_flow,
    synthetic_images,
)
from benchmarks.speed.peak import peak_functions
from timm_nfaug import ConditionalFlow
from timm_nfaug.flows.architectures import ARCHITECTURES

FLOWS = [name for name in ARCHITECTURES if name != "linear"]  # whose code is the image
INITIAL = 16  # images that set the data-dependent layers


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed.flow_batches", description=__doc__.split("\n")[0]
    )
    add = parser.add_argument
    add("--flows", nargs="+", choices=FLOWS, default=FLOWS)
    add("--batches", type=int, nargs="+", default=[1, 8, 64, 256])
    add("--threads", type=int, default=2)
    add("--repeats", type=int, default=3)
    add("--min-seconds", type=float, default=0.3)
    add("--limit", type=float, default=15, help="seconds a call")
    add("--seed", type=int, default=0)
    add("--record", metavar="NAME", default="flow_batches")
    return parser.parse_args(argv)


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Returns a row for each flow and batch; flows are timed side by side within a batch."""
    few = synthetic_images(INITIAL, args.seed)
    flows = {name: random_flow(name, few, args.seed) for name in args.flows}
    cost: dict[str, float] = {}  # seconds an image
    rows = []
    for batch in sorted(args.batches):
        images = synthetic_images(batch, args.seed)
        calls, flops = {}, {}
        for name, flow in flows.items():
            if batch * cost.get(name, 0.0) <= args.limit:
                calls |= directions(name, flow, images, flops, cost)
        for row in timed_rows(batch, calls, flops, args):
            rows.append(row)
            print(row, flush=True)
    return rows


def directions(
    name: str, flow: ConditionalFlow, images: Tensor, flops: dict, cost: dict
) -> dict[tuple[str, str], Any]:
    """Returns both calls of a flow; notes its FLOPs an image and about how long an image takes."""
    start = time.perf_counter()
    codes, found = check(name, Candidate(flow, flow.inverse, images, flow.network, "float32"))
    # that was two encodings and a decoding
    cost[name] = (time.perf_counter() - start) / 3 / len(images)
    flops[name] = found["flops_per_image"]
    return {(name, "forward"): lambda: flow(images), (name, "inverse"): lambda: flow.inverse(codes)}


def timed_rows(
    batch: int, calls: dict, flops: dict[str, float], args: argparse.Namespace
) -> list[dict[str, Any]]:
    peaks = {k: v for k, v in peak_functions(batch, "cpu").items() if "float32" in k}
    functions = calls | {k: call for k, (call, _) in peaks.items()}
    timings = timed(functions, args.repeats, args.min_seconds)
    peak = max(work / timings[k]["median"] for k, (_, work) in peaks.items())
    rows = []
    for name in flops:
        row: dict[str, Any] = {"flow": name, "batch": batch, "flops_per_image": flops[name]}
        for direction in DIRECTIONS:
            t = timings[name, direction]
            rate = batch / t["median"]
            row[direction] = {
                "images_per_s": rate,
                "share_of_peak": rate * flops[name] / peak,
                "slowest": batch / t["max"],
                "fastest": batch / t["min"],
                "disturbed": disturbed(t, args.threads),
            }
        rows.append(row)
    return rows


def table(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Returns cells: images a second of encoding / decoding (shares of the peak), a column a batch size."""
    batches = sorted({r["batch"] for r in rows})
    cells = [["flow", "MFLOP", *(f"batch {b}" for b in batches)]]
    for name in dict.fromkeys(r["flow"] for r in rows):
        own = {r["batch"]: r for r in rows if r["flow"] == name}
        mflop = next(iter(own.values()))["flops_per_image"] / 1e6
        cells.append([name, f"{mflop:,.0f}", *(_cell(own.get(b)) for b in batches)])
    return cells


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    each = [row[d] for d in DIRECTIONS]
    rates = [f"{d['images_per_s']:,.{0 if d['images_per_s'] >= 10 else 1}f}" for d in each]
    shares = [f"{d['share_of_peak']:.2f}" for d in each]
    return f"{' / '.join(rates)} ({' / '.join(shares)})"


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    if argv is None:
        pin_threads(args.threads)
    torch.set_num_threads(args.threads)
    with torch.no_grad():
        rows = measure(args)
    settings = {"threads": args.threads, "repeats": args.repeats, "limit": args.limit}
    write_result(
        args.record,
        {
            "benchmark": "flow_batches",
            "command": command_line("benchmarks.speed.flow_batches", argv),
            "data": f"synthetic images, {'x'.join(map(str, SHAPE))}",
            "seeds": [args.seed],
            "environment": environment(),
            "settings": settings,
            "results": {"rows": rows},
        },
    )
    print(markdown_table(table(rows)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
