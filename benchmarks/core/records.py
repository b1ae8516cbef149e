"""Runs of the comparisons on record: one JSON object a line, appended as each run ends, and their statistics.

A line holds at least what `REQUIRED` names. A run is known by `key`; a comparison skips the runs
that are on record.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from scipy import stats

from benchmarks.core.common import RESULTS
from benchmarks.core.schema import check_keys, check_values

REQUIRED = {
    "suite": str, "data": str, "split": str, "fraction": float, "arm": str, "seed": int, "flow": (str, type(None)),
    "settings": dict, "metrics": dict, "images_seen": int, "seconds": float, "flow_seconds": float, "device": str,
    "versions": dict, "commit": str, "command": str,
}  # fmt: skip
METRICS = {"top1": float, "nll": float, "ece": float}
FEWEST = 3  # seeds that have an interval: that of two is itself chance
KEY = ("suite", "data", "split", "fraction", "arm", "seed", "flow", "settings")


def validate_run(run: Any) -> None:
    """Raises ValueError with everything that is wrong with a run's line."""
    if not isinstance(run, dict):
        raise ValueError(f"a run is an object with {', '.join(REQUIRED)}, got {type(run).__name__}")
    errors = check_keys(run, REQUIRED, "the run")
    if isinstance(run.get("metrics"), dict):
        errors += check_keys(run["metrics"], METRICS, "metrics")
    errors += check_values(run, "")
    if errors:
        raise ValueError("not a valid run: " + "; ".join(errors))


def key(run: dict[str, Any]) -> str:
    """What two records of the same run have in common."""
    return json.dumps([run[k] for k in KEY], sort_keys=True)


def read(path: Path) -> list[dict[str, Any]]:
    """The valid runs of a file, in order; none where it does not exist. A line cut short by a kill raises."""
    if not path.exists():
        return []
    runs = []
    for i, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            runs.append(json.loads(line))
            validate_run(runs[-1])
        except ValueError as e:  # JSONDecodeError is one
            raise ValueError(f"{path.name}, line {i}: {e}; repair or remove the line") from e
    return runs


def append(run: dict[str, Any], path: Path) -> None:
    """Adds a line in one write, so that two processes can record into one file."""
    validate_run(run)
    line = json.dumps(run, ensure_ascii=False, allow_nan=False) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab", buffering=0) as f:
        f.write(line.encode())


def suite_file(suite: str) -> Path:
    return RESULTS / f"{suite}.jsonl"


def mean_interval(values: Iterable[float], level: float = 0.95) -> tuple[float, float]:
    """Mean, and half the width of its Student interval; NaN below `FEWEST` values."""
    values = list(values)
    mean = statistics.fmean(values)
    if len(values) < FEWEST:
        return mean, math.nan
    return mean, half_width(statistics.stdev(values), len(values), level)


def half_width(deviation: float, count: int, level: float = 0.95) -> float:
    """Half the width of the Student interval of the mean of `count` values of a standard deviation."""
    return float(stats.t.ppf(0.5 + level / 2, count - 1)) * deviation / count**0.5


def seeds_for(gain: float, deviation: float) -> int:
    """The number of seeds whose 95% interval of a mean difference reaches no farther than `gain` to either side."""
    count = max(
        FEWEST, int((stats.norm.ppf(0.975) * deviation / gain) ** 2)
    )  # fewer than Student's
    while half_width(deviation, count) > gain:
        count += 1
    return count


def standard_error(values: Iterable[float]) -> float:
    """The standard error of the mean of two values or more."""
    values = list(values)
    return statistics.stdev(values) / len(values) ** 0.5


def paired(arm: dict[int, float], other: dict[int, float]) -> tuple[float, float, float, int]:
    """Difference arm - other over the seeds both have: mean, half width of its 95% interval, p of the t test, seeds.

    Without interval and p below `FEWEST` seeds.
    """
    seeds = sorted(set(arm) & set(other))
    if not seeds:
        return math.nan, math.nan, math.nan, 0
    differences = [arm[s] - other[s] for s in seeds]
    mean, half = mean_interval(differences)
    if len(seeds) < FEWEST or len(set(differences)) == 1:
        return mean, half, math.nan, len(seeds)
    return mean, half, float(stats.ttest_1samp(differences, 0.0).pvalue), len(seeds)
