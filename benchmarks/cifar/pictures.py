"""Pictures of the recorded runs: the gain of every arm with its interval, and of flows of several qualities.

`python -m benchmarks.cifar.pictures` draws docs/figures/cifar_resnet18.png and, where two flows are
on record, flow_quality.png.
"""

from __future__ import annotations

import io
import textwrap
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from benchmarks.cifar.arms import KINDS
from benchmarks.cifar.comparison import arm_of, comparisons, metric, title
from benchmarks.core.common import ROOT
from benchmarks.core.records import FEWEST, paired, read, suite_file
from timm_nfaug._utils.files import write_atomically

Gains = dict[str, tuple[float, float, float, int]]  # by arm, see `paired`


def draw(runs: list[dict[str, Any]]) -> Figure:
    """Draws the gain over the baseline with its 95% interval, a line per arm, a panel per dataset and fraction."""
    panels = gains_of(runs)
    if not panels:
        raise SystemExit(
            "nothing to draw: no arm has three seeds or more beside a baseline of the same"
        )
    height = sum(len(gains) for _, gains in panels)
    figure = Figure((9.5, 0.6 + 0.8 * len(panels) + 0.2 * height), layout="constrained")
    ratios = [len(gains) + 2 for _, gains in panels]
    axes = figure.subplots(len(panels), 1, squeeze=False, sharex=True, height_ratios=ratios)[:, 0]
    for axis, (head, gains) in zip(axes, panels, strict=True):
        draw_panel(axis, gains)
        axis.set_title(textwrap.fill(head, 80), fontsize=8, loc="left")  # no wider than the axes
    handles = axes[0].get_legend_handles_labels()
    figure.legend(*handles, fontsize=8, loc="outside lower center", ncols=len(KINDS))
    axes[-1].set_xlabel("top-1 minus the baseline's, points; 95% intervals, paired", fontsize=9)
    return figure


def gains_of(runs: list[dict[str, Any]]) -> list[tuple[str, Gains]]:
    """Titles of the panels, and the gain of each arm that has an interval."""
    panels = []
    for (data, _, fraction, _), arms in sorted(comparisons(runs).items()):
        every = {e for name, by_epochs in arms.items() for e in by_epochs if name != "baseline"}
        for epochs in sorted(every & set(arms.get("baseline", {}))):
            base = arms["baseline"][epochs]
            gains = {
                name: paired(metric(by[epochs]), metric(base))
                for name, by in arms.items()
                if name != "baseline" and epochs in by
            }
            several = {name: gain for name, gain in gains.items() if gain[3] >= FEWEST}
            if several:
                run = next(iter(base.values()))
                panels.append((title(data, fraction, epochs, run), several))
    return panels


def draw_panel(axis: Axes, gains: Gains) -> None:
    names = sorted(gains, key=lambda n: gains[n][0])
    for kind, colour in zip(KINDS, ("C1", "C0", "0.45"), strict=True):
        rows = [i for i, n in enumerate(names) if kind_of(n) == kind]
        means, halves = ([gains[names[i]][j] for i in rows] for j in (0, 1))
        axis.errorbar(means, rows, xerr=halves, fmt="o", color=colour, capsize=3, label=kind)
    axis.set_ylim(-0.7, len(names) - 0.3)
    short = [n.partition(", ")[0] for n in names]
    # with the flow where only that tells arms apart
    flows = [n.rpartition(", ")[2].replace(".cifar10_jpeg", "") for n in names]
    named = [s if short.count(s) == 1 else f"{s}, {f}" for s, f in zip(short, flows, strict=True)]
    axis.set_yticks(range(len(names)), [n.replace("conv_p4_", "") for n in named], fontsize=8)
    axis.axvline(0, color="0.7", linewidth=0.8, zorder=0)


def kind_of(label: str) -> str:
    """Whether the arm of a label is linear NFA, NFA on a deep flow, or something else."""
    linear = label.partition(", ")[2].startswith("linear")  # the flow of own-modes
    return KINDS[0] if linear else arm_of(label.split(" ")[0]).kind


def draw_quality(runs: list[dict[str, Any]]) -> Figure:
    """Draws the gain of `glem` over `linear` of the same settings against the flow's bits/dim."""
    points = quality_of(runs)
    if len(points) < 2:
        raise SystemExit(
            "nothing to draw: two flows with bits/dim, of three seeds or more, are needed beside linear"
        )
    figure = Figure((8, 4), layout="constrained")
    axis = figure.subplots()
    for i, head in enumerate(dict.fromkeys(p[0] for p in points)):
        own = sorted(p for p in points if p[0] == head)
        bits, means, halves = ([p[j] for p in own] for j in (1, 2, 3))
        axis.errorbar(bits, means, yerr=halves, fmt="o", color=f"C{i}", capsize=3, label=head)
        for _, b, m, _, flow in own:
            short = flow.replace(".cifar10_jpeg", "").removeprefix("conv_p4_small")
            name = short.removeprefix("conv_p4_").strip("_") or "bundled"
            offset = {"textcoords": "offset points", "fontsize": 7, "ha": "right"}
            axis.annotate(name, (b, m), (-4, 4), **offset)
    axis.axhline(0, color="0.7", linewidth=0.8, zorder=0)
    axis.margins(x=0.3)  # for the names
    axis.invert_xaxis()
    axis.set_xlabel("bits/dim of the flow on the validation images (better to the right)")
    axis.set_ylabel("top-1 minus that of linear, points")
    axis.legend(fontsize=8, loc="lower left")
    return figure


def quality_of(runs: list[dict[str, Any]]) -> list[tuple[str, float, float, float, str]]:
    """(title, bits/dim, gain over `linear`, half its interval, flow) of each flow with three seeds or more."""
    points = []
    for (data, _, fraction, _), arms in sorted(comparisons(runs).items()):
        for name, by_epochs in arms.items():
            linear = arms.get(name.partition(", ")[0].replace("glem", "linear", 1), {})
            for epochs, found in by_epochs.items():
                run = next(iter(found.values()))
                bits = run.get("flow_metrics", {}).get("bits_per_dim")
                if run["arm"] == "glem" and bits and linear.get(epochs):
                    mean, half, _, seeds = paired(metric(found), metric(linear[epochs]))
                    if seeds >= FEWEST:
                        head = title(data, fraction, epochs, run)
                        points.append((head, bits, mean, half, run["flow"]))
    return points


def main() -> None:
    runs = [r for r in read(suite_file("cifar_resnet18")) if r["split"] == "test"]
    for name, make in (("cifar_resnet18", draw), ("flow_quality", draw_quality)):
        out = ROOT / "docs" / "figures" / f"{name}.png"
        try:
            figure = make(runs)
        except SystemExit as e:
            print(f"{name}: {e}")
            continue
        drawn = io.BytesIO()
        figure.savefig(drawn, format="png", dpi=100)
        # lines and letters in few colours: a third of the bytes
        image = Image.open(drawn).convert("RGB").quantize(64)
        write_atomically(out, lambda p, image=image: image.save(p, format="PNG", optimize=True))
        print(Path(out).relative_to(ROOT))


if __name__ == "__main__":
    main()
