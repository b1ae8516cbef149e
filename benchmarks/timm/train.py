"""A real timm train.py with and without ``--aug nfa``: images/s of its loader alone and of its training.

Claim: none beforehand; the price of each way to augment, for a small network on small images and a larger one on larger images.
Each row is a process of its own that passes over the loader (once to start the workers, once timed), then trains (the same).
train.py comes with timm's repository, not with its package, so its path is an argument.

    python -m benchmarks.timm.train --train-py path/to/timm/train.py --data-dir DIR --photos-dir DIR
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import OrderedDict
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks.core.common import ROOT, command_line, environment, markdown_table, write_result
from timm_nfaug import train as launcher
from timm_nfaug.integration.pillow import guard_posterize

RANDAUGMENT = ["--aa", "rand-m9-mstd0.5-inc1"]
DEEP = "conv_p4_small.cifar10_jpeg"


NFA = [
    "--aug",
    "nfa-s1-k32-p0.5-lnone",
]  # modes of all images: a few images of each of many classes have none
ARMS = {
    "stock": [],
    "RandAugment": RANDAUGMENT,
    "NFA linear": NFA,
    "NFA linear, in the workers": [*NFA, "--nfa-place", "dataset"],
    "RandAugment and NFA linear": [*RANDAUGMENT, *NFA],
    f"NFA {DEEP}": [*NFA, "--nfa-flow", DEEP, "--nfa-fit"],
}


def subset(data_dir: Path, out: Path, per_class: int, classes: int | None = None) -> int:
    """An ImageFolder of links to the first images of each of the first classes; returns the number for training."""
    count = 0
    for split, n in (("train", per_class), ("val", max(1, per_class // 10))):
        for folder in sorted(p for p in (data_dir / split).iterdir() if p.is_dir())[:classes]:
            (out / split / folder.name).mkdir(parents=True)
            for image in sorted(folder.iterdir())[:n]:
                (out / split / folder.name / image.name).symlink_to(image.resolve())
                count += split == "train"
    return count


def load(train_py: Path, flags: list[str]) -> ModuleType:
    """A train.py as a module, with the launcher where the flags ask for NFA; RandAugment is guarded in either."""
    module = launcher.load_script(train_py)
    guard_posterize()
    if "--aug" in flags:
        launcher.install(module)
    return module


def drive() -> None:
    """In the process of a row: ``train.py FLAGS``, whose four epochs become two of the loader alone and two of training."""
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
        rates["loader" if epoch < 2 else "training"] = images / (
            time.perf_counter() - start
        )  # the second pass stays
        if epoch == 3:
            print("RATES " + json.dumps(rates | {"loss": float(metrics["loss"])}))
        return metrics

    module.train_one_epoch = timed
    module.validate = lambda *args, **kwargs: OrderedDict(loss=0.0, top1=0.0, top5=0.0)
    module.main()


def row(train_py: Path, data: Path, case: dict[str, Any], flags: list[str]) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as out:
        done = subprocess.run(
            [sys.executable, "-c", "from benchmarks.timm.train import drive; drive()", str(train_py), "--data-dir", str(data),
             "--model", case["model"], "--img-size", str(case["size"]), "--num-classes", str(case["classes"]), "--epochs", "4",
             "-b", str(case["batch"]), "--workers", "1", "--device", "cpu", "--amp", "--amp-dtype", "bfloat16", "--lr", "0.01",
             "--log-interval", "1000", "--seed", "0", "--color-jitter", "0", "--output", out, *flags],  # timm drops it with --aa
            capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
    line = next((s for s in done.stdout.splitlines() if s.startswith("RATES ")), None)
    if done.returncode or line is None:
        raise SystemExit(f"{train_py} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return json.loads(line.removeprefix("RATES "))


def table(results: list[dict[str, Any]]) -> list[list[str]]:
    cells = [["", "loader alone, images/s", "over stock", "training, images/s", "over stock"]]
    for case in results:
        cells.append(
            [
                f"**{case['model']}, {case['size']} px, batch {case['batch']}, {case['data']}**",
                "",
                "",
                "",
                "",
            ]
        )
        stock = case["rows"]["stock"]
        for name, rates in case["rows"].items():
            cells.append([name])
            for what in ("loader", "training"):
                ratio = statistics.median(
                    a / b for a, b in zip(rates[what], stock[what], strict=True)
                )
                cells[-1] += [f"{statistics.median(rates[what]):.0f}", f"{ratio:.2f}"]
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.timm.train", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--train-py", type=Path, required=True)
    parser.add_argument(
        "--data-dir",
        type=Path,
        required=True,
        help="ImageFolder tree of CIFAR-10's classes, train/ and val/",
    )
    parser.add_argument("--data-name", default="CIFAR-10 (JPEG)")
    parser.add_argument(
        "--photos-dir", type=Path, required=True, help="the same of larger images, any classes"
    )
    parser.add_argument("--photos-name", default="ImageNet photographs")
    parser.add_argument("--images", type=int, nargs=2, default=[2560, 256], help="a pass, of each")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    cases = [
        {"model": "resnet18", "size": 32, "batch": 128, "classes": 10, "from": args.data_dir, "data": args.data_name},
        {"model": "vit_small_patch16_224", "size": 224, "batch": 32, "classes": 1000, "from": args.photos_dir,
         "data": args.photos_name},
    ]  # fmt: skip
    results = []
    for case, images in zip(cases, args.images):
        per_class = max(1, images // case["classes"])
        with tempfile.TemporaryDirectory() as folder:
            count = subset(case.pop("from"), Path(folder), per_class, min(images, case["classes"]))
            rows: dict[str, dict[str, list[float]]] = {name: {} for name in ARMS}
            for repeat in range(args.repeats):
                for name, flags in ARMS.items():
                    found = row(args.train_py, Path(folder), case, flags)
                    print(f"{case['model']}, {repeat}, {name}: {found}", flush=True)
                    for what, value in found.items():
                        rows[name].setdefault(what, []).append(value)
        results.append({**case, "images": count, "rows": rows})
    write_result(
        "timm_train",
        {
            "benchmark": "timm_train",
            "command": command_line("benchmarks.timm.train"),
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
