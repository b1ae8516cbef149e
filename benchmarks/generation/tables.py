"""The table of generation, as the pages show it."""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean
from typing import Any

from benchmarks.core.common import markdown_table
from benchmarks.core.pages import result, source
from benchmarks.generation.run import scores_of

SCORES = ("fid", "coverage", "class_accuracy")


def scores(rows: list[dict[str, Any]], *setting: str | float) -> list[str]:
    """Returns the cells of one (arm, temperature, mean scale), means over seeds; dashes where one has none."""
    own = [r for r in rows if (r["arm"], r["temperature"], r["mean_scale"]) == setting]
    if not own or any(r["error"] for r in own):
        return ["-"] * 3
    return scores_of({k: fmean(r[k] for r in own) for k in SCORES})


def summary(found: dict[str, Any], arms: list[str]) -> list[list[str]]:
    """Returns cells: every arm at temperature 1 and mean scale 1."""
    head = ["arm", "bits/dim", "FID", "Coverage", "class accuracy", "seconds for the training set"]
    cells = [head, ["training images", "", *scores_of(found["floor"]), ""]]
    for arm in arms:
        own = [f for f in found["flows"] if f["arm"] == arm]
        each = [f["training_set_seconds"] for f in own if f["training_set_seconds"] is not None]
        about = " (extrapolated)" if any(f["extrapolated"] for f in own) else ""
        seconds = f"{fmean(each):.1f}{about}" if each else "-"
        bpd = f"{fmean(f['bits_per_dim'] for f in own):.3f}"
        cells.append([arm, bpd, *scores(found["rows"], arm, 1.0, 1.0), seconds])
    return cells


def every_setting(found: dict[str, Any], settings: dict, arms: list[str]) -> list[list[str]]:
    """Returns cells: a row for each arm and mean scale, a column for each temperature."""
    temperatures = settings["temperatures"]
    cells = [["arm", "mean scale", *(f"temperature {t:g}" for t in temperatures)]]
    for arm in arms:
        for m in settings["mean_scales"]:
            if any((r["arm"], r["mean_scale"]) == (arm, m) for r in found["rows"]):
                each = (", ".join(scores(found["rows"], arm, t, m)) for t in temperatures)
                cells.append([arm, f"{m:g}", *each])
    return cells


def generation() -> str:
    record = result("generation")
    found, s = record["results"], record["settings"]
    arms = list(dict.fromkeys(f["arm"] for f in found["flows"]))
    e, seeds = found["feature_extractor"], ", ".join(map(str, record["seeds"]))
    head = (
        f"{record['data']}; {s['samples']} samples a row, seed {seeds}. Features: {e['features']} of "
        f"{e['model']}, {e['epochs']} epochs, {100 * e['held_out_accuracy']:.1f}% of the validation images right."
    )
    return "\n\n".join([
        f"{head} At temperature 1 and mean scale 1:",
        markdown_table(summary(found, arms)),
        "FID, Coverage, class accuracy at all settings:",
        markdown_table(every_setting(found, s, arms)),
        source("generation"),
    ])  # fmt: skip


TABLES: dict[str, Callable[[], str]] = {"generation": generation}
