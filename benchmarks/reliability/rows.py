"""A line of the table: what was tried, and how each try ended."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from benchmarks.core.common import markdown_table

# how a try ended, and the column where it counts
ENDS = {
    "survived": "survived", "refused": "survived", "loaded": "survived",
    "lost": "lost", "broken": "lost", "raw": "crashes", "killed": "crashes", "hang": "hangs",
}  # fmt: skip
COLUMNS = ("survived", "lost", "crashes", "hangs")
HEAD = ["", "tried", "survived", "data lost or broken", "crashes", "hangs", "peak memory, MB"]
PROBLEMS = 8  # of a line that go into the record
PATH = re.compile(r"(?<![\w.])~?/[\w.~-][^\s'\":,;()\]]*")


@dataclass
class Row:
    """The tries of one kind of fault or input.

    >>> row = Row("kills", "training")
    >>> row.add("survived"), row.add("lost", problem="weights differ")
    (None, None)
    >>> row.tried, row.failures
    (2, 1)
    """

    part: str
    name: str
    kinds: dict[str, Counter] = field(default_factory=dict)  # ends by kind of fault
    problems: list[str] = field(default_factory=list)
    peak_mb: float = 0.0
    notes: list[str] = field(default_factory=list)

    def add(self, end: str, kind: str = "", problem: str = "", peak_mb: float = 0.0) -> None:
        """Counts a try that ended as a word of `ENDS`."""
        if end not in ENDS:
            raise ValueError(f"a try ends as one of {', '.join(ENDS)}, got {end!r}")
        self.kinds.setdefault(kind or self.name, Counter())[end] += 1
        self.peak_mb = max(self.peak_mb, peak_mb)
        said = without_paths(f"{kind or self.name}: {end}: {problem}")
        known = ENDS[end] == "survived" or said in self.problems
        if not known and len(self.problems) < PROBLEMS:
            self.problems.append(said)

    @property
    def tried(self) -> int:
        return sum(sum(own.values()) for own in self.kinds.values())

    @property
    def failures(self) -> int:
        return self.tried - self.column("survived")

    def column(self, name: str) -> int:
        """How many tries count in a column."""
        ends = [e for own in self.kinds.values() for e in own.elements()]
        return sum(ENDS[end] == name for end in ends)

    def record(self) -> dict[str, Any]:
        """What goes into the JSON."""
        counts = {name: self.column(name) for name in COLUMNS}
        return {
            "part": self.part, "name": self.name, "tried": self.tried, **counts,
            "peak_mb": round(self.peak_mb), "kinds": {k: dict(v) for k, v in self.kinds.items()},
            "problems": self.problems, "notes": self.notes,
        }  # fmt: skip


def without_paths(text: str) -> str:
    """One line of at most 240 characters without paths of this machine.

    >>> without_paths("cannot read /tmp/a/b.png: cut")
    'cannot read PATH: cut'
    """
    return PATH.sub("PATH", " ".join(text.split()))[:240]


def cells(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Cells of the table, the header first and the sums last."""
    own = [[f"{r['part']}: {r['name']}", *_numbers([r])] for r in rows]
    return [HEAD, *own, ["**all**", *_numbers(rows)]]


def _numbers(rows: list[dict[str, Any]]) -> list[str]:
    sums = [sum(r[name] for r in rows) for name in ("tried", *COLUMNS)]
    peak = max(r["peak_mb"] for r in rows)
    return [*(f"{n:,}" for n in sums), f"{peak:,.0f}" if peak else "-"]


def table(rows: list[dict[str, Any]]) -> str:
    return markdown_table(cells(rows))
