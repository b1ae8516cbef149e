"""Runs of the comparisons on record: one JSON object a line, appended as each run ends.

A line holds at least what `REQUIRED` names. A run is known by `key`; a comparison skips the runs
that are on record.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.core.common import RESULTS
from benchmarks.core.schema import check_keys, check_values

REQUIRED = {
    "suite": str, "data": str, "split": str, "fraction": float, "arm": str, "seed": int, "flow": (str, type(None)),
    "settings": dict, "metrics": dict, "images_seen": int, "seconds": float, "flow_seconds": float, "device": str,
    "versions": dict, "commit": str, "command": str,
}  # fmt: skip
METRICS = {"top1": float, "nll": float, "ece": float}
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
