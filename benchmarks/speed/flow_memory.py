"""Memory and time of a training step of a flow over its depth, with stored and with recomputed activations.

Claim: with ``reversible: true`` a step at twice the depth takes at most 1.1 times the memory.

    python -m benchmarks.speed.flow_memory [--device cuda]

Data: random images of 3 x 32 x 32, one seed. Each point is a process of its own. Memory is the most
that a step holds beyond the weights: activations and gradients. On a CPU that is resident memory
(Linux only), measured in a process apart from that of the times, since what makes it exact makes it
slow.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

import timm_nfaug as nfa
from benchmarks.core.common import (
    ROOT,
    command_line,
    environment,
    markdown_table,
    pin_threads,
    write_result,
)
from timm_nfaug import pixels
from train_flow.objective import FlowLoss

LIMIT = 1.1
CLAIM = f"with reversible: true a step at twice the depth takes at most {LIMIT} times the memory"
# glibc gives what is freed back to the system at once, and does not keep it for the step that is measured
RETURN_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed.flow_memory", description=__doc__.split("\n")[0]
    )
    add = parser.add_argument
    add("--depths", type=int, nargs="+", default=[6, 12, 24], help="each twice the one before")
    add("--hidden", type=int, default=128)
    add("--batch-size", type=int, default=256)
    add("--net-dtype", choices=("float32", "bfloat16"), default="float32")
    add("--repeats", type=int, default=5)
    add("--device", default="cpu")
    add("--threads", type=int, default=2)
    add("--record", default="flow_memory", help="the result's name")
    # depth and reversible of the point that this process measures
    add("--point", type=int, nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args()


def resident(what: str) -> float:
    """Returns MB: VmRSS, now, or VmHWM, the most since the last reset."""
    line = next(s for s in STATUS.read_text().splitlines() if s.startswith(what))
    return int(line.split()[1]) / 1e3


def make(depth: int, hidden: int, net_dtype: str, batch: int, device: str):
    """Creates a flow, images (B, 3, 32, 32) in [-1, 1] and labels (B,)."""
    torch.manual_seed(0)
    flow = nfa.create_flow("conv_p4_small", depth=depth, hidden=hidden, num_classes=10).to(device)
    levels = torch.randint(0, 256, (batch, 3, 32, 32), dtype=torch.uint8).to(device)
    x = pixels.dequantize(levels, generator=torch.Generator().manual_seed(0))
    y = torch.arange(batch, device=device) % 10
    flow.initialize(x[:64])
    with torch.no_grad():  # a fresh coupling is the identity
        for p in flow.network.parameters():
            p.add_(0.02 * torch.randn_like(p))
    return flow.set_net_dtype(getattr(torch, net_dtype) if net_dtype != "float32" else None), x, y


def gradients(flow, x, y) -> torch.Tensor:
    flow.zero_grad()
    FlowLoss(flow)(x, y)[0].backward()
    return torch.cat([p.grad.flatten() for p in flow.network.parameters()])


def measure(depth: int, reversible: bool, args: argparse.Namespace) -> dict[str, Any]:
    """Measures one point, in this process."""
    flow, x, y = make(depth, args.hidden, args.net_dtype, args.batch_size, args.device)
    flow.set_reversible(reversible)
    gradients(flow, x[:8], y[:8])  # lazy set-up
    flow.zero_grad()
    mb = step_memory(flow, x, y, args.device)
    seconds = []
    for _ in range(args.repeats):
        start = time.perf_counter()
        gradients(flow, x, y).sum().item()
        seconds.append(time.perf_counter() - start)
    found = {"depth": depth, "reversible": reversible, "mb": mb, "seconds": seconds}
    return found | (gradient_errors(flow, x, y) if reversible else {})


def step_memory(flow, x, y, device: str) -> float:
    """Returns the MB that a step takes beyond what is held before it."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() / 1e6
        gradients(flow, x, y)
        return torch.cuda.max_memory_allocated() / 1e6 - before
    RESET.write_text("5")
    before = resident("VmRSS")
    gradients(flow, x, y)
    return resident("VmHWM") - before


def gradient_errors(flow, x, y) -> dict[str, float]:
    """Compares the gradient with that of stored activations, and that with the one in float32."""
    own = gradients(flow, x, y)
    stored = gradients(flow.set_reversible(False), x, y)
    exact = gradients(flow.set_net_dtype(None), x, y)
    return {
        "gradient_error": ((own - stored).norm() / stored.norm()).item(),
        "gradient_error_of_dtype": ((stored - exact).norm() / exact.norm()).item(),
    }


def run_point(depth: int, reversible: int, flags: list[str], env: dict[str, str]) -> dict[str, Any]:
    """Measures one point in a process of its own."""
    point = ["--point", str(depth), str(reversible)]
    command = [sys.executable, "-m", "benchmarks.speed.flow_memory", *flags, *point]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, **env}
    )
    if done.returncode:
        raise SystemExit(f"depth {depth}, reversible {reversible}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def run_points(depths: list[int], flags: list[str]) -> dict[str, Any]:
    """Measures all points; returns what stands under `results`."""
    points = []
    for depth in depths:
        for reversible in (0, 1):
            point = run_point(depth, reversible, flags, {})
            exact = run_point(depth, reversible, [*flags, "--repeats", "1"], RETURN_MEMORY)
            points.append(point | {"mb": exact["mb"]})
            print(points[-1], flush=True)
    by = {(p["depth"], p["reversible"]): p["mb"] for p in points}
    growth = {str(d): by[d, True] / by[d // 2, True] for d in depths if (d // 2, True) in by}
    met = max(growth.values()) <= LIMIT if growth else None
    return {"points": points, "growth_at_twice_the_depth": growth, "claim_met": met}


def table(results: dict[str, Any]) -> list[list[str]]:
    """Returns cells, a row for each depth."""
    head = ["depth", "stored, MB", "reversible, MB", "over half the depth", "time over stored"]
    cells = [[*head, "gradient, relative error"]]
    by = {(r["depth"], r["reversible"]): r for r in results["points"]}
    for depth in sorted({d for d, _ in by}):
        stored, own = by[depth, False], by[depth, True]
        half = by.get((depth // 2, True))
        growth = f"{own['mb'] / half['mb']:.2f}" if half else ""
        time_over = statistics.median(own["seconds"]) / statistics.median(stored["seconds"])
        row = [str(depth), f"{stored['mb']:.0f}", f"{own['mb']:.0f}", growth, f"{time_over:.2f}"]
        cells.append([*row, f"{own['gradient_error']:.0e}"])
    return cells


def main() -> int:
    args = parse()
    if args.device == "cpu":
        pin_threads(args.threads)
    torch.set_num_threads(args.threads)
    if args.point:
        print(json.dumps(measure(args.point[0], bool(args.point[1]), args)))
        return 0
    results = run_points(args.depths, sys.argv[1:])
    settings = {k: getattr(args, k) for k in ("hidden", "net_dtype", "device")}
    write_result(
        args.record,
        {
            "benchmark": "flow_memory",
            "claim": CLAIM,
            "command": command_line("benchmarks.speed.flow_memory"),
            "data": f"random images of 3 x 32 x 32, batch {args.batch_size}",
            "seeds": [0],
            "environment": environment(),
            "settings": {"flow": "conv_p4", **settings},
            "results": results,
        },
    )
    print(markdown_table(table(results)))
    return int(results["claim_met"] is False)


if __name__ == "__main__":
    sys.exit(main())
