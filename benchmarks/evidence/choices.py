"""What was chosen, read from the record: a function of runs on held-out images alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from benchmarks.evidence.arms import ENTRIES, Values
from benchmarks.evidence.cells import BASELINE, CELLS, SEARCH_SEED, Cell

Run = dict[str, Any]


def of_arm(runs: list[Run], cell: Cell, arm: str, split: str) -> list[Run]:
    return [
        r for r in runs
        if r["settings"]["cell"] == cell.name and r["arm"] == arm and r["split"] == split
    ]  # fmt: skip


def held_runs(runs: list[Run], cell: Cell, arm: str) -> list[Run]:
    """The runs of an arm in a cell that were tested on held-out training images, to choose from."""
    return [r for r in of_arm(runs, cell, arm, "held") if r["seed"] == SEARCH_SEED]


def tuned_recipe(runs: list[Run], cell: Cell) -> Any:
    """The cell's recipe with the settings of crop and flip that were best on held-out images.

    Raises:
        LookupError: the tuning is not complete.
    """
    if cell.tuned_in:  # another cell's learning rate would be of another number of steps
        return cell.recipe
    if len(cell.tuning) == 1:
        return dataclasses.replace(cell.recipe, **cell.tuning[0])
    found = tuning_runs(runs, cell)
    if None in found:
        done = len(found) - found.count(None)
        raise LookupError(f"{done} of {len(found)} runs of the tuning of {cell.name}")
    return dataclasses.replace(cell.recipe, **cell.tuning[best(found)])


def recipe_of(recipe: Any, arm: str) -> Any:
    """The recipe as an arm trains with it: some train for longer."""
    return dataclasses.replace(recipe, epochs=ENTRIES[arm].epochs(recipe.epochs))


def tuning_runs(runs: list[Run], cell: Cell) -> list[Run | None]:
    """The run of crop and flip with every recipe of the tuning; None for those not on record."""
    own = held_runs(runs, cell, BASELINE)
    wanted = [dataclasses.asdict(dataclasses.replace(cell.recipe, **s)) for s in cell.tuning]
    return [next((r for r in own if has(r, recipe)), None) for recipe in wanted]


def best(runs: Sequence[Run | None]) -> int:
    """The first of the runs with the highest top-1."""
    scores = [r["metrics"]["top1"] for r in runs if r]
    return scores.index(max(scores))


def has(run: Run, settings: Values) -> bool:
    return all(run["settings"].get(k) == v for k, v in settings.items())


def searched(runs: list[Run], cell: Cell, arm: str) -> list[Run | None]:
    """The run of every setting that an arm's search tries, under the tuned recipe; None for those not on record."""
    recipe = dataclasses.asdict(recipe_of(tuned_recipe(runs, cell), arm))
    found = [r for r in held_runs(runs, cell, arm) if has(r, recipe)]
    return [next((r for r in found if has(r, s)), None) for s in ENTRIES[arm].grid]


def chosen(runs: list[Run], cell: Cell, arm: str) -> Values:
    """The setting of an arm that was best on held-out images.

    Raises:
        LookupError: the search is not complete.
    """
    settings = ENTRIES[arm].grid
    if len(settings) == 1:
        return settings[0]
    where = CELLS[cell.tuned_in] if cell.tuned_in else cell
    found = searched(runs, where, arm)
    if None in found:
        done = len(found) - found.count(None)
        raise LookupError(f"{done} of {len(settings)} runs of the search of {arm} in {where.name}")
    return settings[best(found)]


def expected(runs: list[Run], cell: Cell, arm: str) -> dict[str, Any]:
    """The settings on record of what is reported of an arm: the tuned recipe and the chosen setting."""
    recipe = recipe_of(tuned_recipe(runs, cell), arm)
    return {**dataclasses.asdict(recipe), **chosen(runs, cell, arm)}


def reported(runs: list[Run], cell: Cell) -> dict[str, dict[int, Run]]:
    """The runs on test images by arm and seed, of arms whose search is complete and that have some."""
    found: dict[str, dict[int, Run]] = {}
    for arm in cell.arms:
        try:
            values = expected(runs, cell, arm)
        except LookupError:
            continue
        if own := {r["seed"]: r for r in of_arm(runs, cell, arm, "test") if has(r, values)}:
            found[arm] = own
    return found
