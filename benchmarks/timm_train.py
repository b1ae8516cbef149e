"""A real timm train.py with and without ``--aug nfa``: one epoch each, images/s of its own log.

Claim: none beforehand; the price of each flow in a real training, with and without timm's prefetcher. train.py comes
with timm's repository, not with its package, so its path is an argument.

    python -m benchmarks.timm_train --train-py path/to/timm/train.py --data-dir DIR
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.common import ROOT, command_line, environment, markdown_table, write_result

RATE = re.compile(r"Train: .*\(\s*[\d.]+s,\s*([\d.]+)/s\)")  # the running average over the epoch
LOSS = re.compile(r"Train: .*Loss:\s*([\d.]+)")


# a stock train.py under the guard of timm_nfaug.pillow, without which RandAugment may end the epoch
GUARDED = (
    "import runpy, sys; from timm_nfaug.pillow import guard_posterize; guard_posterize(); "
    "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
)


def subset(data_dir: Path, out: Path, per_class: int) -> int:
    """An ImageFolder of links to the first images of each class; returns the number for training."""
    count = 0
    for split, n in (("train", per_class), ("val", max(1, per_class // 10))):
        for folder in sorted(p for p in (data_dir / split).iterdir() if p.is_dir()):
            (out / split / folder.name).mkdir(parents=True)
            for image in sorted(folder.iterdir())[:n]:
                (out / split / folder.name / image.name).symlink_to(image.resolve())
                count += split == "train"
    return count


def train_epoch(train_py: Path, data: Path, flags: list[str], launcher: bool, args) -> dict:
    """One epoch in a process of its own; images/s and loss from the last training line of its log."""
    start = [sys.executable, *(["-m", "timm_nfaug.train"] if launcher else ["-c", GUARDED]), str(train_py)]
    with tempfile.TemporaryDirectory() as out:
        done = subprocess.run(
            [*start, "--data-dir", str(data), "--model", args.model, "--num-classes", "10", "--img-size", "32",
             "--epochs", "1", "-b", "128", "--workers", "1", "--device", "cpu", "--log-interval", "5", "--lr", "0.01",
             "--color-jitter", "0", "--seed", "0", "--output", out, *flags],
            capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{train_py} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    rates, losses = RATE.findall(done.stdout + done.stderr), LOSS.findall(done.stdout + done.stderr)
    own = [line for line in done.stderr.splitlines() if "timm_nfaug" in line and "arn" in line]
    return {"images_per_second": float(rates[-1]), "loss": float(losses[-1]), "own_warnings": len(own)}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.timm_train", description=__doc__.split("\n")[0])
    parser.add_argument("--train-py", type=Path, required=True)
    parser.add_argument("--data-dir", type=Path, required=True, help="ImageFolder tree of CIFAR-10's classes")
    parser.add_argument("--data-name", default="CIFAR-10 (JPEG)")
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--per-class", type=int, default=400)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--flows", nargs="+", default=["linear.cifar10_jpeg", "conv_p4_small.cifar10_jpeg"])
    args = parser.parse_args()
    arms: dict[str, tuple[bool, list[str]]] = {
        "stock train.py": (False, []),
        "timm RandAugment": (False, ["--aa", "rand-m9-mstd0.5-inc1"]),
    }
    for flow in args.flows:
        arms[f"--aug nfa-s0.5-k32-p0.5, {flow}"] = (True, ["--aug", "nfa-s0.5-k32-p0.5", "--nfa-flow", flow])
    runs = [(arm, pre) for arm in arms for pre in ("prefetcher", "no prefetcher")]
    results = {f"{arm} ({pre})": {"images_per_second": [], "loss": [], "own_warnings": 0} for arm, pre in runs}
    with tempfile.TemporaryDirectory() as folder:
        count = subset(args.data_dir, Path(folder), args.per_class)
        for _ in range(args.repeats):
            for arm, pre in runs:
                launcher, flags = arms[arm]
                extra = ["--no-prefetcher"] if pre == "no prefetcher" else []
                found = train_epoch(args.train_py, Path(folder), [*flags, *extra], launcher, args)
                row = results[f"{arm} ({pre})"]
                row["images_per_second"].append(found["images_per_second"])
                row["loss"].append(found["loss"])
                row["own_warnings"] += found["own_warnings"]
    base = {pre: max(results[f"stock train.py ({pre})"]["images_per_second"]) for pre in ("prefetcher", "no prefetcher")}
    rows = [["", "images/s", "share of stock"]]
    for name, row in results.items():
        pre = "no prefetcher" if "no prefetcher" in name else "prefetcher"
        row["share_of_stock"] = max(row["images_per_second"]) / base[pre]
        rows.append([name, f"{max(row['images_per_second']):.0f}", f"{row['share_of_stock']:.2f}"])
    write_result(
        "timm_train",
        {
            "benchmark": "timm_train",
            "command": command_line("benchmarks.timm_train"),
            "data": f"{args.data_name}, {count} training images, one epoch at 32 px",
            "seeds": [0],
            "environment": environment(),
            "settings": {"model": args.model, "batch_size": 128, "workers": 1, "repeats": args.repeats},
            "results": results,
        },
    )
    print(markdown_table(rows))


if __name__ == "__main__":
    main()
