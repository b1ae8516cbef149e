"""Every flag of a real timm train.py that touches its images or labels, with and without NFA.

    python -m benchmarks.timm.flags --train-py main=path/to/timm/train.py --data-dir DIR

Claim: every case works, is off, or is refused with a message, and NFA at p 0 is the stock training
to the last bit. Data: 30 training images of each of ten classes; seed 0.

Each case (`benchmarks.timm.cases`) is one epoch, five times: the stock training, NFA at p 0 (which
has to give the stock loss), NFA at a p so small that no image is augmented, NFA on batches and NFA
in the workers (which have to differ from that). What train.py's parser knows and no case names is
listed as well. Of the first train.py all cases run, of further ones (other versions of it) a few.
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
import shlex
import subprocess
import sys
import tempfile
import warnings
from collections import OrderedDict
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from benchmarks.core.common import ROOT, command_line, environment, markdown_table, write_result
from benchmarks.timm.cases import CASES, Case, flag_names, named_flags
from benchmarks.timm.script import known_flags, load, subset

CLAIM = "every case works, is off, or is refused with a message; p 0 is the stock training to the last bit"
PER_CLASS = 30
RANKS_SECONDS, RANKS_TRIES = 120, 4
NFA = ["--aug", "nfa-s0.5-k8-p1", "--nfa-flow", "linear"]
PLACES = {"batch": [], "dataset": ["--nfa-place", "dataset"]}
HOWS = {
    "stock": [],
    "p0": ["--aug", "nfa-p0"],
    "idle": ["--aug", "nfa-p0.000000001"],
    **{place: NFA + flags for place, flags in PLACES.items()},
}
FLAGS = shlex.split(
    "--num-classes 10 --device cpu --seed 0 --lr 0.01 --log-interval 1 --workers 1 --checkpoint-hist 1"
)
DEFAULTS = {"--model": "test_resnet", "--batch-size": "50", "--epochs": "1", "--img-size": "32"}


def parse() -> argparse.Namespace:
    """Parses the command line; `scripts` is a list of (version, path)."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.timm.flags", description=__doc__.split("\n")[0]
    )
    add = parser.add_argument
    add("--train-py", nargs="+", required=True, metavar="VERSION=FILE")
    tree = "ImageFolder tree of ten classes with train/ and val/"
    add("--data-dir", type=Path, required=True, help=tree)
    add("--data-name", default="CIFAR-10")
    args = parser.parse_args()
    args.scripts = [item.partition("=")[::2] for item in args.train_py]
    if any(not Path(path).is_file() for _, path in args.scripts):
        parser.error(f"--train-py takes VERSION=FILE, got {' '.join(args.train_py)}")
    return args


def run_here(train_py: Path, flags: list[str]) -> dict[str, Any]:
    """Runs one training in this process; returns its losses, or how it ended."""
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
        last = said.getvalue().strip().splitlines()[-1] if isinstance(e.code, int) else e.code
        return {"refused": f"{last}"}
    except Exception as e:  # the case's outcome
        return {"error": f"{type(e).__name__}: {e}".splitlines()[0]}
    finally:
        sys.argv, sys.path[:] = argv, path
        logging.getLogger().handlers = handlers
    if not losses or not all(map(math.isfinite, losses)):
        return {"error": f"losses {losses}"}
    return {"losses": losses}


def with_losses(train_py: Path, flags: list[str], losses: list[float]) -> ModuleType:
    """Loads the script; its epochs add their losses to `losses`."""
    module = load(train_py, flags)
    train_one_epoch = module.train_one_epoch

    def kept(*args, **kwargs):
        metrics = train_one_epoch(*args, **kwargs)
        losses.append(float(metrics["loss"]))
        return metrics

    module.train_one_epoch = kept
    return module


def rank() -> None:
    """Runs ``train.py FLAGS`` as one process of torchrun, on the CPU, which its DistributedDataParallel does not foresee."""
    parallel = torch.nn.parallel.DistributedDataParallel
    init = parallel.__init__
    parallel.__init__ = lambda self, *args, device_ids=None, **kwargs: init(self, *args, **kwargs)
    sys.argv, losses = sys.argv[1:], []
    module = with_losses(Path(sys.argv[0]), sys.argv, losses)
    # its workers would be forked beside the threads of torch.distributed, where they hang now and then, NFA or not
    module.validate = lambda *args, **kwargs: OrderedDict(loss=0.0, top1=0.0, top5=0.0)
    module.main()
    if os.environ["RANK"] == "0":
        print(f"LOSSES {json.dumps(losses)}", flush=True)


