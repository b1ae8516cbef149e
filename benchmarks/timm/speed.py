"""Images a second of a real timm train.py with and without ``--aug nfa``: its loader alone, and its training.

    python -m benchmarks.timm.speed --train-py path/to/timm/train.py --data-dir DIR --photos-dir DIR

Claim: none beforehand; the price of each way to augment. Data: two folders, small images for a
small network and photographs for a larger one; seed 0, each row repeated `--repeats` times. Each
row is a process of its own that passes over the loader (once to start the workers, once timed),
then trains (the same).
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

from benchmarks.core.common import ROOT, command_line, environment, markdown_table, write_result
from benchmarks.timm.script import load, subset

RANDAUGMENT = ["--aa", "rand-m9-mstd0.5-inc1"]
DEEP = "conv_p4_small.cifar10"
# with modes of all images: the few images of each of many classes have none
NFA = ["--aug", "nfa-s1-k32-p0.5-lnone"]
LINEAR = [*NFA, "--nfa-flow", "linear"]
ARMS = {
    "stock": [],
    "RandAugment": RANDAUGMENT,
    "NFA linear": LINEAR,
    "NFA linear, in the workers": [*LINEAR, "--nfa-place", "dataset"],
    "RandAugment and NFA linear": [*RANDAUGMENT, *LINEAR],
    f"NFA {DEEP}": [*NFA, "--nfa-flow", DEEP, "--nfa-fit"],
}
FLAGS = shlex.split(
    "--epochs 4 --workers 1 --device cpu --amp --amp-dtype bfloat16 --lr 0.01 --log-interval 1000 "
    "--seed 0 --color-jitter 0"  # which timm drops with --aa
)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.timm.speed", description=__doc__.split("\n")[0]
    )
    add = parser.add_argument
    add("--train-py", type=Path, required=True)
    small = "ImageFolder tree of CIFAR-10's classes, train/ and val/"
    add("--data-dir", type=Path, required=True, help=small)
    add("--data-name", default="CIFAR-10")
    large = "the same of larger images, any classes"
    add("--photos-dir", type=Path, required=True, help=large)
    add("--photos-name", default="ImageNet photographs")
    add("--images", type=int, nargs=2, default=[2560, 256], help="a pass, of each")
    add("--repeats", type=int, default=3)
    return parser.parse_args()


def drive() -> None:
    """Runs ``train.py FLAGS`` in the process of a row: four epochs become two of the loader and two of training."""
    path, *flags = sys.argv[1:]
    sys.argv = [path, *flags]
    module = load(Path(path), flags)
    train_one_epoch = module.train_one_epoch
    rates: dict[str, float] = {}

    def timed(epoch, model, loader, *args, **kwargs):
        start, images, metrics = time.perf_counter(), 0, OrderedDict(loss=0.0)
        if epoch < 2:
            for x, _ in loader:
                images += len(x)
        else:
            metrics = train_one_epoch(epoch, model, loader, *args, **kwargs)
            images = len(loader) * loader.batch_sampler.batch_size  # drop_last: every batch is full
        # the second pass replaces the first
        rates["loader" if epoch < 2 else "training"] = images / (time.perf_counter() - start)
        if epoch == 3:
            print("RATES " + json.dumps(rates | {"loss": float(metrics["loss"])}))
        return metrics

    module.train_one_epoch = timed
    module.validate = lambda *args, **kwargs: OrderedDict(loss=0.0, top1=0.0, top5=0.0)
    module.main()


def row(train_py: Path, data: Path, case: dict[str, Any], flags: list[str]) -> dict[str, float]:
    """Runs one row in a process of its own; returns images a second of loader and training, and the last loss."""
    own = ["--data-dir", data, "--model", case["model"], "--img-size", case["size"]]
    own += ["--num-classes", case["classes"], "-b", case["batch"]]
    with tempfile.TemporaryDirectory() as out:
        code = "from benchmarks.timm.speed import drive; drive()"
        command = [sys.executable, "-c", code, train_py, *own, *FLAGS, "--output", out, *flags]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run([str(v) for v in command], capture_output=True, text=True, env=env)
    line = next((s for s in done.stdout.splitlines() if s.startswith("RATES ")), None)
    if done.returncode or line is None:
        raise SystemExit(f"{train_py} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return json.loads(line.removeprefix("RATES "))


def measure(
    case: dict[str, Any], data_dir: Path, images: int, args: argparse.Namespace
) -> dict[str, Any]:
    """Measures every arm of a network and its data, repeat by repeat."""
    rows: dict[str, dict[str, list[float]]] = {name: {} for name in ARMS}
    with tempfile.TemporaryDirectory() as folder:
        per_class, classes = max(1, images // case["classes"]), min(images, case["classes"])
        count = subset(data_dir, Path(folder), per_class, classes)
        for repeat in range(args.repeats):
            for name, flags in ARMS.items():
                found = row(args.train_py, Path(folder), case, flags)
                print(f"{case['model']}, {repeat}, {name}: {found}", flush=True)
                for what, value in found.items():
                    rows[name].setdefault(what, []).append(value)
    return {**case, "images": count, "rows": rows}


def table(results: list[dict[str, Any]]) -> list[list[str]]:
    """Returns cells, a row for each arm under a row for each network."""
    cells = [["", "loader alone, images/s", "over stock", "training, images/s", "over stock"]]
    for case in results:
        title = f"{case['model']}, {case['size']} px, batch {case['batch']}, {case['data']}"
        cells.append([f"**{title}**", *[""] * 4])
        stock = case["rows"]["stock"]
        for name, rates in case["rows"].items():
            cells.append([name])
            for what in ("loader", "training"):
                ratios = [a / b for a, b in zip(rates[what], stock[what], strict=True)]
                rate, ratio = statistics.median(rates[what]), statistics.median(ratios)
                cells[-1] += [f"{rate:.0f}", f"{ratio:.2f}"]
    return cells


def main() -> None:
    args = parse()
    small = {"model": "resnet18", "size": 32, "batch": 128, "classes": 10, "data": args.data_name}
    large = {"model": "vit_small_patch16_224", "size": 224, "batch": 32, "classes": 1000}
    large["data"] = args.photos_name
    pairs = zip((small, large), (args.data_dir, args.photos_dir), args.images, strict=True)
    results = [measure(case, folder, images, args) for case, folder, images in pairs]
    write_result(
        "timm_train",
        {
            "benchmark": "timm_train",
            "command": command_line("benchmarks.timm.speed"),
            "data": "; ".join(f"{c['images']} images of {c['data']}" for c in results),
            "seeds": [0],
            "environment": environment(),
            "settings": {"workers": 1, "repeats": args.repeats, "amp": "bfloat16"},
            "results": results,
        },
    )
    print(markdown_table(table(results)))


if __name__ == "__main__":
    main()
