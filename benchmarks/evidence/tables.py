"""The tables of the evidence, made from the record: a line for each arm of a cell, and its search."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict
from statistics import fmean

from benchmarks.core import records
from benchmarks.core.common import RESULTS, markdown_table
from benchmarks.core.schema import validate_file
from benchmarks.core.statistics import (
    Difference,
    Line,
    compare_all,
    power,
    residual_deviation,
    seeds_for_power,
    verdict,
)
from benchmarks.evidence.arms import ENTRIES
from benchmarks.evidence.cells import BASELINE, CELLS, SUITE, Cell
from benchmarks.evidence.choices import (
    Run,
    chosen,
    expected,
    has,
    held_runs,
    reported,
    searched,
    tuned_recipe,
    tuning_runs,
)

MARGIN = 1.0  # points of top-1 within which two arms are called level


def all_runs() -> list[Run]:
    return records.read(records.suite_file(SUITE))


def line(runs: dict[str, dict[int, Run]], measure: str = "top1") -> Line:
    """The values of a measure by arm and seed."""
    return {
        arm: {seed: r["metrics"][measure] for seed, r in own.items()} for arm, own in runs.items()
    }


def cell_table(cell: Cell, runs: list[Run]) -> str:
    """Top-1 of every arm with its paired difference to crop and flip and to RandAugment, and what else was measured."""
    found = reported(runs, cell)
    if BASELINE not in found:
        return "No run on record yet."
    values = line(found)
    against = {other: differences(values, other, cell) for other in (BASELINE, "randaugment")}
    dof = degrees(values)
    head = [
        "arm", "setting", "seeds", "top-1", "over crop and flip", "Holm's p", "that is", "over RandAugment", "NLL", "ECE",
        "under corruptions",
    ]  # fmt: skip
    times = times_on_record(cell)
    rows = [[*head, "time"] if times else head]
    for arm, own in found.items():
        base = against[BASELINE].get(arm)
        metrics = {k: mean_of(own, k) for k in ("top1", "nll", "ece")}
        found_corrupted = mean_of(own, "corrupted_top1")
        corrupted = "" if math.isnan(found_corrupted) else f"{found_corrupted:.1f}"
        rows.append([
            ENTRIES[arm].label, words(chosen(runs, cell, arm)), str(len(own)), f"{metrics['top1']:.1f}", gain(base),
            f"{base.holm:.2g}" if base and base.holm is not None and not math.isnan(base.holm) else "",
            verdict(base, MARGIN, dof, len(cell.seeds)) if base else "", gain(against["randaugment"].get(arm)),
            f"{metrics['nll']:.3f}", f"{metrics['ece']:.1f}",
            corrupted, *([f"{times[arm]:.2f}" if arm in times else ""] if times else []),
        ])  # fmt: skip
    return f"{recipe_line(cell, runs, found)}\n\n{markdown_table(rows)}"


def differences(values: Line, other: str, cell: Cell) -> dict[str, Difference]:
    """Differences of all arms to one; none where that arm, or a second seed, is not on record.

    p is adjusted for all arms of the cell, also for those that are still to be run.
    """
    try:
        return compare_all(values, other, len(cell.arms) - 1)
    except ValueError:
        return {}


def degrees(values: Line) -> int:
    try:
        return residual_deviation(values)[1]
    except ValueError:
        return 0


def cost_name(cell: Cell) -> str:
    """The result file of `benchmarks.evidence.cost`."""
    return f"evidence_cost_{cell.key}"


def times_on_record(cell: Cell) -> dict[str, float]:
    """The time of a training with each arm over that with crop and flip; none where it was not measured."""
    path = RESULTS / f"{cost_name(cell)}.json"
    return validate_file(path)["results"]["ratios"] if path.is_file() else {}


def mean_of(runs: dict[int, Run], measure: str) -> float:
    return fmean(r["metrics"].get(measure, math.nan) for r in runs.values())


def gain(difference: Difference | None) -> str:
    if difference is None:
        return ""
    half = "" if math.isnan(difference.half) else f" ± {difference.half:.1f}"
    return f"{difference.mean:+.1f}{half}"


def words(setting: dict[str, float]) -> str:
    return ", ".join(f"{k} {v:g}" for k, v in setting.items())


def recipe_line(cell: Cell, runs: list[Run], found: dict[str, dict[int, Run]]) -> str:
    """What the cell is, and the residual deviation of its arms."""
    recipe, run = tuned_recipe(runs, cell), next(iter(found[BASELINE].values()))
    rate = getattr(recipe, "max_lr", None) or recipe.lr
    text = (
        f"**{cell.data}, {run['training_images']:,} training images** ({cell.network}, {recipe.epochs} epochs of batch "
        f"{recipe.batch_size}, learning rate {rate:g}, weight decay {recipe.weight_decay:g}, "
        f"label smoothing {recipe.smoothing:g}"
    )
    try:
        deviation, dof = residual_deviation(line(found))
    except ValueError:
        return text + ")."
    return text + f"). Residual deviation {deviation:.2f} points, {dof} degrees of freedom."


def search_table(cell: Cell, runs: list[Run]) -> str:
    """Top-1 on held-out training images of every setting of every arm, the chosen one in bold."""
    try:
        tuned_recipe(runs, cell)
    except LookupError:
        return "Not run yet."
    rows = [["arm", "settings tried, with top-1 on held-out images"]]
    for arm in cell.arms:
        settings = ENTRIES[arm].grid
        if len(settings) > 1 and any(searched(runs, cell, arm)):
            rows.append([ENTRIES[arm].label, "; ".join(tried(cell, arm, runs))])
    return markdown_table(rows)


def tried(cell: Cell, arm: str, runs: list[Run]) -> list[str]:
    found = searched(runs, cell, arm)
    best = None if None in found else chosen(runs, cell, arm)
    texts = []
    for setting, run in zip(ENTRIES[arm].grid, found, strict=True):
        result = f"{run['metrics']['top1']:.1f}" if run else "not run"
        text = f"{words(setting)}: {result}"
        texts.append(f"**{text}**" if setting == best else text)
    return texts


def tuning_table(cell: Cell, runs: list[Run]) -> str:
    """Top-1 of crop and flip on held-out training images, for every recipe that was tried.

    Those outside of the grid, from which none was chosen, come last.
    """
    names, grid = list(cell.tuning[0]), tuning_runs(runs, cell)
    fixed = {k: v for k, v in asdict(cell.recipe).items() if k not in names}
    others = [r for r in held_runs(runs, cell, BASELINE) if has(r, fixed) and r not in grid]
    rows = [[*names, "top-1", "NLL", "ECE"]]
    for r in [*grid, *others]:
        if r:
            values, m = (r["settings"][n] for n in names), r["metrics"]
            mark = "" if r in grid else " (not in the grid)"
            numbers = [f"{m['top1']:.1f}{mark}", f"{m['nll']:.3f}", f"{m['ece']:.1f}"]
            rows.append([*(f"{v:g}" for v in values), *numbers])
    return markdown_table(rows)


def of_cell(make: Callable[[Cell, list[Run]], str], cell: Cell) -> Callable[[], str]:
    return lambda: make(cell, all_runs())


def cells_table() -> str:
    """How far each cell has come."""
    runs = all_runs()
    rows = [["cell", "network", "arms searched", "arms reported", "seeds"]]
    for cell in CELLS.values():
        found = reported(runs, cell)
        complete = [arm for arm, own in found.items() if set(cell.seeds) <= set(own)]
        images = "all images" if cell.per_class is None else f"{cell.per_class} images per class"
        where = CELLS[cell.tuned_in] if cell.tuned_in else cell
        done = [arm for arm in cell.arms if is_searched(where, arm, runs)]
        of = len(cell.arms)
        rows.append([
            f"{cell.data}, {images}", cell.network, f"{len(done)} of {of}", f"{len(complete)} of {of}", str(len(cell.seeds)),
        ])  # fmt: skip
    return markdown_table(rows)


def is_searched(cell: Cell, arm: str, runs: list[Run]) -> bool:
    try:
        expected(runs, cell, arm)
    except LookupError:
        return False
    return True


GAINS = (0.3, 0.5, 1.0, 2.0)  # points; 0.3 is what the paper's augmentations gain on ImageNet-ReaL


def power_table(runs: list[Run]) -> str:
    """How probably each cell finds true gains with its seeds, and how many seeds find them four times of five."""
    rows = [["cell", "residual deviation", *(f"a gain of {g:g}" for g in GAINS)]]
    for cell in CELLS.values():
        values = line(reported(runs, cell))
        try:
            deviation, _ = residual_deviation(values)
        except ValueError:
            continue
        seeds, tests = len(values.get(BASELINE, ())), len(cell.arms) - 1
        if seeds < 2 or not deviation:
            continue
        found = [
            (power(g, deviation, seeds, tests), seeds_for_power(g, deviation, tests=tests))
            for g in GAINS
        ]
        rows.append(
            [
                cell.name,
                f"{deviation:.2f}",
                *(f"{p:.0%} ({seeds} seeds); 80% needs {n}" for p, n in found),
            ]
        )
    return markdown_table(rows) if len(rows) > 1 else "Not measured yet."


TABLES: dict[str, Callable[[], str]] = {
    "evidence_cells": cells_table,
    "evidence_power": lambda: power_table(all_runs()),
}
for _cell in CELLS.values():
    TABLES[f"evidence_{_cell.key}"] = of_cell(cell_table, _cell)
    if not _cell.tuned_in:
        TABLES[f"evidence_{_cell.key}_search"] = of_cell(search_table, _cell)
        TABLES[f"evidence_{_cell.key}_tuning"] = of_cell(tuning_table, _cell)
