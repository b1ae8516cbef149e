"""Damaged and hostile flows: each is refused by name, or loads and works."""

from __future__ import annotations

import functools
from pathlib import Path

from benchmarks.reliability import inputs
from benchmarks.reliability.hostile import base_flows, mutate, try_flow
from benchmarks.reliability.rows import Row


def run(count: int, seed: int, work: Path, fork: bool = False) -> list[Row]:
    row = Row("fuzz", "configs and weights of flows")
    return [inputs.run(row, "benchmarks.reliability.fuzz:try_one", count, seed, work, fork=fork)]


@functools.lru_cache
def _bases(folder: Path) -> list[Path]:
    return base_flows(folder)


def try_one(index: int, seed: int, folder: Path) -> tuple[str, str, str]:
    """Damages a flow and loads it."""
    number = seed * 10**7 + index
    kind = mutate(_bases(folder), folder / "hostile", number)
    return kind, try_flow(folder / "hostile"), f"mutate(..., seed={number})"
