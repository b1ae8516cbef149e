"""Tables of recorded runs: each arm against baseline, SA and linear, on equal images and on equal time.

`python -m benchmarks.cifar.comparison` draws docs/figures/cifar_resnet18.png and, where two flows are on record, flow_quality.png.
"""

from __future__ import annotations

import io
import json
import math
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure
from PIL import Image

from benchmarks.cifar.arms import LINEAR, NEEDS_FLOW, Settings
from benchmarks.core.common import ROOT, markdown_table
from benchmarks.core.records import (
    FEWEST,
    key,
    mean_interval,
    paired,
    read,
    standard_error,
    suite_file,
)
from timm_nfaug._utils.files import write_atomically

Runs = dict[int, dict[str, Any]]  # by seed
# settings that make one comparison; the others belong to an arm
RECIPE = (
    "model",
    "batch_size",
    "max_lr",
    "momentum",
    "weight_decay",
    "crop",
    "bf16",
    "compile",
    "init",
)


def comparisons(runs: list[dict[str, Any]]) -> dict[tuple, dict[str, dict[int, Runs]]]:
    """(data, split, fraction, recipe as JSON) to arm with its settings to epochs to seed to run."""
    found: dict[tuple, dict[str, dict[int, Runs]]] = {}
    for run in runs:
        recipe = json.dumps({k: run["settings"].get(k) for k in RECIPE})
        group = found.setdefault((run["data"], run["split"], run["fraction"], recipe), {})
        seeds = group.setdefault(label(run), {}).setdefault(run["settings"]["epochs"], {})
        if run["seed"] in seeds:
            if key(seeds[run["seed"]]) == key(run):  # two processes at once
                continue
            raise ValueError(
                f"two runs on record are {label(run)}, seed {run['seed']}, on {run['data']}; remove one"
            )
        seeds[run["seed"]] = run
    return found


def tangent_pairs(
    runs: list[dict[str, Any]],
) -> Iterator[tuple[str, dict[int, float], dict[int, float]]]:
    """Arms with tangents, and top-1 by seed with them and with the exact flow of the same settings."""
    for arms in comparisons(runs).values():
        for name, by_epochs in arms.items():
            exact = (
                arms.get(name.replace("tangent", "glem", 1), {})
                if name.startswith("tangent ")
                else {}
            )
            for epochs in sorted(set(by_epochs) & set(exact)):
                yield name, metric(by_epochs[epochs]), metric(exact[epochs])


NO_FLOW = ("pixel-pca", "patch-pca")  # the flow of their record only says how far they move
KINDS = ("NFA, linear", "NFA, deep flow", "other")
SHORT = (("strength", "s"), ("modes", "k"), ("p", "p"), ("temperature", "t"))


def label(run: dict[str, Any]) -> str:
    """An arm, the flow it uses, and its settings."""
    s = run["settings"]
    parts = ["-".join(f"{short}{s[key]:g}" for key, short in SHORT if key in s)]
    parts += [f"shrinkage {s['shrinkage']:g}"] if "shrinkage" in s else []
    parts += [f"{s['place']} the crop"] if "place" in s else []
    parts += [s["randaugment"]] if "randaugment" in s else []
    parts += [f"erasing {s['reprob']:g}"] if "reprob" in s else []
    return " ".join([run["arm"], *filter(None, parts)]) + (
        f", {run['flow']}" if run["flow"] else ""
    )


def cost(runs: Runs) -> float:
    """Mean CPU seconds of a training; on a GPU, where the CPU waits, seconds. Without the training of a flow's network.

    NaN where several trainings shared a GPU, whose seconds tell nothing.
    """
    gpu = any("threads" not in r["device"] for r in runs.values())
    if gpu and any("at once" in r["device"] for r in runs.values()):
        return math.nan
    return fmean(r["seconds" if gpu else "cpu_seconds"] for r in runs.values())


