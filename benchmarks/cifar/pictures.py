"""The comparison as charts: a panel for each cell, a dot for each arm, its distance from crop and flip paired by seed.

`python -m benchmarks.figures top1` and its like draw them from the record. Every arm stands in
every panel, whatever its result; "not run" where it is not on record. The settings of an arm are
those of the README's table (`tables.summary_runs`).
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from benchmarks.cifar import tables
from benchmarks.cifar.comparison import Runs, metric
from benchmarks.cifar.quoted import NETWORKS
from benchmarks.core.charts import BLUE, VERMILION, chart
from benchmarks.core.statistics import FEWEST, paired

# arms of the charts, by the README's names, from top to bottom; eight at most
ARMS = {
    "baseline": "crop and flip",
    "sa": "RandAugment + RandomErasing",
    "trivial": "TrivialAugment",
    "cutmix": "CutMix",
    "sa+linear": "RandAugment + RandomErasing + NFA",
    "cutmix+linear": "CutMix + NFA",
    "glem": "NFA, deep flow",
    "linear": "NFA",
}
ROWS = {arm: len(ARMS) - 1 - i for i, arm in enumerate(ARMS)}
COLUMNS = 3
SHADE, LINE = "0.92", "0.6"  # greys


@dataclass
class Measure:
    """What a chart compares: a metric of the record, its question, its name, and which end is better."""

    metric: str
    question: str
    name: str
    lower_is_better: bool = False


MEASURES = {
    "top1": Measure("top1", "Which augmentation beats crop and flip?", "top-1"),
    "calibration": Measure(
        "ece", "Which augmentation is better calibrated than crop and flip?", "ECE", True
    ),
    "corruptions": Measure(
        "corrupted_top1", "Which augmentation helps under corruptions?", "top-1 under corruptions"
    ),
}


@dataclass
class Panel:
    """A cell: its title, the baseline's mean, and for each arm on record (gain, half its interval, p, seeds)."""

    title: str
    base: float
    gains: dict[str, tuple[float, float, float, int]]


def panels(measure: Measure) -> list[Panel]:
    """Every cell of the README's table in which the measure is on record."""
    found = []
    for runs in tables.summary_runs():
        values = {arm: _values(own, measure.metric) for arm, own in runs.items() if arm in ARMS}
        base = values.pop("baseline")
        gains = {arm: paired(own, base) for arm, own in values.items()}
        gains = {arm: gain for arm, gain in gains.items() if gain[3]}
        if gains:
            mean = sum(base.values()) / len(base)
            found.append(Panel(_title(runs["baseline"]), mean, gains))
    return found


def _values(runs: Runs, name: str) -> dict[int, float]:
    return metric({seed: r for seed, r in runs.items() if name in r["metrics"]}, name)


def _title(runs: Runs) -> str:
    """Data, images, epochs, network and seeds, in three lines."""
    run = next(iter(runs.values()))
    s = run["settings"]
    data = run["data"] + ", fine-tuned" * ("init" in s)
    length = f"{run['training_images']:,} images, {s['epochs']} epochs"
    seeds = f"{len(runs)} seed{'s' * (len(runs) > 1)}"
    return "\n".join([data, length, f"{NETWORKS.get(s['model'], s['model'])}, {seeds}"])


def draw(measure: Measure) -> Figure:
    """Draws a panel for each cell, the axes shared, so that dots can be compared across panels."""
    cells = panels(measure)
    rows = math.ceil(len(cells) / COLUMNS)
    figure = chart(0.8 + 2.8 * rows, measure.question)
    axes = figure.subplots(rows, COLUMNS, sharex=True, sharey=True, squeeze=False).flatten()
    for axis, cell in zip(axes, cells, strict=False):
        _draw_panel(axis, cell, left=measure.lower_is_better)
    for axis, cell in zip(axes, cells, strict=False):  # the shared range is known now
        if winner := ahead(cell, measure.lower_is_better):
            _mark(axis, ROWS[winner], cell.gains[winner][0])
    for axis in axes[len(cells) :]:
        axis.remove()
    for axis in axes[max(0, len(cells) - COLUMNS) : len(cells)]:
        axis.tick_params(labelbottom=True)
    names = [_wrapped(name) for name in ARMS.values()]
    axes[0].set_yticks(list(ROWS.values()), names)
    axes[0].set_ylim(-0.6, len(ARMS) - 0.4)
    side = "left" if measure.lower_is_better else "right"
    what = (
        f"{measure.name} minus that of crop and flip, points, with 95% intervals: {side} is better"
    )
    where = {"loc": "outside lower center", "ncols": 4, "title": what}
    figure.legend(handles=_legend(measure), **where)
    return figure


def _draw_panel(axis: Axes, cell: Panel, left: bool) -> None:
    """Draws the arms; words stand `left` or right of the zero line."""
    axis.axvline(0, color=LINE, linewidth=1, zorder=1)
    axis.set_title(cell.title)
    axis.tick_params(axis="y", length=0)
    where = {"xytext": (-5 if left else 5, 0), "ha": "right" if left else "left", "va": "center"}
    write = functools.partial(axis.annotate, textcoords="offset points", **where)
    write(f"{cell.base:.1f}", (0, ROWS["baseline"]))
    for arm in ARMS:
        if arm in cell.gains:
            _draw_gain(axis, arm, cell.gains[arm])
        elif arm != "baseline":
            write("not run", (0, ROWS[arm]), color="0.4")


def ahead(cell: Panel, lower_is_better: bool) -> str | None:
    """The arm of the best mean, where its interval lies beyond crop and flip; None where that is not shown."""
    sign = -1 if lower_is_better else 1
    arm = max(cell.gains, key=lambda arm: sign * cell.gains[arm][0])
    mean, half, _, _ = cell.gains[arm]
    return arm if sign * mean - half > 0 else None  # half is NaN below three seeds


def _mark(axis: Axes, row: int, mean: float) -> None:
    """Shades a row; the gain stands where its dot does not."""
    axis.axhspan(row - 0.45, row + 0.45, color=SHADE, linewidth=0)
    x, side = (0.03, "left") if mean > sum(axis.get_xlim()) / 2 else (0.97, "right")
    style = {"va": "center", "fontweight": "bold", "transform": axis.get_yaxis_transform()}
    axis.text(x, row, f"{mean:+.1f}", ha=side, **style)


def _draw_gain(axis: Axes, arm: str, gain: tuple[float, float, float, int]) -> None:
    mean, half, _, seeds = gain
    colour = BLUE if "NFA" in ARMS[arm] else VERMILION
    style = {"color": colour, "markerfacecolor": colour if seeds >= FEWEST else "white"}
    error = None if math.isnan(half) else half
    axis.errorbar(mean, ROWS[arm], xerr=error, fmt="o", markersize=6, capsize=2.5, **style)


def _wrapped(name: str) -> str:
    """A long name in two lines."""
    return name.replace("RandAugment + ", "RandAugment +\n")


def _legend(measure: Measure) -> list[Line2D | Patch]:
    few = f"under {FEWEST} seeds: no interval"
    kinds = ((BLUE, BLUE, "with NFA"), (VERMILION, VERMILION, "without"), ("0.3", "white", few))
    dots = [
        Line2D([], [], marker="o", linestyle="", color=c, markerfacecolor=fill, label=label)
        for c, fill, label in kinds
    ]
    end = "lowest" if measure.lower_is_better else "highest"
    return [*dots, Patch(color=SHADE, label=f"{end} mean, interval beyond 0")]
