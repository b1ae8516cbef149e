"""Which gains so many seeds show, by the standard deviations of the paired differences on record."""

from __future__ import annotations

import math
from statistics import variance
from typing import Any

from benchmarks.cifar.comparison import comparisons, label, line, metric
from benchmarks.core.common import markdown_table
from benchmarks.core.statistics import FEWEST, half_width, seeds_for

# of NFA over crop and flip and of both over SA: top-1 on ImageNet-ReaL, points (supplementary, table 1)
PAPER_GAINS = (0.33, 0.04)
SEEDS = (3, 5, 10)
Differences = list[list[float]]  # of each arm, by seed


def table(runs: list[dict[str, Any]]) -> str:
    """A line for each comparison; deviations are pooled over its arms of three seeds or more, in bfloat16 and float32."""
    head = [""]
    for what, gain in zip(("over crop and flip", "`sa+...` over `sa`"), PAPER_GAINS, strict=True):
        head += [f"{what}: deviation", f"{SEEDS[0]} seeds see"]
        head += [f"{n} seeds" for n in SEEDS[1:]] + [f"seeds for {gain:+.2f}"]
    rows = [head]
    for name, (over_baseline, over_sa) in differences(runs).items():
        if over_baseline:
            cells = [name, *_cells(over_baseline, PAPER_GAINS[0])]
            rows.append(cells + (_cells(over_sa, PAPER_GAINS[1]) if over_sa else [""] * 5))
    return markdown_table(rows)


def differences(runs: list[dict[str, Any]]) -> dict[str, tuple[Differences, Differences]]:
    """By line of the summary: the differences of each arm to the baseline, and of each `sa+...` to its `sa`."""
    found: dict[str, tuple[Differences, Differences]] = {}
    for _, arms in sorted(comparisons(runs).items()):
        for name, by_epochs in arms.items():
            for epochs, own in by_epochs.items():
                run = next(iter(own.values()))
                both = found.setdefault(line(run), ([], []))
                controls = ["baseline", _sa_of(run) if name.startswith("sa+") else None]
                for control, differing in zip(controls, both, strict=True):
                    base = metric(arms.get(control, {}).get(epochs, {}))
                    values = [v - base[s] for s, v in metric(own).items() if s in base]
                    if control != name and len(values) >= FEWEST:
                        differing.append(values)
    return found


def _sa_of(run: dict[str, Any]) -> str:
    """The label of `sa` with the RandAugment of an arm."""
    settings = {k: run["settings"][k] for k in ("randaugment", "reprob") if k in run["settings"]}
    return label({"arm": "sa", "flow": None, "settings": settings})


def _cells(arms: Differences, gain: float) -> list[str]:
    freedom = sum(len(d) - 1 for d in arms)
    deviation = math.sqrt(sum((len(d) - 1) * variance(d) for d in arms) / freedom)
    reach = [f"{half_width(deviation, n):.2f}" for n in SEEDS]
    count = f"{deviation:.2f} ({len(arms)} arm{'s' * (len(arms) > 1)})"
    return [count, *reach, f"{seeds_for(gain, deviation):,}"]
