"""The table of the tests of reliability, as the page shows it."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.core.pages import result, source
from benchmarks.reliability import rows


def reliability() -> str:
    return f"{rows.table(result('reliability')['results']['rows'])}\n\n{source('reliability')}"


TABLES: dict[str, Callable[[], str]] = {"reliability": reliability}
