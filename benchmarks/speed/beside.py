"""The cost of NFAugment beside that of another commit: CPU time per call, paired in one run.

Claim: beside the commit before the seam (a271d80) a PIL image at 32 px costs at most 1.10 times as
much, batches and images at 224 px at most 1.03 times.

    python -m benchmarks.speed.beside --base a271d80

Data: random images, one seed; the linear flow of 10 classes with 16 modes, p 1. Each commit runs in a
process of its own, on one thread; the two take turns, and a ratio is of neighbours in time.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.core.common import (
    ROOT,
    command_line,
    environment,
    markdown_table,
    pinned,
    write_result,
)

LIMITS = {
    "PIL, 32 px": 1.10,
    "PIL, 32 px, p 0.5": 1.10,
    "PIL, 32 px, one class": 1.10,
    "PIL, 224 px": 1.03,
    "256 uint8, 32 px": 1.03,
    "256 float, 32 px": 1.03,
    "32 uint8, 224 px": 1.03,
}
# it imports the timm_nfaug of the folder it runs in, and nothing that is newer than the base
WORKER = """
import sys, time
import numpy as np
import torch
from PIL import Image
import timm_nfaug as nfa

torch.set_num_threads(1)
rng = np.random.default_rng(0)
levels = torch.from_numpy(rng.integers(0, 256, (256, 3, 32, 32), dtype=np.uint8))
large = torch.from_numpy(rng.integers(0, 256, (32, 3, 224, 224), dtype=np.uint8))
y = torch.arange(256) % 10
pil = {s: Image.fromarray(rng.integers(0, 256, (s, s, 3), dtype=np.uint8)) for s in (32, 224)}
given = {"modes": 16, "labels": "given", "seed": 0}
make = lambda **kw: nfa.NFAugment.from_data([(levels, y)], **given | kw)
each, half = make(num_classes=10, p=1.0), make(num_classes=10, p=0.5)
one, unit = make(labels="none", p=1.0), levels.float() / 255
calls = {
    "PIL, 32 px": (lambda: each(pil[32], 3), 2000),
    "PIL, 32 px, p 0.5": (lambda: half(pil[32], 3), 2000),
    "PIL, 32 px, one class": (lambda: one(pil[32]), 2000),
    "PIL, 224 px": (lambda: each(pil[224], 3), 400),
    "256 uint8, 32 px": (lambda: each(levels, y), 40),
    "256 float, 32 px": (lambda: each(unit, y), 40),
    "32 uint8, 224 px": (lambda: each(large, y[:32]), 20),
}
for line in sys.stdin:
    call, count = calls[line.strip()]
    start = time.process_time()
    for _ in range(count):
        call()
    print((time.process_time() - start) / count, flush=True)
"""


class Side:
    """A process that times calls of the checkout in `folder`."""

    def __init__(self, folder: Path):
        env = os.environ | pinned(1) | {"PYTHONPATH": str(folder)}
        command = [sys.executable, "-c", WORKER]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            command, cwd=folder, env=env, stdin=pipe, stdout=pipe, text=True
        )

    def seconds(self, name: str) -> float:
        """CPU seconds of one call."""
        self.process.stdin.write(name + "\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())


def measure(base: Side, own: Side, names: list[str], rounds: int) -> list[dict]:
    """Rows of medians in microseconds and ratios, those of each round too."""
    rows = []
    for name in names:
        for side in (base, own):
            side.seconds(name)  # caches, kernel choice
        pairs = []
        for i in range(rounds):
            first, second = (base, own) if i % 2 else (own, base)
            found = {first: first.seconds(name), second: second.seconds(name)}
            pairs.append((found[base], found[own]))
        before, after = (1e6 * statistics.median(side) for side in zip(*pairs, strict=True))
        ratios = [b / a for a, b in pairs]
        row = {"what": name, "base_us": before, "own_us": after, "ratio": statistics.median(ratios)}
        rows.append({**row, "ratios": ratios, "limit": LIMITS[name]})
        print(f"{name}: {before:.1f} us, now {after:.1f} us, {row['ratio']:.3f}", flush=True)
    return rows


def table(rows: list[dict]) -> list[list[str]]:
    """Cells: what, base, now, ratio with the least and the most of the rounds, limit."""
    cells = [["what", "base, us", "now, us", "ratio (rounds)", "limit"]]
    for r in rows:
        spread = f"{r['ratio']:.2f} ({min(r['ratios']):.2f} to {max(r['ratios']):.2f})"
        limit = f"{r['limit']:.2f}"
        cells.append([r["what"], f"{r['base_us']:.0f}", f"{r['own_us']:.0f}", spread, limit])
    return cells


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed.beside", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--base", default="a271d80", help="the other commit")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", nargs="+", choices=LIMITS, default=list(LIMITS))
    parser.add_argument("--record", default="beside", help="the result's name")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        other = Path(folder) / "base"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "-q", "--detach", str(other), args.base], check=True)
        try:
            rows = measure(Side(other), Side(ROOT), args.only, args.rounds)
        finally:
            subprocess.run([*git, "remove", "--force", str(other)], check=True)
    payload = {
        "benchmark": "speed.beside",
        "command": command_line("benchmarks.speed.beside", argv),
        "claim": __doc__.split("\n\n")[1].removeprefix("Claim: ").replace("\n", " "),
        "data": "random images",
        "seeds": [0],
        "environment": environment() | {"threads": 1},
        "settings": {"base": args.base, "rounds": args.rounds},
        "results": rows,
    }
    write_result(args.record, payload)
    print(markdown_table(table(rows)))


if __name__ == "__main__":
    main()
