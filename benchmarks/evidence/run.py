"""Fills a cell of the evidence: tunes crop and flip, searches every arm, reports on the test images.

    python -m benchmarks.evidence.run --cell cifar10-50 --data-dir CIFAR
    python -m benchmarks.evidence.run --cell finetune-cifar10-25 --data-dir CIFAR --weights FILE

CIFAR is an ImageFolder tree with train/ and val/. Runs are appended to benchmarks/results/evidence.jsonl
and those on record are skipped, so the same command resumes where it stopped. Searches start once
the tuning is complete, reports of an arm once its search is.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

import torch
from torch.multiprocessing import get_context

from benchmarks.cifar.classifier import test, train
from benchmarks.core import records
from benchmarks.core.common import command_line, environment, flow_title
from benchmarks.evidence.arms import ENTRIES, LINEAR, Flow
from benchmarks.evidence.cells import CELLS, SEARCH_SEED, Cell
from benchmarks.evidence.choices import chosen, tuned_recipe
from benchmarks.evidence.data import load, training_images
from timm_nfaug._utils.processes import end_with_parent
from timm_nfaug.hub import bundled_flows

SUITE = "evidence"
STAGES = ("tune", "search", "report")
_worker: dict[str, Any] = {}  # of a process that trains: args, cell and images


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    cell, path = CELLS[args.cell], args.record or records.suite_file(SUITE)
    end, slowest, late = time.time() + args.time_limit, 0.0, False
    running: dict[Future, dict] = {}
    with ProcessPoolExecutor(args.jobs, get_context("spawn"), start_worker, (args,)) as pool:
        while True:
            known = {records.key(run) for run in running.values()}
            runs = missing(cell, args, records.read(path))
            pending = [run for run in runs if records.key(run) not in known]
            late |= bool(pending) and time.time() + slowest > end
            while pending and not late and len(running) < args.jobs:
                run = pending.pop(0)
                running[pool.submit(execute, run)] = run
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                del running[future]
                run = future.result()
                slowest = max(slowest, run["seconds"] + run["flow_seconds"])
                records.append(run, path)
                show(run)
    if late:
        print("time limit reached; the same command resumes")
    return 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.evidence.run", description="Fills a cell of the evidence."
    )
    add = parser.add_argument
    add("--cell", required=True, choices=CELLS)
    add("--data-dir", required=True, type=Path, help="ImageFolder tree with train/ and val/")
    add("--arms", nargs="+", choices=ENTRIES, metavar="ARM", help="some of the cell's arms")
    add("--stages", nargs="+", choices=STAGES, default=STAGES)
    add("--jobs", type=int, default=1, help="trainings at once, each in a process of its own")
    add(
        "--flows",
        type=Path,
        help="directory with the flows that do not come with the package, NAME/flow",
    )
    add("--autoencoder", default="", help="of the arms that move latents, e.g. FILE.py:FUNCTION")
    add("--weights", type=Path, help="file with the pretrained weights that the cell names")
    add("--device", default="cpu")
    add("--threads", type=int, default=1)
    add("--time-limit", type=float, default=float("inf"), help="seconds")
    add("--record", type=Path, help="a file of runs; default: benchmarks/results/evidence.jsonl")
    args = parser.parse_args(argv)
    cell = CELLS[args.cell]
    if getattr(cell.recipe, "weights", "") and not args.weights:
        parser.error(
            f"{cell.name} starts from {cell.recipe.weights}: give its file, --weights FILE"
        )
    args.arms = args.arms or list(cell.arms)
    lacking = {arm: text for arm in args.arms if (text := lacks(cell, arm, args))}
    for arm, text in lacking.items():
        print(f"{arm} is left out: {text}")
    args.arms = [arm for arm in args.arms if arm not in lacking]
    args.command = command_line("benchmarks.evidence.run", argv)
    return args


def start_worker(args: argparse.Namespace) -> None:
    """Loads the images of the cell, once for all trainings of a process."""
    end_with_parent()
    torch.set_num_threads(args.threads)
    cell = CELLS[args.cell]
    pool, splits = load(cell, args.data_dir)
    _worker.update(args=args, cell=cell, pool=pool, splits=splits)


def missing(cell: Cell, args: argparse.Namespace, runs: list[dict]) -> list[dict]:
    """The runs that are not on record and can be done now: the tuning, then arm by arm its search and its report."""
    done = {records.key(run) for run in runs}

    def lacking(planned: Iterator[dict]) -> list[dict]:
        return [run for run in planned if records.key(run) not in done]

    if "tune" in args.stages and (found := lacking(tune(cell))):
        return found
    found = []
    for arm in args.arms:
        if "search" in args.stages:
            found += lacking(search(cell, arm, runs))
        if "report" in args.stages:
            found += lacking(report(cell, arm, runs))
    return found


def tune(cell: Cell) -> Iterator[dict]:
    """Crop and flip with every recipe of the tuning."""
    if len(cell.tuning) > 1 and not cell.tuned_in:
        for settings in cell.tuning:
            recipe = dataclasses.replace(cell.recipe, **settings)
            yield describe(cell, "crop-flip", recipe, {}, SEARCH_SEED, "held")


def search(cell: Cell, arm: str, runs: list[dict]) -> Iterator[dict]:
    """An arm with each setting of its grid."""
    if len(ENTRIES[arm].grid) > 1 and not cell.tuned_in:
        recipe = tuned_recipe(runs, cell)
        for settings in ENTRIES[arm].grid:
            yield describe(cell, arm, recipe, settings, SEARCH_SEED, "held")


def report(cell: Cell, arm: str, runs: list[dict]) -> Iterator[dict]:
    """An arm with its chosen setting and every seed; none before its search is complete."""
    try:
        settings, recipe = chosen(runs, cell, arm), tuned_recipe(runs, cell)
    except LookupError:
        return
    for seed in cell.seeds:
        yield describe(cell, arm, recipe, settings, seed, "test")


def describe(
    cell: Cell, arm: str, recipe: Any, settings: dict, seed: int, split: str
) -> dict[str, Any]:
    """The part of a record that identifies a run."""
    flow = flow_of(cell, arm)
    values = {
        "cell": cell.name,
        "per_class": cell.per_class,
        **dataclasses.asdict(recipe),
        **settings,
    }
    values["epochs"] = round(recipe.epochs * ENTRIES[arm].longer)
    if flow:
        values["flow_trained_on"] = flow.trained_on
    return {
        "suite": SUITE, "data": cell.data, "split": split, "fraction": cell.fraction, "arm": arm,
        "seed": seed, "flow": flow_title(flow.name) if flow else None, "settings": values,
    }  # fmt: skip


def flow_of(cell: Cell, arm: str) -> Flow | None:
    return cell.flows[arm] if ENTRIES[arm].flow else None


def found_flow(cell: Cell, arm: str, args: argparse.Namespace) -> Flow | None:
    """The flow of an arm with where it lies on this machine."""
    if (flow := flow_of(cell, arm)) is None:
        return None
    own = args.flows / flow.name / "flow" if args.flows else None
    where = str(own) if own and own.is_dir() else flow.name
    return dataclasses.replace(flow, where=where, autoencoder=flow.autoencoder and args.autoencoder)


def lacks(cell: Cell, arm: str, args: argparse.Namespace) -> str:
    """What an arm needs and this command does not give; nothing where it can run."""
    if not (flow := found_flow(cell, arm, args)):
        return ""
    if flow_of(cell, arm).autoencoder and not flow.autoencoder:
        return "it moves latents: give --autoencoder"
    bundled = flow.name == LINEAR or flow.name in bundled_flows()
    if not bundled and not Path(flow.where).is_dir():
        return f"no {flow.name}/flow in --flows; train it as docs/evidence.md says"
    return ""


def execute(run: dict) -> dict:
    """Trains and tests one classifier, and completes its record."""
    args, cell, pool, splits = (_worker[k] for k in ("args", "cell", "pool", "splits"))
    seed, values, entry = run["seed"], run["settings"], ENTRIES[run["arm"]]
    names = {f.name for f in dataclasses.fields(cell.recipe)}
    recipe = dataclasses.replace(cell.recipe, **{k: v for k, v in values.items() if k in names})
    if args.weights:
        recipe = dataclasses.replace(recipe, weights=str(args.weights))
    data = training_images(pool, cell, seed).to(torch.device(args.device))
    start = time.perf_counter()
    settings = {k: values[k] for k in entry.grid[0]}
    arm = entry.make(data, settings, found_flow(cell, run["arm"], args))
    fit = time.perf_counter() - start
    model, cost = train(data, arm, recipe, seed)
    corrupted = cell.corrupted if run["split"] == "test" else 0
    images = splits[run["split"]].to(torch.device(args.device))
    e = environment()
    where = e["machine"]["gpu"] if args.device.startswith("cuda") else e["machine"]["cpu"]
    run |= {
        "metrics": test(model, images, recipe.bf16, corrupted, views=recipe.views),
        "training_images": len(data), **cost, "flow_seconds": fit,
        "device": f"{where}, {args.threads} threads", "versions": e["versions"], "commit": e["commit"],
        "dirty": e["dirty"], "date": e["date"], "command": args.command,
    }  # fmt: skip
    return run


def show(run: dict) -> None:
    m, s = run["metrics"], run["settings"]
    setting = " ".join(f"{k} {s[k]:g}" for k in ENTRIES[run["arm"]].grid[0])
    print(
        f"{s['cell']} {run['arm']} [{setting}] {run['split']} seed {run['seed']}, {s['epochs']} epochs: "
        f"top-1 {m['top1']:.2f}, nll {m['nll']:.3f}, ece {m['ece']:.1f}, {run['seconds']:.0f} s",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
