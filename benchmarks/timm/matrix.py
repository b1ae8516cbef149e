"""Every flag of a real timm train.py that touches its images or labels, with and without NFA.

Each case is one epoch on a few images, five times: the stock training, NFA at p 0 (which has to give the stock loss to the
last bit), NFA at a p so small that no image is augmented, NFA on batches and NFA in the workers (which have to differ from
that). What train.py's parser knows and no case names is listed as well.

    python -m benchmarks.timm.matrix --train-py main=path/to/timm/train.py --data-dir DIR

train.py comes with timm's repository, not with its package. Of the first all cases run, of further ones (other versions of
it) a few.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import math
import os
import re
import subprocess
import sys
import tempfile
import warnings
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from benchmarks.core.common import ROOT, command_line, environment, markdown_table, write_result
from benchmarks.timm.train import load, subset
from timm_nfaug import train as launcher

PER_CLASS = 30
RANKS_SECONDS, RANKS_TRIES = 120, 4
NFA = ["--aug", "nfa-s0.5-k8-p1"]
PLACES = {"batch": [], "dataset": ["--nfa-place", "dataset"]}


@dataclass
class Case:
    flags: str  # as one would type them
    note: str = ""  # what changes its meaning with NFA
    few: bool = False  # also of further versions
    distributed: bool = False


CASES = [
    Case("", few=True),
    Case("--aa rand-m9-mstd0.5-inc1", "runs before NFA"),
    Case("--aa augmix-m5-w4-d2", "runs before NFA"),
    Case(
        "--color-jitter 0.4 --color-jitter-prob 0.8 --grayscale-prob 0.2 --gaussian-blur-prob 0.2",
        "run before NFA",
    ),
    Case(
        "--scale 0.5 1 --ratio 0.8 1.2 --hflip 0.5 --vflip 0.5 --train-interpolation bicubic",
        "run before NFA",
    ),
    Case("--train-crop-mode rkrc", "runs before NFA"),
    Case("--no-aug", "NFA is off too"),
    Case(
        "--mixup 0.8",
        "leaves the loader's workers for the main process and runs after NFA",
        few=True,
    ),
    Case(
        "--mixup 0.8 --cutmix 1.0 --mixup-prob 0.8 --mixup-switch-prob 0.3 --mixup-mode pair",
        "as --mixup",
    ),
    Case("--cutmix 1.0 --mixup-mode elem", "as --mixup"),
    Case("--cutmix-minmax 0.2 0.8", "as --mixup"),
    Case(
        "--mixup 0.8 --mixup-mode half",
        "exists only in timm's collate function, before which no NFA can be",
    ),
    Case(
        "--mixup 0.8 --mixup-off-epoch 1 --epochs 2",
        "works with the prefetcher and workers too, where stock timm mixes on",
    ),
    Case(
        "--reprob 0.5 --remode pixel --recount 2",
        "runs after NFA, and after mixup with the prefetcher; on the batch, where stock timm erases image by image without it",
        few=True,
    ),
    Case("--reprob 0.5 --mixup 0.8", "as both"),
    Case("--smoothing 0.2"),
    Case("--bce-loss --bce-target-thresh 0.2 --mixup 0.2", "as --mixup"),
    Case(
        "--aug-splits 3 --jsd-loss --aa rand-m9-mstd0.5-inc1",
        "NFA leaves the first, clean split alone",
        few=True,
    ),
    Case(
        "--aug-splits 3 --split-bn --resplit --reprob 0.5",
        "NFA and erasing leave the first split alone",
    ),
    Case(
        "--aug-repeats 3",
        "two processes; ranks and repeats are moved differently",
        distributed=True,
    ),
    Case("--dist-bn reduce", "two processes", distributed=True, few=True),
    Case("--batch-size 25 --grad-accum-steps 2"),
    Case("--channels-last"),
    Case("--amp --amp-dtype bfloat16"),
    Case("--model-dtype bfloat16", "images are augmented in float32 and come back as bfloat16"),
    Case("--torchcompile aot_eager", "compiles the model; NFA stays outside"),
    Case("--model-ema --clip-grad 1.0"),
    Case(
        "--img-size 96",
        "larger than the flow's images: the change is made at the flow's size and brought up",
    ),
    Case("--input-size 3 40 56", "as --img-size"),
    Case(
        "--in-chans 1 --input-img-mode L",
        "linear takes any number of channels, other flows their own",
    ),
    Case("--mean 0.1 0.2 0.3 --std 0.3 0.2 0.4 --crop-pct 0.9"),
    Case(
        "--train-img-sizes 32 48 --train-size-schedule progressive --epochs 2",
        "as --img-size, batch by batch",
    ),
    Case("--use-multi-epochs-loader --epochs 2", "hides its epochs from the workers"),
    Case("--epoch-repeats 2"),
    Case("--start-epoch 1 --epochs 2", "draws the numbers of its own epochs"),
    Case("--worker-seeding part --workers 2 --pin-mem"),
    Case(
        "--naflex-loader --model naflexvit_base_patch16_gap --naflex-train-seq-lens 16 --naflex-max-seq-len 16",
        "its batches are patches",
    ),
]
# flags that every case has without naming them
ALSO = (
    "--data-dir",
    "--no-prefetcher",
    "--seed",
    "--lr",
    "--device",
    "--output",
    "--log-interval",
    "--checkpoint-hist",
)


def flag_names(text: str) -> set[str]:
    return set(re.findall(r"--[a-z][a-z-]*", text))


def run_here(train_py: Path, flags: list[str]) -> dict[str, Any]:
    """One training in this process: its losses and what it said, or how it ended."""
    said = io.StringIO()
    losses: list[float] = []
    argv, path = sys.argv, list(sys.path)
    sys.argv = [str(train_py), *flags]
    handlers = list(logging.getLogger().handlers)
    try:
        with (
            contextlib.redirect_stdout(said),
            contextlib.redirect_stderr(said),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            with_losses(train_py, flags, losses).main()
    except SystemExit as e:
        return {
            "refused": f"{said.getvalue().strip().splitlines()[-1] if isinstance(e.code, int) else e.code}"
        }
    except Exception as e:  # the case's outcome
        return {"error": f"{type(e).__name__}: {e}".splitlines()[0]}
    finally:
        sys.argv, sys.path[:] = argv, path
        logging.getLogger().handlers = handlers
    if not losses or not all(map(math.isfinite, losses)):
        return {"error": f"losses {losses}"}
    return {"losses": losses}


def with_losses(train_py: Path, flags: list[str], losses: list[float]) -> ModuleType:
    """The script, whose epochs add their losses to `losses`."""
    module = load(train_py, flags)
    train_one_epoch = module.train_one_epoch

    def kept(*args, **kwargs):
        metrics = train_one_epoch(*args, **kwargs)
        losses.append(float(metrics["loss"]))
        return metrics

    module.train_one_epoch = kept
    return module


def rank() -> None:
    """One process of torchrun: ``train.py FLAGS``, on the CPU, which its DistributedDataParallel does not foresee."""
    init = torch.nn.parallel.DistributedDataParallel.__init__
    torch.nn.parallel.DistributedDataParallel.__init__ = lambda self, *a, device_ids=None, **k: (
        init(self, *a, **k)
    )
    sys.argv, losses = sys.argv[1:], []
    module = with_losses(Path(sys.argv[0]), sys.argv, losses)
    # its workers would be forked beside the threads of torch.distributed, where they hang now and then, NFA or not
    module.validate = lambda *args, **kwargs: OrderedDict(loss=0.0, top1=0.0, top5=0.0)
    module.main()
    if os.environ["RANK"] == "0":
        print(f"LOSSES {json.dumps(losses)}", flush=True)


def run_ranks(train_py: Path, flags: list[str]) -> dict[str, Any]:
    """One training of two processes under torchrun: the losses of the first.

    Where workers hang that were forked beside the threads of torch.distributed, it is tried again.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".py") as script:
        script.write("from benchmarks.timm.matrix import rank; rank()")
        script.flush()
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            "2",
            script.name,
            train_py,
        ]
        for _ in range(RANKS_TRIES):
            process = subprocess.Popen(
                [*command, *flags], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            )  # fmt: skip
            try:
                text, _ = process.communicate(timeout=RANKS_SECONDS)
                break
            except subprocess.TimeoutExpired:
                process.terminate()  # torchrun then ends the processes that it has started
                process.communicate()
        else:
            return {"error": f"no end in {RANKS_SECONDS} seconds, {RANKS_TRIES} times"}
    if process.returncode:
        ends = [line for line in text.splitlines() if re.search(r"^error: |Error: |error: ", line)]
        return {
            "refused" if any(line.startswith("error: ") for line in ends) else "error": (
                ends or [text[-300:]]
            )[-1]
        }
    return {"losses": json.loads(re.search(r"^LOSSES (.*)$", text, re.M)[1])}


