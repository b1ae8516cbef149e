"""The runs of a cell, stage by stage: what is still missing on record and can be done now."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.core import records
from benchmarks.core.common import flow_title
from benchmarks.evidence.arms import ENTRIES
from benchmarks.evidence.cells import BASELINE, SEARCH_SEED, SUITE, Cell
from benchmarks.evidence.choices import chosen, expected, recipe_of, tuned_recipe

STAGES = ("tune", "search", "report")


def missing(
    cell: Cell, runs: list[dict], arms: Sequence[str], stages: Sequence[str] = STAGES
) -> list[dict]:
    """The runs that are not on record and can be done now: the tuning, then arm by arm its search and its report."""
    done = {records.key(run) for run in runs}

    def lacking(planned: Iterator[dict]) -> list[dict]:
        return [run for run in planned if records.key(run) not in done]

    if "tune" in stages and (found := lacking(tune(cell))):
        return found
    found = []
    for arm in arms:
        if "search" in stages:
            found += lacking(search(cell, arm, runs))
        if "report" in stages:
            found += lacking(report(cell, arm, runs))
    return found


def tune(cell: Cell) -> Iterator[dict]:
    """Crop and flip with every recipe of the tuning."""
    if len(cell.tuning) > 1 and not cell.tuned_in:
        for settings in cell.tuning:
            recipe = dataclasses.replace(cell.recipe, **settings)
            yield describe(cell, BASELINE, recipe, {}, SEARCH_SEED, "held")


def search(cell: Cell, arm: str, runs: list[dict]) -> Iterator[dict]:
    """An arm with each setting of its grid; none before the tuning is complete."""
    if len(ENTRIES[arm].grid) > 1 and not cell.tuned_in:
        try:
            recipe = tuned_recipe(runs, cell)
        except LookupError:
            return
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


def waiting(cell: Cell, arms: Sequence[str], runs: list[dict]) -> dict[str, str]:
    """The arms that cannot be reported yet, and what they wait for."""
    found = {}
    for arm in arms:
        try:
            expected(runs, cell, arm)
        except LookupError as e:
            found[arm] = str(e)
    return found


def describe(
    cell: Cell, arm: str, recipe: Any, settings: dict, seed: int, split: str
) -> dict[str, Any]:
    """The part of a record that identifies a run."""
    flow = cell.flows[arm] if ENTRIES[arm].flow else None
    values = {
        "cell": cell.name,
        "per_class": cell.per_class,
        **dataclasses.asdict(recipe_of(recipe, arm)),
        **settings,
    }
    if flow:
        values["flow_trained_on"] = flow.trained_on
    return {
        "suite": SUITE, "data": cell.data, "split": split, "fraction": cell.fraction, "arm": arm,
        "seed": seed, "flow": flow_title(flow.name) if flow else None, "settings": values,
    }  # fmt: skip
