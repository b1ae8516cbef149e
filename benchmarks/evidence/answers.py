"""The table of the front pages: what each augmentation gains over crop and flip, a row for each cell."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.core.common import markdown_table
from benchmarks.core.statistics import Difference, significant
from benchmarks.evidence.cells import BASELINE, CELLS, LABELLED, Cell
from benchmarks.evidence.choices import Run, reported
from benchmarks.evidence.tables import all_runs, differences, gain, line, mean_of

COLUMNS = {  # arms in the order of the table, and the heads of their columns
    "pooled": "modes",
    "cosine": "shading",
    "latent-linear": "latents",
    "flow-joint": "deep flow",
    "randaugment": "RandAugment",
    "randaugment+pooled": "RandAugment and modes",
    "randaugment|pooled": "RandAugment or modes",
    "randaugment|flow": "RandAugment or deep flow",
}
KNOWS = "†"  # after gains of a flow that learned from more labels of the dataset than the cell has


def title(cell: Cell) -> str:
    images = "all images" if cell.per_class is None else f"{cell.per_class} images per class"
    kind = "fine-tuned" if getattr(cell.recipe, "weights", "") else "from scratch"
    return f"{cell.data}, {images}, {kind}"


def answers(runs: list[Run], measure: str = "top1") -> str:
    """Gains over crop and flip in every cell that is on record; bold where Holm's p, over all arms of the cell, is below 0.05."""
    rows = [["", "crop and flip", *COLUMNS.values()]]
    for cell in CELLS.values():
        found = reported(runs, cell)
        if BASELINE not in found or len(found) < 2:
            continue
        against = differences(line(found, measure), BASELINE, cell)
        base = f"{mean_of(found[BASELINE], measure):.1f}"
        rows.append([title(cell), base, *(shown(against.get(arm), cell, arm) for arm in COLUMNS)])
    return markdown_table(rows) if len(rows) > 1 else "Not measured yet."


def shown(difference: Difference | None, cell: Cell, arm: str) -> str:
    """A gain; bold where Holm's p is small, on all seeds of the cell."""
    if difference is None:
        return ""
    text = gain(difference)
    sure = significant(difference, len(cell.seeds))
    flow = cell.flows.get(arm)
    mark = KNOWS if flow and flow.trained_on == LABELLED and cell.per_class else ""
    return (f"**{text}**" if sure else text) + mark


TABLES: dict[str, Callable[[], str]] = {
    "evidence_answers": lambda: answers(all_runs()),
    "evidence_calibration": lambda: answers(all_runs(), "ece"),
}
