"""What the arms of a cell cost: the CPU time of a training over that of crop and flip, side by side.

    python -m benchmarks.evidence.cost --cell cifar10-50 --data-dir DIR

Claim: none beforehand. One process makes every arm with the setting that its search chose and trains
it for a few epochs, all arms in turn and then again, so that a slow spell hits all alike. What is
made once, a fit of modes or moved copies, counts whole beside the epochs of a full training. The
times of the record itself are of several machines, and are compared nowhere.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.cifar.training import cpu_time, train
from benchmarks.core import records
from benchmarks.core.common import (
    command_line,
    environment,
    markdown_table,
    pin_threads,
    write_result,
)
from benchmarks.evidence.answers import title
from benchmarks.evidence.arms import ENTRIES
from benchmarks.evidence.cells import BASELINE, CELLS, SEARCH_SEED, SUITE, Cell
from benchmarks.evidence.choices import chosen, tuned_recipe
from benchmarks.evidence.data import training_images
from benchmarks.evidence.plan import waiting
from benchmarks.evidence.run import able, check_weights
from benchmarks.evidence.tables import cost_name
from benchmarks.evidence.work import Place, Worker, add_place, place_of


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.evidence.cost", description=__doc__.split("\n")[0]
    )
    add = parser.add_argument
    add("--cell", required=True, choices=CELLS)
    add("--short", type=int, default=5, help="epochs of each training")
    add("--repeats", type=int, default=3)
    add("--record", type=Path, help="file of the runs whose chosen settings are taken")
    add_place(parser)
    args = parser.parse_args(argv)
    check_weights(parser, args)
    if args.device != "cpu":
        parser.error(f"--device {args.device}: CPU time is measured on the CPU alone")
    return args


def measure(
    cell: Cell, place: Place, settings: dict[str, dict], recipe: Any, short: int, repeats: int
) -> dict[str, dict[str, list[float]]]:
    """CPU seconds of every arm in every repeat: `made` once, and `epoch`; the first, to warm up, left out."""
    worker = Worker(cell, place)
    data = training_images(worker.pool, cell, SEARCH_SEED)
    recipe = place.recipe(cell, dataclasses.asdict(recipe) | {"epochs": short})
    found = {arm: {"made": [], "epoch": []} for arm in settings}
    for arm in (BASELINE, *repeats * list(settings)):
        cpu = cpu_time()
        own = ENTRIES[arm].make(data, settings[arm], place.flow(cell, arm))
        found[arm]["made"].append(cpu_time() - cpu)
        _, cost = train(data, own, recipe, SEARCH_SEED, place.workers)
        found[arm]["epoch"].append(cost["cpu_seconds"] / short)
    for values in found[BASELINE].values():
        values.pop(0)
    return found


def ratios(seconds: dict[str, dict[str, list[float]]], epochs: int) -> dict[str, float]:
    """The time of a full training with each arm over that with crop and flip: the median of the repeats."""
    totals = {
        arm: [
            made + ENTRIES[arm].epochs(epochs) * epoch
            for made, epoch in zip(s["made"], s["epoch"], strict=True)
        ]
        for arm, s in seconds.items()
    }
    return {
        arm: median(a / b for a, b in zip(own, totals[BASELINE], strict=True))
        for arm, own in totals.items()
    }


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    if argv is None:
        pin_threads(args.threads)
    cell, command = CELLS[args.cell], command_line("benchmarks.evidence.cost", argv)
    place = place_of(args, command)
    runs = records.read(args.record or records.suite_file(SUITE))
    arms = able(cell, cell.arms, place)
    lacking = waiting(cell, arms, runs)
    for arm, text in lacking.items():
        print(f"{arm} is not timed: {text} on record")
    if BASELINE in lacking:
        raise SystemExit("error: tune the cell first, by python -m benchmarks.evidence.run")
    recipe = tuned_recipe(runs, cell)
    settings = {arm: chosen(runs, cell, arm) for arm in arms if arm not in lacking}
    seconds = measure(cell, place, settings, recipe, args.short, args.repeats)
    found = ratios(seconds, recipe.epochs)
    write_result(
        cost_name(cell),
        {
            "benchmark": "evidence.cost",
            "command": command,
            "data": title(cell),
            "seeds": [SEARCH_SEED],
            "environment": environment(),
            "settings": {"epochs": recipe.epochs, "short": args.short, "arms": settings},
            "results": {"ratios": found, "seconds": seconds},
        },
    )
    rows = [["arm", "time"], *([ENTRIES[a].label, f"{r:.2f}"] for a, r in found.items())]
    print(markdown_table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
