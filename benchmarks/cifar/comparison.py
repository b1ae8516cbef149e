"""Tables of recorded runs: each arm against crop and flip, SA and linear, on equal images and on equal time."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from statistics import fmean
from typing import Any

from benchmarks.cifar.arms import Arm, Combination, Settings, find
from benchmarks.core.common import markdown_table
from benchmarks.core.records import key
from benchmarks.core.statistics import FEWEST, mean_interval, paired, standard_error

Runs = dict[int, dict[str, Any]]  # by seed
# settings that make one comparison; the others belong to an arm
RECIPE = ("model", "batch_size", "max_lr", "momentum", "weight_decay", "crop", "bf16", "compile")
RECIPE += ("init",)


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
            if not name.startswith("tangent "):
                continue
            exact = arms.get(name.replace("tangent", "glem", 1), {})
            for epochs in sorted(set(by_epochs) & set(exact)):
                yield name, metric(by_epochs[epochs]), metric(exact[epochs])


SHORT = (("strength", "s"), ("modes", "k"), ("p", "p"), ("temperature", "t"))


def label(run: dict[str, Any]) -> str:
    """An arm, the flow it uses, and its settings."""
    s = run["settings"]
    parts = ["-".join(f"{short}{s[key]:g}" for key, short in SHORT if key in s)]
    parts += [f"shrinkage {s['shrinkage']:g}"] if "shrinkage" in s else []
    parts += [f"{s['place']} the crop"] if "place" in s else []
    parts += [f"{s['move']} move"] if "move" in s else []
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
    """Mean seconds for the flow of an arm; none where the flow of the record only says how far images move."""
    return fmean(
        0.0 if arm_of(r["arm"]).flow_is_a_ruler else r["flow_seconds"] for r in runs.values()
    )


def arm_of(name: str) -> type[Arm] | Combination:
    """The arm of a record; a plain one if it is no longer registered."""
    try:
        return find(name)
    except ValueError:
        return Arm


def metric(runs: Runs, name: str = "top1") -> dict[int, float]:
    return {seed: r["metrics"][name] for seed, r in runs.items()}


def table(arms: dict[str, dict[int, Runs]], epochs: int) -> str:
    """One comparison: means over seeds with 95% intervals (of top-1) and standard errors; differences are paired by seed.

    An arm is compared with `linear` of its own settings, or of the nearest on record (`_nearest`),
    whatever their result. The column of equal time compares with the baseline of another length
    whose time is nearest to that of the arm, the training of its flow included.
    """
    found = {name: by[epochs] for name, by in arms.items() if by.get(epochs)}
    found = dict(sorted(found.items(), key=lambda item: item[0] != "baseline"))
    controls = {name: runs for name, runs in found.items() if name.split(" ")[0] == "linear"}
    baselines = {
        e: b for e, b in arms.get("baseline", {}).items() if e >= epochs and not math.isnan(cost(b))
    }
    nearest = _nearest_in_time(found, baselines)
    columns = {
        "arm": lambda name, runs: name,
        "seeds": lambda name, runs: str(len(runs)),
        "top-1": lambda name, runs: _mean(runs),
        "against baseline": lambda name, runs: _against("baseline", name, runs, found),
        "against SA": lambda name, runs: _against("sa", name, runs, found),
        "against linear": lambda name, runs: _against(_nearest(name, runs, controls), name, runs, found),
        "NLL (SE)": lambda name, runs: _with_error(runs, "nll", 3),
        "ECE (SE)": lambda name, runs: _with_error(runs, "ece", 1),
        "time": lambda name, runs: _time(runs, baselines.get(epochs)),
        "flow, s": lambda name, runs: f"{flow_seconds(runs):.0f}",
        "against baseline of equal time": lambda name, runs: _equal_time(
            runs, epochs, nearest.get(name), baselines
        ),
        "corrupted (SE)": lambda name, runs: _with_error(runs, "corrupted_top1", 1),
    }  # fmt: skip
    if not controls:
        del columns["against linear"]
    if not any(e > epochs for e in nearest.values()):
        del columns["against baseline of equal time"]
    if not any("corrupted_top1" in r["metrics"] for runs in found.values() for r in runs.values()):
        del columns["corrupted (SE)"]
    rows = [[cell(name, runs) for cell in columns.values()] for name, runs in found.items()]
    return markdown_table([list(columns), *rows])


def _nearest_in_time(found: dict[str, Runs], baselines: dict[int, Runs]) -> dict[str, int]:
    """For each arm the epochs of the baseline whose time is nearest to its own, the flow's training included."""
    nearest = {}
    for name, runs in found.items():
        if baselines and not math.isnan(cost(runs)):
            ratios = {e: cost(b) / whole_cost(runs) for e, b in baselines.items()}
            nearest[name] = min(ratios, key=lambda e: abs(math.log(ratios[e])))
    return nearest


def _mean(runs: Runs) -> str:
    top1 = metric(runs).values()
    return interval(*mean_interval(top1)) + error(top1, 2, "SE ")


def _against(other: str | None, name: str, runs: Runs, found: dict[str, Runs]) -> str:
    if other is None or other == name or other not in found:
        return ""
    return difference(metric(runs), metric(found[other]))


def _with_error(runs: Runs, measure: str, digits: int) -> str:
    values = [r["metrics"][measure] for r in runs.values() if measure in r["metrics"]]
    return f"{fmean(values):.{digits}f}" + error(values, digits) if values else ""


def _time(runs: Runs, baseline: Runs | None) -> str:
    ratio = cost(runs) / cost(baseline) if baseline else math.nan
    return "" if math.isnan(ratio) else f"{ratio:.2f}"


def _equal_time(runs: Runs, epochs: int, e: int | None, baselines: dict[int, Runs]) -> str:
    """The difference to the baseline of `e` epochs, and how many the arm's time would be where none comes near."""
    if e in (None, epochs):
        return ""
    its, note = whole_cost(runs), ""
    if its > 1.5 * cost(baselines[e]):
        unit = cost(baselines[epochs]) if epochs in baselines else math.nan
        note = f" (its time: {epochs * its / unit:.0f})"
    return f"{difference(metric(runs), metric(baselines[e]))}, {e} epochs{note}"


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


def line(run: dict[str, Any]) -> str:
    """What a line of a summary compares on, in short; `run` is any of its runs."""
    s = run["settings"]
    model, tuned = "ResNet18, " * (s["model"] == "resnet18"), ", fine-tuned" * ("init" in s)
    return f"{run['data']}: {model}{run['training_images']:,} images, {s['epochs']} epochs{tuned}"
