"""What the generated pages share: reading a record, naming the source of a table, filling a page.

A table stands between ``<!-- table: NAME -->`` and ``<!-- end -->``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.core.common import RESULTS, ROOT
from benchmarks.core.schema import validate_file

SECTION = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.S)
# module names at the time of the records, all under benchmarks, and where those modules are now
MOVED = {
    "flow_batches": "speed.flow_batches", "flow_memory": "speed.flow_memory",
    "flow_objectives": "analysis.flow_objectives",
    "flow_pareto": "analysis.flow_pareto", "flow_report": "analysis.flow_report",
    "flow_speed": "speed.flow_speed", "generation": "generation.run",
    "imagenet_real": "imagenet.real",
    "linearity": "analysis.linearity", "proposition": "analysis.proposition",
    "shrinkage": "analysis.shrinkage", "tangents": "analysis.tangents",
    "throughput": "speed.throughput", "timm_matrix": "timm.flags", "timm_train": "timm.speed",
}  # fmt: skip


def result(name: str) -> dict[str, Any]:
    """The record benchmarks/results/NAME.json, validated."""
    return validate_file(RESULTS / f"{name}.json")


def command(record: dict[str, Any]) -> str:
    """The command of a record, by the present name of its module."""
    return re.sub(
        r"(?<= -m benchmarks\.)\w+(?= |$)", lambda m: MOVED.get(m[0], m[0]), record["command"]
    )


def source(*names: str) -> str:
    """Command, machine, torch version and commit of each record, a line for each command."""
    lines = []
    for name in names:
        record = result(name)
        e = record["environment"]
        machine = e["machine"]
        gpu = f"{machine['gpu']}, " if machine["gpu"] and "cuda" in record["command"] else ""
        lines.append(
            f"<sub>`{command(record)}`: {gpu}{machine['cpu']}, {machine['cores']} cores, "
            f"torch {e['versions']['torch']}, commit {e['commit'][:8]}"
            f"{' + changes' if e['dirty'] else ''}, {e['date']}.</sub>"
        )
    return "\n".join(dict.fromkeys(lines))  # one command may have written several records


def pages() -> list[Path]:
    """The documents with generated tables."""
    docs = ("evidence", "reliability", "scale", "timm_flags", "train_flow")
    fixed = [ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in docs)]
    return [*fixed, *sorted(RESULTS.glob("*.md"))]


def filled(text: str, tables: dict[str, Callable[[], str]]) -> str:
    """A document with its tables made anew."""
    return SECTION.sub(lambda m: f"{m[1]}{tables[m[2]]()}\n{m[3]}", text)