def run_case(
    case: Case, train_py: Path, known: set[str], data: str, prefetcher: bool
) -> dict[str, Any] | None:
    """What each of the five trainings gave; None where this train.py does not know a flag."""
    words = case.flags.split()
    if flag_names(case.flags) - known:
        return None
    found = {}
    for how in ("stock", "p0", "idle", *PLACES):
        with tempfile.TemporaryDirectory() as out:
            flags = [
                "--data-dir", data, "--output", out, "--num-classes", "10", "--device", "cpu", "--seed", "0", "--lr", "0.01",
                "--log-interval", "1", "--workers", "1", "--checkpoint-hist", "1",
            ]  # fmt: skip
            defaults = {
                "--model": "test_resnet",
                "--batch-size": "50",
                "--epochs": "1",
                "--img-size": "32",
            }
            if "--input-size" in words:
                del defaults["--img-size"]
            flags += [
                v for k, value in defaults.items() if k not in words for v in (k, value)
            ] + words
            if not prefetcher:
                flags.append("--no-prefetcher")
            if how == "p0":
                flags += ["--aug", "nfa-p0"]
            elif how == "idle":
                flags += ["--aug", "nfa-p0.000000001"]
            elif how != "stock":
                flags += NFA + PLACES[how]
            found[how] = (run_ranks if case.distributed else run_here)(train_py, flags)
    return found


