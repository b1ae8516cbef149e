"""What NFA does when files are hostile, disks are full and processes are killed.

    python -m benchmarks.reliability

Claim: nothing crashes, hangs or is lost. Parts: `fuzz` (damaged configs and weights), `kills`
(SIGKILL, SIGTERM and SIGINT at random moments), `disks` (full, read-only, two writers, damaged
files), `data` (a dataset that opens its file in the worker), `images` (odd ones). A part that is
done is kept in `--work` and not run again while the code stays as it is; `fuzz` and `images` resume
in the middle. The record is written once all parts are done.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.core.common import command_line, environment, write_result
from benchmarks.reliability import inputs
from benchmarks.reliability.children import CPU_SECONDS
from benchmarks.reliability.rows import Row, table
from timm_nfaug._utils.files import write_atomically

CLAIM = "no try crashes, hangs for more than 10 s of CPU, or loses data; peak memory below 2 GB"
COUNTS = {"fuzz": 10_000, "kills": 30, "disks": 70, "data": 20_000, "images": 2_000}
PEAK_MB = 2_000  # of one input
RESUMED = ("fuzz", "images")  # in the middle; the other parts begin anew


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.reliability", description=__doc__.split("\n")[0]
    )
    add = parser.add_argument
    add("--only", nargs="+", choices=COUNTS, default=list(COUNTS), help="parts (default: all)")
    add("--scale", type=float, default=1.0, help=f"share of the tries: {COUNTS} at 1")
    add("--seed", type=int, default=0)
    work = "where parts that are done are kept (default: runs/reliability)"
    add("--work", type=Path, default=Path("runs/reliability"), help=work)
    quick = "fork the processes that are killed from this one, which saves their imports"
    add("--fork", action="store_true", help=quick)
    args = parser.parse_args(argv)
    if not 0 < args.scale:
        parser.error(f"--scale takes a number above 0, got {args.scale:g}")
    return args


def run_part(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Runs a part, or takes what it came to before, with the same code and settings."""
    count = max(1, round(COUNTS[name] * args.scale))
    key = {"sources": inputs.sources(), "count": count, "seed": args.seed, "fork": args.fork}
    file = args.work / f"{name}.json"
    if file.exists() and (found := json.loads(file.read_text()))["key"] == key:
        return found
    start, module = time.monotonic(), importlib.import_module(f"benchmarks.reliability.{name}")
    args.work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.work) as fresh:
        work = args.work if name in RESUMED else Path(fresh)
        rows: list[Row] = module.run(count, args.seed, work.resolve(), args.fork)
    seconds = round(time.monotonic() - start)
    found = {"key": key, "rows": [row.record() for row in rows], "seconds": seconds}
    write_atomically(file, lambda p: p.write_text(json.dumps(found)))
    return found


def failures(rows: list[dict[str, Any]]) -> int:
    """Counts tries that did not end as promised."""
    over = sum(row["peak_mb"] > PEAK_MB for row in rows)
    return over + sum(row["tried"] - row["survived"] for row in rows)


def result(parts: dict[str, dict[str, Any]], args: argparse.Namespace) -> dict[str, Any]:
    """The record of all parts."""
    return {
        "benchmark": "reliability",
        "claim": CLAIM,
        "command": command_line("benchmarks.reliability"),
        "data": "flows, images and files made from a seed; the scikit-learn digits",
        "seeds": [args.seed],
        "environment": environment(),
        "settings": {"scale": args.scale, "fork": args.fork, "cpu_seconds": CPU_SECONDS},
        "results": {
            "rows": [row for part in parts.values() for row in part["rows"]],
            "seconds": {name: part["seconds"] for name, part in parts.items()},
        },
    }


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    torch.set_num_threads(1)
    parts = {}
    for name in args.only:
        parts[name] = run_part(name, args)
        print(f"{name}: {parts[name]['seconds']} s", flush=True)
        for problem in (problem for row in parts[name]["rows"] for problem in row["problems"]):
            print(f"  {problem}", flush=True)
    rows = [row for part in parts.values() for row in part["rows"]]
    print(table(rows))
    if set(parts) == set(COUNTS):
        write_result("reliability", result(parts, args))
    return 1 if failures(rows) else 0


if __name__ == "__main__":
    sys.exit(main())