def whole_cost(runs: Runs) -> float:
    """`cost` with the training of the flow and the fit of its modes."""
    return cost(runs) + flow_seconds(runs)


def flow_seconds(runs: Runs) -> float:
    return fmean(0.0 if r["arm"] in NO_FLOW else r["flow_seconds"] for r in runs.values())


def metric(runs: Runs, name: str = "top1") -> dict[int, float]:
    return {seed: r["metrics"][name] for seed, r in runs.items()}


def table(arms: dict[str, dict[int, Runs]], epochs: int) -> str:
    """One comparison: means over seeds with 95% intervals (of top-1) and standard errors; differences are paired by seed.

    An arm is compared with `linear` of its own settings, or of the nearest on record (`_nearest`), whatever their result. The
    column of equal time compares with the baseline of another length whose time is nearest to that of the arm, the training of
    its flow included.
    """
    others = {"baseline": "against baseline", "sa": "against SA"}
    controls = {
        name: by[epochs]
        for name, by in arms.items()
        if name.split(" ")[0] == "linear" and epochs in by
    }
    head = [
        "arm",
        "seeds",
        "top-1",
        *others.values(),
        *["against linear"] * bool(controls),
        "NLL (SE)",
        "ECE (SE)",
        "time",
    ]
    head.append("flow, s")
    baselines = {
        e: b for e, b in arms.get("baseline", {}).items() if e >= epochs and not math.isnan(cost(b))
    }
    slow = {
        name: min(
            baselines, key=lambda e: abs(math.log(cost(baselines[e]) / whole_cost(by[epochs])))
        )
        for name, by in arms.items()
        if epochs in by and baselines and not math.isnan(cost(by[epochs]))
    }  # epochs of the baseline whose time is nearest
    longer = any(e > epochs for e in slow.values())
    robust = any(
        "corrupted_top1" in r["metrics"] for by in arms.values() for r in _runs(by, epochs)
    )
    rows = [head + ["against baseline of equal time"] * longer + ["corrupted (SE)"] * robust]
    unit = cost(baselines[epochs]) if epochs in baselines else math.nan
    for name, by_epochs in sorted(arms.items(), key=lambda item: item[0] != "baseline"):
        runs = by_epochs.get(epochs)
        if not runs:
            continue
        top1 = metric(runs).values()
        row = [name, str(len(runs)), interval(*mean_interval(top1)) + error(top1, 2, "SE ")]
        for other in others:
            same = name == other or epochs not in arms.get(other, {})
            row.append("" if same else difference(metric(runs), metric(arms[other][epochs])))
        if controls:
            control = _nearest(name, runs, controls)
            row.append(difference(metric(runs), metric(controls[control])) if control else "")
        for measure, digits in (("nll", 3), ("ece", 1)):
            row.append(
                f"{fmean(metric(runs, measure).values()):.{digits}f}"
                + error(metric(runs, measure).values(), digits)
            )
        row += ["" if math.isnan(cost(runs) / unit) else f"{cost(runs) / unit:.2f}"]
        row.append(f"{flow_seconds(runs):.0f}")
        if longer:
            e, its = slow.get(name), whole_cost(runs)
            note = (
                f" (its time: {epochs * its / unit:.0f})"
                if e and its > 1.5 * cost(baselines[e])
                else ""
            )
            row.append(
                ""
                if e in (None, epochs)
                else f"{difference(metric(runs), metric(baselines[e]))}, {e} epochs{note}"
            )
        if robust:
            scores = [
                r["metrics"]["corrupted_top1"]
                for r in runs.values()
                if "corrupted_top1" in r["metrics"]
            ]
            row.append(f"{fmean(scores):.1f}" + error(scores, 1) if scores else "")
        rows.append(row)
    return markdown_table(rows)


def _runs(by_epochs: dict[int, Runs], epochs: int) -> list[dict[str, Any]]:
    return list(by_epochs.get(epochs, {}).values())


