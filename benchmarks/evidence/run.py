"""Fills a cell of the evidence: tunes crop and flip, searches every arm, reports on the test images.

    python -m benchmarks.evidence.run --cell cifar10-50 --data-dir CIFAR
    python -m benchmarks.evidence.run --cell finetune-cifar10-25 --data-dir CIFAR --weights FILE

CIFAR is an ImageFolder tree with train/ and val/. Runs are appended to benchmarks/results/evidence.jsonl
and those on record are skipped, so the same command resumes where it stopped. Searches start once
the tuning is complete, reports of an arm once its search is. Cells of your own images and networks:
`benchmarks.finetune`.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path

from torch.multiprocessing import get_context

from benchmarks.core import records
from benchmarks.core.common import command_line
from benchmarks.evidence.arms import ENTRIES
from benchmarks.evidence.cells import CELLS, SUITE, Cell
from benchmarks.evidence.plan import STAGES, missing, waiting
from benchmarks.evidence.work import Place, add_place, add_runs, execute, place_of, start


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    cell, place = CELLS[args.cell], place_of(args, command_line("benchmarks.evidence.run", argv))
    if args.seeds:
        cell = dataclasses.replace(cell, seeds=tuple(args.seeds))
    arms = able(cell, args.arms or cell.arms, place)
    path = args.record or records.suite_file(SUITE)
    return fill(cell, place, path, arms, args.stages, args.jobs, args.time_limit)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.evidence.run", description="Fills a cell of the evidence."
    )
    parser.add_argument("--cell", required=True, choices=CELLS)
    add_plan(parser)
    add_place(parser)
    add_runs(parser)
    args = parser.parse_args(argv)
    check_weights(parser, args)
    return args


def check_weights(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Ends the command where the cell starts from weights and none are given, or the other way round."""
    named = getattr(CELLS[args.cell].recipe, "weights", "")
    if named and not args.weights:
        parser.error(f"{args.cell} starts from {named}: give its file, --weights FILE")
    if args.weights and not named:
        parser.error(f"{args.cell} trains from scratch: drop --weights")


def add_plan(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--arms", nargs="+", choices=ENTRIES, metavar="ARM", help="some of the cell's arms")
    add("--seeds", type=int, nargs="+", help="of the report; default: the cell's")
    add("--stages", nargs="+", choices=STAGES, default=STAGES)


def able(cell: Cell, arms: Sequence[str], place: Place) -> list[str]:
    """The arms that can run here; says of the others what they lack."""
    lacking = {arm: text for arm in arms if (text := place.lacks(cell, arm))}
    for arm, text in lacking.items():
        print(f"{arm} is left out: {text}")
    return [arm for arm in arms if arm not in lacking]


def fill(
    cell: Cell, place: Place, path: Path, arms: Sequence[str], stages: Sequence[str] = STAGES,
    jobs: int = 1, time_limit: float = float("inf"),
) -> int:  # fmt: skip
    """Does all that is missing of a cell, `jobs` trainings at once, and appends it to the record.

    No training starts that would not be done within `time_limit` seconds at the pace of the slowest
    epoch so far, with all that a training has around it. Where one fails, those beside it are
    finished and recorded before its error is raised.
    """
    end, late = time.time() + time_limit, False
    slowest = 0.0  # seconds an epoch
    failed: BaseException | None = None
    running: dict[Future, tuple[dict, float]] = {}  # with the time of the start
    with ProcessPoolExecutor(jobs, get_context("spawn"), start, (cell, place)) as pool:
        while True:
            known = {records.key(run) for run, _ in running.values()}
            runs = missing(cell, records.read(path), arms, stages)
            pending = [run for run in runs if records.key(run) not in known]
            while pending and not failed and len(running) < jobs:
                run, now = pending.pop(0), time.time()
                if now + slowest * run["settings"]["epochs"] > end:
                    late = True
                else:
                    running[pool.submit(execute, run)] = run, now
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                run, began = running.pop(future)
                slowest = max(slowest, (time.time() - began) / run["settings"]["epochs"])
                if error := future.exception():
                    failed = failed or error
                    continue
                records.append(future.result(), path)
                show(future.result())
    if failed:
        raise failed
    if late:
        print("time limit reached; the same command resumes")
    elif "report" in stages:
        for arm, text in waiting(cell, arms, records.read(path)).items():
            print(f"{arm} is not reported yet: {text} on record")
    return 0


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
