"""The tables of the ImageNet benchmark: none yet, as it has no result on record."""

from __future__ import annotations

from collections.abc import Callable

TABLES: dict[str, Callable[[], str]] = {}