def run_ranks(train_py: Path, flags: list[str]) -> dict[str, Any]:
    """Runs one training of two processes under torchrun; returns the losses of the first, or how it ended.

    It is tried again where workers hang that were forked beside the threads of torch.distributed.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".py") as script:
        script.write("from benchmarks.timm.flags import rank; rank()")
        script.flush()
        run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
        code, text = communicate([*run, "2", script.name, str(train_py), *flags])
    if code is None:
        return {"error": f"no end in {RANKS_SECONDS} seconds, {RANKS_TRIES} times"}
    if code:
        ends = [line for line in text.splitlines() if re.search(r"^error: |Error: |error: ", line)]
        refused = any(line.startswith("error: ") for line in ends)
        return {"refused" if refused else "error": (ends or [text[-300:]])[-1]}
    return {"losses": json.loads(re.search(r"^LOSSES (.*)$", text, re.M)[1])}


def communicate(command: list[str]) -> tuple[int | None, str]:
    """Runs a command until it ends in time; returns its exit status, None where it never did, and what it said."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for _ in range(RANKS_TRIES):
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env
        )
        try:
            text, _ = process.communicate(timeout=RANKS_SECONDS)
            return process.returncode, text
        except subprocess.TimeoutExpired:
            process.terminate()  # torchrun then ends the processes that it has started
            process.communicate()
    return None, ""


def run_case(case: Case, train_py: Path, data: str, prefetcher: bool) -> dict[str, Any]:
    """Runs the five trainings of a case."""
    words = case.flags.split()
    found = {}
    for how, nfa in HOWS.items():
        with tempfile.TemporaryDirectory() as out:
            flags = ["--data-dir", data, "--output", out, *FLAGS]
            for name, value in DEFAULTS.items():
                other = "--input-size" if name == "--img-size" else name  # which sets it too
                if name not in words and other not in words:
                    flags += [name, value]
            flags += [*words, *["--no-prefetcher"] * (not prefetcher), *nfa]
            found[how] = (run_ranks if case.distributed else run_here)(train_py, flags)
    return found


def verdict(found: dict[str, Any], place: str) -> str:
    """Returns works, off, refused, not in stock timm, or what is wrong."""
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
    """Runs the cases whose flags a train.py knows, with the prefetcher and without."""
    known = known_flags(train_py)
    wanted = [c for c in CASES if (all_cases or c.few) and flag_names(c.flags) <= known]
    rows = []
    for case in wanted:
        for prefetcher in (True, False):
            found = run_case(case, train_py, data, prefetcher)
            row = {"flags": case.flags, "note": case.note, "prefetcher": prefetcher, "runs": found}
            row |= {place: verdict(found, place) for place in PLACES}
            how = f"{case.flags}{'' if prefetcher else ' --no-prefetcher'}".strip() or "no flags"
            print(f"{name}, {how}: {row['batch']}; {row['dataset']}", flush=True)
            rows.append(row)
    return {"train_py": name, "cases": rows, "not_run": sorted(known - named_flags())}


def failures(results: list[dict[str, Any]]) -> int:
    """Counts the places of all cases that fail."""
    rows = [row for version in results for row in version["cases"]]
    return sum(row[place].startswith("FAILS") for row in rows for place in PLACES)


def table(results: list[dict[str, Any]]) -> list[list[str]]:
    """Returns cells of the first version's cases, the header first."""
    cells = [["flags of train.py", "NFA on batches", "NFA in the workers", ""]]
    for case in CASES:
        own = {r["prefetcher"]: r for r in results[0]["cases"] if r["flags"] == case.flags}
        if own:
            shown = f"`{case.flags}`" if case.flags else "none"
            cells.append([shown, _joined(own, "batch"), _joined(own, "dataset"), case.note])
    return cells


def _joined(own: dict[bool, dict[str, Any]], place: str) -> str:
    with_, without = (own[p][place] if p in own else "-" for p in (True, False))
    return with_ if with_ == without else f"{with_}; with --no-prefetcher {without}"


def main() -> int:
    args = parse()
    with tempfile.TemporaryDirectory() as data:
        count = subset(args.data_dir, Path(data), PER_CLASS)
        results = [
            run_version(name, Path(path), data, i == 0)
            for i, (name, path) in enumerate(args.scripts)
        ]
    write_result(
        "timm_matrix",
        {
            "benchmark": "timm_matrix",
            "claim": CLAIM,
            "command": command_line("benchmarks.timm.flags"),
            "data": f"{args.data_name}, {count} training images",
            "seeds": [0],
            "environment": environment(),
            "results": results,
        },
    )
    print(markdown_table(table(results)))
    return 1 if failures(results) else 0


if __name__ == "__main__":
    sys.exit(main())
