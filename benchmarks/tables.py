"""Fills the generated tables of README.md, docs/ and the pages of benchmarks: ``python -m benchmarks.tables``.

Each suite has a tables.py with its own `TABLES`, name to function. No figure in a table is typed by
hand; a test compares the pages with the records.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable

from benchmarks.core.common import ROOT
from benchmarks.core.pages import filled, pages
from timm_nfaug._utils.files import write_atomically

SUITES = ("evidence", "speed", "analysis", "generation", "imagenet", "timm", "reliability")
MODULES = (
    *(f"{suite}.tables" for suite in SUITES),
    "evidence.answers",
    "evidence.questions",
    "demo",
)


def collect() -> dict[str, Callable[[], str]]:
    """The tables of every suite by name."""
    tables: dict[str, Callable[[], str]] = {}
    for name in MODULES:
        if importlib.util.find_spec(f"benchmarks.{name}"):
            module = importlib.import_module(f"benchmarks.{name}")
            tables |= getattr(module, "TABLES", {})
    return tables


TABLES = collect()


def main() -> None:
    for path in pages():
        text = filled(path.read_text(encoding="utf-8"), TABLES)
        write_atomically(path, lambda p, text=text: p.write_text(text, encoding="utf-8"))
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