def _nearest(name: str, runs: Runs, controls: dict[str, Runs]) -> str | None:
    """The setting of `linear` that an arm is compared with: its own, or the nearest; without any, that nearest to the default.

    `linear` itself is compared with another of its settings, the nearest to the default.
    """
    usual = {
        "strength": Settings.strength,
        "p": Settings.p,
        "shrinkage": Settings.shrinkage,
        "place": Settings.place,
    }
    own = next(iter(runs.values()))["settings"]
    flow = "strength" in own and name not in controls
    wanted = {
        k: own.get(k, {"shrinkage": 0.0, "place": "after"}.get(k, v)) if flow else v
        for k, v in usual.items()
    }

    def distance(other: str) -> tuple:
        s = next(iter(controls[other].values()))["settings"]
        few = min(len(set(runs) & set(controls[other])), FEWEST)
        return (
            -few, s.get("shrinkage", 0.0) != wanted["shrinkage"], abs(s.get("strength", 0.0) - wanted["strength"]),
            abs(s.get("p", 0.0) - wanted["p"]), s.get("place", "after") != wanted["place"], -len(controls[other]), other,
        )  # fmt: skip

    return min((other for other in controls if other != name), key=distance, default=None)


def error(values: Iterable[float], digits: int, what: str = "") -> str:
    """The standard error in brackets, where there is one."""
    values = list(values)
    return f" ({what}{standard_error(values):.{digits}f})" if len(values) > 1 else ""


def interval(mean: float, half: float) -> str:
    return f"{mean:.2f}" + ("" if math.isnan(half) else f" ± {half:.2f}")


def difference(arm: dict[int, float], other: dict[int, float]) -> str:
    _, _, p, count = paired(arm, other)
    if not count:
        return ""
    notes = [] if math.isnan(p) else [f"p {p:.2g}"]
    notes += [f"{count} seed{'s' * (count > 1)}"] if count < FEWEST or count < len(arm) else []
    return gain(arm, other) + (f" ({', '.join(notes)})" if notes else "")


def gain(arm: dict[int, float], other: dict[int, float]) -> str:
    mean, half, _, _ = paired(arm, other)
    return f"{mean:+.2f}" + ("" if math.isnan(half) else f" ± {half:.2f}")


def title(data: str, fraction: float, epochs: int, run: dict[str, Any]) -> str:
    """What a table or a panel compares on; `run` is any of its runs."""
    s = run["settings"]
    start = f", started from {s['init']}, learning rate {s['max_lr']:g}" if "init" in s else ""
    images = f"{100 * fraction:g}% ({run['training_images']} images)"
    precision = "" if s.get("bf16", True) else ", float32"
    return f"{data}, {images}; {s['model']}, {epochs} epochs of batch {s['batch_size']}{precision}{start}"


