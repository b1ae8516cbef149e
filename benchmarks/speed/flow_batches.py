"""Every registered flow at several batch sizes: images a second of encoding and of decoding, and how much of the machine that is.

    python -m benchmarks.speed.flow_batches

Float32 networks, evaluation mode, no gradients; the share is that of the convolution peak (`benchmarks.speed.flow_speed`) at the same
batch. Where one call would take more than `--limit` seconds the batch is left out.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

import torch

from benchmarks.core.common import (
    command_line,
    disturbed,
    environment,
    markdown_table,
    pin_threads,
    timed,
    write_result,
)
from benchmarks.speed import flow_speed
from timm_nfaug.flows.architectures import ARCHITECTURES

FLOWS = [name for name in ARCHITECTURES if name != "linear"]  # whose code is the image
INITIAL = 16  # images that set the data-dependent layers


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed.flow_batches", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--flows", nargs="+", choices=FLOWS, default=FLOWS)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 64, 256])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--min-seconds", type=float, default=0.3)
    parser.add_argument("--limit", type=float, default=15, help="seconds a call")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", metavar="NAME", default="flow_batches")
    args = parser.parse_args(argv)
    if argv is None:
        pin_threads(args.threads)
    torch.set_num_threads(args.threads)
    with torch.no_grad():
        rows = measure(args)
    write_result(args.record, {
        "benchmark": "flow_batches",
        "command": command_line("benchmarks.speed.flow_batches", argv),
        "data": f"synthetic images, {'x'.join(map(str, flow_speed.SHAPE))}",
        "seeds": [args.seed],
        "environment": environment(),
        "settings": {"threads": args.threads, "repeats": args.repeats, "limit": args.limit},
        "results": {"rows": rows},
    })  # fmt: skip
    print(markdown_table(table(rows)))
    return 0


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each flow and batch; flows are timed side by side within a batch."""
    few = flow_speed.synthetic_images(INITIAL, args.seed)
    flows = {name: flow_speed.random_flow(name, few, args.seed) for name in args.flows}
    cost, rows = {}, []  # of an image, seconds
    for batch in sorted(args.batches):
        images = flow_speed.synthetic_images(batch, args.seed)
        calls, flops = {}, {}
        for name, flow in flows.items():
            if batch * cost.get(name, 0.0) > args.limit:
                continue
            start = time.perf_counter()
            candidate = flow_speed.Candidate(flow, flow.inverse, images, flow.network, "float32")
            codes, found = flow_speed.check(name, candidate)
            cost[name] = (
                (time.perf_counter() - start) / 3 / batch
            )  # that was two encodings and a decoding
            flops[name] = found["flops_per_image"]
            calls[name, "forward"] = lambda f=flow, x=images: f(x)
            calls[name, "inverse"] = lambda f=flow, z=codes: f.inverse(z)
        peaks = {k: v for k, v in flow_speed.peak_functions(batch, "cpu").items() if "float32" in k}
        timings = timed(
            calls | {k: call for k, (call, _) in peaks.items()}, args.repeats, args.min_seconds
        )
        peak = max(work / timings[k]["median"] for k, (_, work) in peaks.items())
        for name in flops:
            row = {"flow": name, "batch": batch, "flops_per_image": flops[name]}
            for direction in flow_speed.DIRECTIONS:
                t = timings[name, direction]
                rate = batch / t["median"]
                row[direction] = {
                    "images_per_s": rate, "share_of_peak": rate * flops[name] / peak,
                    "slowest": batch / t["max"], "fastest": batch / t["min"], "disturbed": disturbed(t, args.threads),
                }  # fmt: skip
            rows.append(row)
            print(row, flush=True)
    return rows


def table(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Cells; images a second of encoding / decoding, and the shares of the peak in brackets, a column for each batch size."""
    batches = sorted({r["batch"] for r in rows})
    cells = [["flow", "MFLOP", *(f"batch {b}" for b in batches)]]
    for name in dict.fromkeys(r["flow"] for r in rows):
        own = {r["batch"]: [r[d] for d in flow_speed.DIRECTIONS] for r in rows if r["flow"] == name}
        mflop = next(r["flops_per_image"] for r in rows if r["flow"] == name) / 1e6

        def cell(batch: int, own=own) -> str:
            if batch not in own:
                return ""
            rates = " / ".join(
                f"{d['images_per_s']:,.{0 if d['images_per_s'] >= 10 else 1}f}" for d in own[batch]
            )
            shares = " / ".join(f"{d['share_of_peak']:.2f}" for d in own[batch])
            return f"{rates} ({shares})"

        cells.append([name, f"{mflop:,.0f}", *(cell(b) for b in batches)])
    return cells


if __name__ == "__main__":
    sys.exit(main())
