"""What the generated tables share: reading a record, and the line under a table that says where it comes from."""

from __future__ import annotations

from typing import Any

from benchmarks.core.common import RESULTS
from benchmarks.core.schema import validate_file


def result(name: str) -> dict[str, Any]:
    """The record benchmarks/results/NAME.json, validated."""
    return validate_file(RESULTS / f"{name}.json")


def source(*names: str) -> str:
    """The command, machine, torch version and commit of each record, one line for each command."""
    lines = []
    for name in names:
        record = result(name)
        e = record["environment"]
        machine, on_gpu = e["machine"], "cuda" in record["command"]
        gpu = f"{machine['gpu']}, " if machine["gpu"] and on_gpu else ""
        lines.append(
            f"<sub>`{record['command']}`: {gpu}{machine['cpu']}, {machine['cores']} cores, "
            f"torch {e['versions']['torch']}, commit {e['commit'][:8]}"
            f"{' + changes' if e['dirty'] else ''}, {e['date']}.</sub>"
        )
    return "\n".join(dict.fromkeys(lines))  # one command may have written several records
