"""The tables of the CIFAR comparison, as the pages show them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from statistics import fmean
from typing import Any

from benchmarks.cifar import comparison, power, quoted
from benchmarks.cifar.arms import ARMS, Settings
from benchmarks.core import records
from benchmarks.core.common import markdown_table
from benchmarks.core.statistics import paired

SUMMARY = {  # arms of the summary and the heads of their columns
    "baseline": "crop and flip",
    "sa": "RandAugment + RandomErasing",
    "trivial": "TrivialAugment",
    "linear": "NFA",
    "sa+linear": "RandAugment + RandomErasing + NFA (over those two)",
    "cutmix+linear": "CutMix + NFA (over CutMix)",
    "glem": "NFA, deep flow, before the crop",
}
# what they are compared with; the others with the baseline
OVER = {"sa+linear": "sa", "cutmix+linear": "cutmix"}


def cifar_summary() -> str:
    """Top-1 of the arms of most interest, a line for each dataset, fraction and length with SA; in brackets paired differences.

    Means are over the seeds that the line's baseline has too, so that where no count is given they
    differ by the gain.
    """
    lines = []
    for runs in summary_runs():
        base = runs["baseline"]
        seeds = f"{len(base)} seed{'s' * (len(base) > 1)}"
        name = f"{comparison.line(next(iter(base.values())))}; {seeds}"
        lines.append([name, *(_summary_cell(arm, runs) for arm in SUMMARY)])
    return markdown_table([["", *SUMMARY.values()], *lines])


def summary_runs() -> list[dict[str, comparison.Runs]]:
    """The runs of each arm of the summary, a dict for each of its lines, full-size networks first.

    Of several settings of an arm the one that is best on the held-out images is shown, where none
    was tried there the default; of deep flows the best by bits/dim that has not seen the labels of
    other images. Of lines of one name, in bfloat16 and in float32, the one stays whose settings
    were searched for.
    """
    held, found = (comparison.comparisons(_runs(split)) for split in ("held", "test"))
    lines: dict[tuple[str, int], dict[str, comparison.Runs]] = {}
    for key in sorted(found, key=lambda key: (json.loads(key[3])["model"] != "resnet18", key)):
        (data, _, fraction, recipe), arms = key, found[key]
        searched = held.get((data, "held", fraction, recipe), {})
        for epochs in sorted(_lengths(arms) & set(arms.get("baseline", {}))):
            chosen = {a: _chosen(a, arms, searched, epochs) for a in {*SUMMARY, *OVER.values()}}
            if not chosen["sa"]:
                continue  # what was trained for the sake of one question only stands with the whole comparison
            runs = {arm: arms[name][epochs] for arm, name in chosen.items() if name}
            base = runs["baseline"]
            name = comparison.line(next(iter(base.values()))), len(base)
            if searched or name not in lines:
                lines[name] = runs
    return list(lines.values())


def _lengths(arms: dict) -> set[int]:
    return {epochs for by_epochs in arms.values() for epochs in by_epochs}


def _summary_cell(arm: str, runs: dict[str, comparison.Runs]) -> str:
    top1 = {name: comparison.metric(own) for name, own in runs.items()}
    shared = [v for seed, v in top1.get(arm, {}).items() if seed in top1["baseline"]]
    base = top1.get(OVER.get(arm, "baseline"))
    if not shared or base is None:
        return ""
    if arm == "baseline":
        return f"{fmean(shared):.1f}"
    mean, half, _, count = paired(top1[arm], base)
    notes = [f"{mean:+.1f}" + ("" if math.isnan(half) else f" ± {half:.1f}")]
    notes += [f"{count} seed{'s' * (count > 1)}"] * (count != len(top1["baseline"]))
    strength = next(iter(runs[arm].values()))["settings"].get("strength", Settings.strength)
    notes += [f"`s{strength:g}`"] * (strength != Settings.strength)
    return f"{fmean(shared):.1f} ({', '.join(notes)})"


def _chosen(arm: str, arms: dict, searched: dict, epochs: int) -> str | None:
    """Which of the settings of an arm that are on record at this length."""
    names = [
        n for n, by in arms.items() if n.partition(", ")[0].split(" ")[0] == arm and epochs in by
    ]
    # as a deep flow knows images; linear as the launcher places it
    whole = [n for n in names if "before the crop" in n]
    names = whole or names if arm == "glem" else [n for n in names if n not in whole] or names
    runs = {n: next(iter(arms[n][epochs].values())) for n in names}
    names = [
        n
        for n in names
        if runs[n]["fraction"] == 1
        or "with labels" not in runs[n]["settings"].get("flow_trained_on", "")
    ]

    def order(name: str) -> tuple[float, float, tuple[float, float]]:
        bits = runs[name].get("flow_metrics", {}).get("bits_per_dim", 99.0)
        found = searched.get(name, {}).get(epochs)
        s = runs[name]["settings"]
        default = (
            abs(s.get("strength", 0.0) - Settings.strength),
            abs(s.get("shrinkage", 0.0) - Settings.shrinkage),
        )
        return bits, -fmean(comparison.metric(found).values()) if found else 0.0, default

    return min(names, key=order, default=None)


def cifar_arms() -> str:
    """Every registered arm and what it does beside crop and flip."""
    rows = [["arm", "what it does beside crop and flip", "flow"]]
    for name, arm in ARMS.items():
        flow = "linear" if arm.on_linear else f"that of `{arm.flow}`" if arm.flow else ""
        rows.append([f"`{name}`", arm.label, flow])
    return markdown_table(rows)


def cifar_power() -> str:
    return power.table(_runs("test"))


def cifar_quoted() -> str:
    return quoted.table(_runs("test"))


def cifar_wins() -> str:
    return quoted.verdicts(_runs("test"), quoted.WINS)


def cifar_losses() -> str:
    return quoted.verdicts(_runs("test"), quoted.LOSSES)


def cifar_resnet18() -> str:
    """A table for each dataset and fraction, on the test images."""
    return _comparison("test")


def cifar_search() -> str:
    """The runs that chose settings, on images held out of the training set."""
    return _comparison("held")


def _comparison(split: str) -> str:
    runs, parts = _runs(split), []
    for (data, _, fraction, _), arms in sorted(comparison.comparisons(runs).items()):
        every = [
            r
            for by_epochs in arms.values()
            for by_seed in by_epochs.values()
            for r in by_seed.values()
        ]
        for epochs in sorted({r["settings"]["epochs"] for r in every if r["arm"] != "baseline"}):
            head = comparison.title(data, fraction, epochs, every[0])
            parts.append(f"**{head}**\n\n{comparison.table(arms, epochs)}")
    trained_on = sorted({_flow_of(r) for r in runs if r["flow"]})
    if trained_on:
        parts.append(f"What the networks of the flows were trained on: {'; '.join(trained_on)}.")
    return "\n\n".join([*parts, _made(runs)])


def _flow_of(run: dict[str, Any]) -> str:
    bits = run.get("flow_metrics", {}).get("bits_per_dim")
    end = f" ({bits:.3f} bits/dim)" if bits else ""
    return f"{run['flow']}: {run['settings']['flow_trained_on']}{end}"


def _runs(split: str) -> list[dict[str, Any]]:
    return [r for r in records.read(records.suite_file("cifar_resnet18")) if r["split"] == split]


def _made(runs: list[dict[str, Any]]) -> str:
    """Devices, versions, commits and dates of the runs."""
    made: dict[str, set[tuple[str, str]]] = {}
    for r in runs:
        commit = r["commit"][:8] + (" + changes" if r["dirty"] else "")
        made.setdefault(f"{r['device']}, torch {r['versions']['torch']}", set()).add(
            (r["date"], commit)
        )
    lines = []
    for what, when in sorted(made.items()):
        dates = " to ".join(sorted({min(when)[0], max(when)[0]}))
        commits = sorted({commit for _, commit in when})
        count = f"commit {commits[0]}" if len(commits) == 1 else f"{len(commits)} commits"
        lines.append(f"{what}, {count}, {dates}")
    return f"<sub>`python -m benchmarks.cifar.resnet18`: {'; '.join(lines)}; the record has each run's.</sub>"


TABLES: dict[str, Callable[[], str]] = {
    f.__name__: f
    for f in (
        cifar_summary,
        cifar_arms,
        cifar_power,
        cifar_quoted,
        cifar_wins,
        cifar_losses,
        cifar_resnet18,
        cifar_search,
    )
}
