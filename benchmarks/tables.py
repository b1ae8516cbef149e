"""Writes the tables of README.md and benchmarks/README.md from the results: ``python -m benchmarks.tables``.

A table stands between ``<!-- table: NAME -->`` and ``<!-- end -->``. No figure in them is typed by hand; a test compares
the files with the results.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, variance
from typing import Any

from benchmarks import demo
from benchmarks.analysis import tables as analysis
from benchmarks.cifar import comparison, quoted
from benchmarks.cifar.arms import Settings
from benchmarks.core import records
from benchmarks.core.common import ROOT, markdown_table
from benchmarks.generation import tables as generation
from benchmarks.imagenet import tables as imagenet
from benchmarks.speed import tables as speed
from benchmarks.timm import tables as timm
from timm_nfaug._utils.files import write_atomically

PAPER_GAINS = (
    0.33,
    0.04,
)  # of NFA over the baseline and of both over SA: top-1 on ImageNet-ReaL, points
FILES = (ROOT / "README.md", ROOT / "benchmarks" / "README.md", ROOT / "docs" / "timm.md")
SECTION = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.S)


def cifar_resnet18() -> str:
    """A table for each data set and fraction, on the test images."""
    return _comparison("test")


SUMMARY = {  # arms of the summary and the heads of their columns
    "baseline": "crop and flip",
    "sa": "RandAugment + RandomErasing",
    "trivial": "TrivialAugment",
    "linear": "NFA",
    "sa+linear": "RandAugment + RandomErasing + NFA (over those two)",
    "cutmix+linear": "CutMix + NFA (over CutMix)",
    "glem": "NFA, deep flow, before the crop",
}
OVER = {
    "sa+linear": "sa",
    "cutmix+linear": "cutmix",
}  # what they are compared with; the others with the baseline


def cifar_summary() -> str:
    """Top-1 of the arms of most interest, a line for each data set, fraction and length with SA; in brackets paired differences.

    Means are over the seeds that the line's baseline has too, so that where no count is given they differ by the gain.
    Of several settings of an arm the one that is best on the held-out images is shown, where none was tried there the
    default; of deep flows the best by bits/dim that has not seen the labels of other images. Of lines of one name, in bfloat16
    and in float32, the one stays whose settings were searched for. Full-size networks first.
    """
    held = comparison.comparisons(_runs("held"))
    lines: dict[str, list[str]] = {}
    found = comparison.comparisons(_runs("test"))
    for key in sorted(found, key=lambda key: (json.loads(key[3])["model"] != "resnet18", key)):
        (data, _, _, recipe), arms = key, found[key]
        searched = held.get((data, "held", key[2], recipe), {})
        for epochs in sorted(
            {e for by_epochs in arms.values() for e in by_epochs} & set(arms.get("baseline", {}))
        ):
            chosen = {
                arm: _chosen(arm, arms, searched, epochs) for arm in {*SUMMARY, *OVER.values()}
            }
            if not chosen["sa"]:
                continue  # what was trained for the sake of one question only stands with the whole comparison
            base = arms["baseline"][epochs]
            runs = {arm: arms[name][epochs] for arm, name in chosen.items() if name}
            name = f"{_line(next(iter(base.values())))}; {len(base)} seed{'s' * (len(base) > 1)}"
            if searched or name not in lines:
                lines[name] = [name, *(_summary_cell(arm, runs) for arm in SUMMARY)]
    return markdown_table([["", *SUMMARY.values()], *lines.values()])


def _summary_cell(arm: str, runs: dict[str, comparison.Runs]) -> str:
    top1 = {name: comparison.metric(own) for name, own in runs.items()}
    shared = [v for seed, v in top1.get(arm, {}).items() if seed in top1["baseline"]]
    base = top1.get(OVER.get(arm, "baseline"))
    if not shared or base is None:
        return ""
    if arm == "baseline":
        return f"{fmean(shared):.1f}"
    mean, half, _, count = records.paired(top1[arm], base)
    notes = [f"{mean:+.1f}" + ("" if math.isnan(half) else f" ± {half:.1f}")]
    notes += [f"{count} seed{'s' * (count > 1)}"] * (count != len(top1["baseline"]))
    strength = next(iter(runs[arm].values()))["settings"].get("strength", Settings.strength)
    notes += [f"`s{strength:g}`"] * (strength != Settings.strength)
    return f"{fmean(shared):.1f} ({', '.join(notes)})"


def _line(run: dict[str, Any]) -> str:
    """What a line of a table compares on, in short; `run` is any of its runs."""
    s = run["settings"]
    model, tuned = "ResNet18, " * (s["model"] == "resnet18"), ", fine-tuned" * ("init" in s)
    return f"{run['data']}: {model}{run['training_images']:,} images, {s['epochs']} epochs{tuned}"


def cifar_power() -> str:
    """Which gains so many seeds show, by the standard deviations of the paired differences on record.

    They are pooled over all arms of three seeds or more, in bfloat16 and in float32.
    """
    found: dict[
        str, dict[str, list[list[float]]]
    ] = {}  # line to what is compared with to the differences of each arm
    for _, arms in sorted(comparison.comparisons(_runs("test")).items()):
        for name, by_epochs in arms.items():
            for epochs, runs in by_epochs.items():
                line = found.setdefault(
                    _line(next(iter(runs.values()))), {"baseline": [], "sa": []}
                )
                s = next(iter(runs.values()))["settings"]
                sa = {
                    "arm": "sa",
                    "flow": None,
                    "settings": {k: s[k] for k in ("randaugment", "reprob") if k in s},
                }
                control = {
                    "baseline": "baseline",
                    "sa": comparison.label(sa),
                }  # with the RandAugment of the arm
                for other in ["baseline"] * (name != "baseline") + ["sa"] * name.startswith("sa+"):
                    own, base = (
                        comparison.metric(runs),
                        comparison.metric(arms.get(control[other], {}).get(epochs, {})),
                    )
                    differences = [own[seed] - base[seed] for seed in own if seed in base]
                    if len(differences) >= records.FEWEST:
                        line[other].append(differences)
    head = [""]
    for what, gain in zip(("over crop and flip", "`sa+...` over `sa`"), PAPER_GAINS, strict=True):
        head += [
            f"{what}: deviation",
            "3 seeds see",
            "5 seeds",
            "10 seeds",
            f"seeds for {gain:+.2f}",
        ]
    rows = [head]
    for line, others in found.items():
        if not others["baseline"]:
            continue
        rows.append([line])
        for arms, gain in zip(others.values(), PAPER_GAINS, strict=True):
            if not arms:
                rows[-1] += [""] * 5
                continue
            deviation = math.sqrt(
                sum((len(d) - 1) * variance(d) for d in arms) / sum(len(d) - 1 for d in arms)
            )
            rows[-1] += [f"{deviation:.2f} ({len(arms)} arm{'s' * (len(arms) > 1)})"]
            rows[-1] += [f"{records.half_width(deviation, n):.2f}" for n in (3, 5, 10)]
            rows[-1] += [f"{records.seeds_for(gain, deviation):,}"]
    return markdown_table(rows)


def cifar_quoted() -> str:
    return quoted.table(_runs("test"))


def _chosen(arm: str, arms: dict, searched: dict, epochs: int) -> str | None:
    """Which of the settings of an arm that are on record at this length."""
    names = [
        n for n, by in arms.items() if n.partition(", ")[0].split(" ")[0] == arm and epochs in by
    ]
    whole = [
        n for n in names if "before the crop" in n
    ]  # as a deep flow knows images; linear as the launcher places it
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


def cifar_search() -> str:
    """The runs that chose settings, on images held out of the training set."""
    return _comparison("held")


def _comparison(split: str) -> str:
    runs = _runs(split)
    parts = []
    for (data, _, fraction, _), arms in sorted(comparison.comparisons(runs).items()):
        every = [
            r
            for by_epochs in arms.values()
            for by_seed in by_epochs.values()
            for r in by_seed.values()
        ]
        for epochs in sorted({r["settings"]["epochs"] for r in every if r["arm"] != "baseline"}):
            parts.append(
                f"**{comparison.title(data, fraction, epochs, every[0])}**\n\n{comparison.table(arms, epochs)}"
            )
    trained_on = sorted({_flow_of(r) for r in runs if r["flow"]})
    if trained_on:
        parts.append(
            "What the networks of the flows were trained on: " + "; ".join(trained_on) + "."
        )
    return "\n\n".join([*parts, _made(runs)])


def _flow_of(run: dict[str, Any]) -> str:
    bits = run.get("flow_metrics", {}).get("bits_per_dim")
    return f"{run['flow']}: {run['settings']['flow_trained_on']}" + (
        f" ({bits:.3f} bits/dim)" if bits else ""
    )


def _runs(split: str) -> list[dict[str, Any]]:
    return [r for r in records.read(records.suite_file("cifar_resnet18")) if r["split"] == split]


def _made(runs: list[dict[str, Any]]) -> str:
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
        lines.append(
            f"{what}, {f'commit {commits[0]}' if len(commits) == 1 else f'{len(commits)} commits'}, {dates}"
        )
    return f"<sub>`python -m benchmarks.cifar.resnet18`: {'; '.join(lines)}; the record has each run's.</sub>"


CIFAR = (cifar_summary, cifar_power, cifar_quoted, cifar_resnet18, cifar_search)
SUITES = (demo, analysis, generation, imagenet, speed, timm)  # each owns its tables
TABLES: dict[str, Callable[[], str]] = {f.__name__: f for f in CIFAR}
for suite in SUITES:
    TABLES |= suite.TABLES


def filled(text: str) -> str:
    """A document with its tables made anew."""
    return SECTION.sub(lambda m: f"{m[1]}{TABLES[m[2]]()}\n{m[3]}", text)


def main() -> None:
    for path in FILES:
        text = filled(path.read_text(encoding="utf-8"))
        write_atomically(path, lambda p, text=text: p.write_text(text, encoding="utf-8"))
        print(Path(path).relative_to(ROOT))


if __name__ == "__main__":
    main()
