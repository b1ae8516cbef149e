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
from statistics import median
from typing import Any

from benchmarks.cifar.training import cpu_time, train
from benchmarks.core import records
from benchmarks.core.common import RESULTS, command_line, environment, markdown_table, write_result
from benchmarks.core.schema import validate_file
from benchmarks.evidence.arms import ENTRIES
from benchmarks.evidence.cells import BASELINE, CELLS, SEARCH_SEED, SUITE, Cell
from benchmarks.evidence.choices import chosen, tuned_recipe
from benchmarks.evidence.data import training_images
from benchmarks.evidence.work import Place, Worker, add_place, place_of


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.evidence.cost", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--cell", required=True, choices=CELLS)
    parser.add_argument("--arms", nargs="+", metavar="ARM", help="some of the cell's arms")
    parser.add_argument("--short", type=int, default=5, help="epochs of each training")
    parser.add_argument("--repeats", type=int, default=3)
    add_place(parser)
    return parser


def settings_of(cell: Cell, arms: list[str], place: Place, runs: list[dict]) -> dict[str, dict]:
    """The chosen setting of each arm; those that were not searched or cannot run here are named."""
    found = {}
    for arm in arms:
        try:
            lack = place.lacks(cell, arm)
            found[arm] = chosen(runs, cell, arm)
        except LookupError as e:
            lack = f"{e} on record"
        if lack:
            found.pop(arm, None)
            print(f"{arm} is not timed: {lack}")
    return found


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
            made + round(epochs * ENTRIES[arm].longer) * epoch
            for made, epoch in zip(s["made"], s["epoch"], strict=True)
        ]
        for arm, s in seconds.items()
    }
    return {
        arm: median(a / b for a, b in zip(own, totals[BASELINE], strict=True))
        for arm, own in totals.items()
    }


def on_record(cell: Cell) -> dict[str, float]:
    """The ratios of a cell by arm, from its result file; none without."""
    path = RESULTS / f"{name_of(cell)}.json"
    return validate_file(path)["results"]["ratios"] if path.is_file() else {}


def name_of(cell: Cell) -> str:
    return f"evidence_cost_{cell.name.replace('-', '_')}"


def main(argv: list[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    cell, command = CELLS[args.cell], command_line("benchmarks.evidence.cost", argv)
    place = place_of(args, command)
    if place.device != "cpu":
        raise SystemExit(f"error: --device {place.device}: CPU time is measured on the CPU alone")
    runs = records.read(args.record or records.suite_file(SUITE))
    try:
        recipe = tuned_recipe(runs, cell)
    except LookupError as e:
        raise SystemExit(f"error: {e} on record; python -m benchmarks.evidence.run tunes") from None
    arms = [arm for arm in cell.arms if arm in (BASELINE, *(args.arms or cell.arms))]
    settings = settings_of(cell, arms, place, runs)
    seconds = measure(cell, place, settings, recipe, args.short, args.repeats)
    found = ratios(seconds, recipe.epochs)
    size = "all" if cell.per_class is None else cell.per_class
    write_result(
        name_of(cell),
        {
            "benchmark": "evidence.cost",
            "command": command,
            "data": f"{cell.data}, {size} training images of each class",
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