def verdict(found: dict[str, Any], place: str) -> str:
    """works, off, refused, not in stock timm, or what is wrong."""
    stock, p0, new = found["stock"], found["p0"], found[place]
    if "losses" not in stock:
        return "refused" if "refused" in new else "not in stock timm either"
    if "refused" in new:
        return "refused"
    if "losses" not in new:
        return f"FAILS: {new['error']}"
    if p0.get("losses") != stock["losses"]:
        return "FAILS: p 0 is not the stock training"
    if found["idle"].get("losses") == new["losses"]:
        return "off" if new["losses"] == stock["losses"] else "FAILS: no image was augmented"
    return "works"


def run_version(name: str, train_py: Path, data: str, all_cases: bool) -> dict[str, Any]:
    module = launcher.load_script(train_py)
    known = {
        o for action in module.parser._actions for o in action.option_strings if o.startswith("--")
    }
    rows = []
    for case in CASES:
        if not (all_cases or case.few):
            continue
        for prefetcher in (True, False):
            found = run_case(case, train_py, known, data, prefetcher)
            if found is None:
                continue
            row = {"flags": case.flags, "note": case.note, "prefetcher": prefetcher, "runs": found}
            row |= {place: verdict(found, place) for place in PLACES}
            how = f"{case.flags}{'' if prefetcher else ' --no-prefetcher'}".strip() or "no flags"
            print(f"{name}, {how}: {row['batch']}; {row['dataset']}", flush=True)
            rows.append(row)
    named = flag_names(" ".join(c.flags for c in CASES)) | set(ALSO)
    return {"train_py": name, "cases": rows, "not_run": sorted(known - named)}


def table(results: list[dict[str, Any]]) -> list[list[str]]:
    """Cells of the first version's cases, the header first."""
    cells = [["flags of train.py", "NFA on batches", "NFA in the workers", ""]]
    rows = results[0]["cases"]
    for case in CASES:
        own = [r for r in rows if r["flags"] == case.flags]
        if not own:
            continue

        def joined(place, own=own):
            with_, without = (
                next((r[place] for r in own if r["prefetcher"] == p), "-") for p in (True, False)
            )
            return with_ if with_ == without else f"{with_}; with --no-prefetcher {without}"

        cells.append(
            [
                f"`{case.flags}`" if case.flags else "none",
                joined("batch"),
                joined("dataset"),
                case.note,
            ]
        )
    return cells


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.timm.matrix", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--train-py", nargs="+", required=True, metavar="VERSION=FILE")
    parser.add_argument(
        "--data-dir",
        type=Path,
        required=True,
        help="ImageFolder tree of ten classes with train/ and val/",
    )
    parser.add_argument("--data-name", default="CIFAR-10 (JPEG)")
    args = parser.parse_args()
    scripts = [item.partition("=")[::2] for item in args.train_py]
    if any(not Path(path).is_file() for _, path in scripts):
        parser.error(f"--train-py takes VERSION=FILE, got {' '.join(args.train_py)}")
    with tempfile.TemporaryDirectory() as data:
        count = subset(args.data_dir, Path(data), PER_CLASS)
        results = [
            run_version(name, Path(path), data, i == 0) for i, (name, path) in enumerate(scripts)
        ]
    write_result(
        "timm_matrix",
        {
            "benchmark": "timm_matrix",
            "claim": "every case works, is off, or is refused with a message; p 0 is the stock training to the last bit",
            "command": command_line("benchmarks.timm.matrix"),
            "data": f"{args.data_name}, {count} training images",
            "seeds": [0],
            "environment": environment(),
            "results": results,
        },
    )
    print(markdown_table(table(results)))
    wrong = [
        r
        for version in results
        for r in version["cases"]
        for place in PLACES
        if r[place].startswith("FAILS")
    ]
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