def draw(runs: list[dict[str, Any]]) -> Figure:
    """Gain over the baseline with its 95% interval, an arm a line, a panel for each data set and fraction."""
    panels = []
    for (data, _, fraction, _), arms in sorted(comparisons(runs).items()):
        every = {e for name, by_epochs in arms.items() for e in by_epochs if name != "baseline"}
        for epochs in sorted(every & set(arms.get("baseline", {}))):
            base = metric(arms["baseline"][epochs])
            found = {
                n: paired(metric(by[epochs]), base)
                for n, by in arms.items()
                if n != "baseline" and epochs in by
            }
            several = {
                n: g for n, g in found.items() if g[3] >= FEWEST
            }  # the others have no interval
            if several:
                panels.append(
                    (title(data, fraction, epochs, _runs(arms["baseline"], epochs)[0]), several)
                )
    if not panels:
        raise SystemExit(
            "nothing to draw: no arm has three seeds or more beside a baseline of the same"
        )
    height = sum(len(p[1]) for p in panels)
    figure = Figure((9.5, 0.6 + 0.8 * len(panels) + 0.2 * height), layout="constrained")
    axes = figure.subplots(
        len(panels), 1, squeeze=False, sharex=True, height_ratios=[len(p[1]) + 2 for p in panels]
    )[:, 0]
    for axis, (head, found) in zip(axes, panels, strict=True):
        names = sorted(found, key=lambda n: found[n][0])
        for kind, colour in zip(KINDS, ("C1", "C0", "0.45"), strict=True):
            rows = [i for i, n in enumerate(names) if _kind(n) == kind]
            means, halves = ([found[names[i]][j] for i in rows] for j in (0, 1))
            axis.errorbar(means, rows, xerr=halves, fmt="o", color=colour, capsize=3, label=kind)
        axis.set_ylim(-0.7, len(names) - 0.3)
        short = [n.partition(", ")[0] for n in names]
        # with the flow where only that tells arms apart
        flows = [n.rpartition(", ")[2].replace(".cifar10_jpeg", "") for n in names]
        named = [
            s if short.count(s) == 1 else f"{s}, {f}" for s, f in zip(short, flows, strict=True)
        ]
        axis.set_yticks(range(len(names)), [n.replace("conv_p4_", "") for n in named], fontsize=8)
        axis.axvline(0, color="0.7", linewidth=0.8, zorder=0)
        axis.set_title(textwrap.fill(head, 80), fontsize=8, loc="left")  # no wider than the axes
    figure.legend(
        *axes[0].get_legend_handles_labels(),
        fontsize=8,
        loc="outside lower center",
        ncols=len(KINDS),
    )
    axes[-1].set_xlabel("top-1 minus the baseline's, points; 95% intervals, paired", fontsize=9)
    return figure


def draw_quality(runs: list[dict[str, Any]]) -> Figure:
    """Does a better flow augment better? Gain of `glem` over `linear` of the same settings, against the flow's bits/dim."""
    points = []
    for (data, _, fraction, _), arms in sorted(comparisons(runs).items()):
        for name, by_epochs in arms.items():
            for epochs, found in by_epochs.items():
                run = next(iter(found.values()))
                bits = run.get("flow_metrics", {}).get("bits_per_dim")
                control = arms.get(name.partition(", ")[0].replace("glem", "linear", 1), {}).get(
                    epochs
                )
                if run["arm"] == "glem" and bits and control:
                    mean, half, _, seeds = paired(metric(found), metric(control))
                    if seeds >= FEWEST:
                        points.append((title(data, fraction, epochs, run), bits, mean, half, run))
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
        for _, b, m, _, run in own:
            short = (
                run["flow"]
                .replace(".cifar10_jpeg", "")
                .removeprefix("conv_p4_small")
                .removeprefix("conv_p4_")
                .strip("_")
            )
            axis.annotate(
                short or "bundled",
                (b, m),
                (-4, 4),
                textcoords="offset points",
                fontsize=7,
                ha="right",
            )
    axis.axhline(0, color="0.7", linewidth=0.8, zorder=0)
    axis.margins(x=0.3)  # for the names
    axis.invert_xaxis()
    axis.set_xlabel("bits/dim of the flow on the validation images (better to the right)")
    axis.set_ylabel("top-1 minus that of linear, points")
    axis.legend(fontsize=8, loc="lower left")
    return figure


def _kind(name: str) -> str:
    arm = name.split(" ")[0]
    if arm in LINEAR or arm in NO_FLOW or name.partition(", ")[2].startswith("linear"):
        return KINDS[0]
    return KINDS[1 if arm in NEEDS_FLOW and arm != "samples" else 2]


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
        image = (
            Image.open(drawn).convert("RGB").quantize(64)
        )  # lines and letters in few colours: a third of the bytes
        write_atomically(out, lambda p, image=image: image.save(p, format="PNG", optimize=True))
        print(Path(out).relative_to(ROOT))


if __name__ == "__main__":
    main()
