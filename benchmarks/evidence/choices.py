"""What was chosen, read from the record: a function of runs on held-out images alone."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from benchmarks.evidence.arms import ENTRIES, Values
from benchmarks.evidence.cells import CELLS, SEARCH_SEED, Cell

Run = dict[str, Any]


def held_runs(runs: list[Run], cell: Cell, arm: str) -> list[Run]:
    """The runs of an arm's search in a cell, which were tested on held-out training images."""
    return [
        r for r in runs
        if r["settings"]["cell"] == cell.name and r["arm"] == arm
        and r["split"] == "held" and r["seed"] == SEARCH_SEED
    ]  # fmt: skip


def tuned_recipe(runs: list[Run], cell: Cell) -> Any:
    """The cell's recipe with the settings of crop and flip that were best on held-out images.

    Raises:
        LookupError: the tuning is not complete.
    """
    if cell.tuned_in:  # another cell's learning rate would be of another number of steps
        return cell.recipe
    if len(cell.tuning) == 1:
        return dataclasses.replace(cell.recipe, **cell.tuning[0])
    found = held_runs(runs, cell, "crop-flip")
    scores = {
        json.dumps(s, sort_keys=True): r["metrics"]["top1"]
        for s in cell.tuning for r in found if has(r, s)
    }  # fmt: skip
    if len(scores) < len(cell.tuning):
        raise LookupError(f"{len(scores)} of {len(cell.tuning)} runs of the tuning of {cell.name}")
    return dataclasses.replace(cell.recipe, **json.loads(max(scores, key=scores.__getitem__)))


def has(run: Run, settings: Values) -> bool:
    return all(run["settings"].get(k) == v for k, v in settings.items())


def chosen(runs: list[Run], cell: Cell, arm: str) -> Values:
    """The setting of an arm that was best on held-out images, under the tuned recipe.

    Raises:
        LookupError: the search is not complete.
    """
    settings = ENTRIES[arm].grid
    if len(settings) == 1:
        return settings[0]
    where = CELLS[cell.tuned_in] if cell.tuned_in else cell
    recipe = dataclasses.asdict(tuned_recipe(runs, where))
    found = [r for r in held_runs(runs, where, arm) if has(r, recipe)]
    scores = [
        max((r["metrics"]["top1"] for r in found if has(r, s)), default=None) for s in settings
    ]
    if None in scores:
        done = len(scores) - scores.count(None)
        raise LookupError(f"{done} of {len(settings)} runs of the search of {arm} in {where.name}")
    return settings[max(range(len(settings)), key=scores.__getitem__)]
