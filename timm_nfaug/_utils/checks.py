"""Checks of arguments: each raises an error that says what was expected, what came and what to do."""

from __future__ import annotations

import difflib
from typing import Any

import torch
from torch import Tensor


def check_keys(values: dict[str, Any], known: set[str], what: str) -> None:
    """Refuses keys outside `known`, naming the closest one."""
    for key in values:
        if key not in known:
            raise ValueError(
                f"unknown key {key!r} in {what}{closest(key, known)}; known: {', '.join(sorted(known))}"
            )


def closest(name: str, known) -> str:
    """' (did you mean ...?)' with the closest of `known`, or ''."""
    found = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f" (did you mean {' or '.join(repr(f) for f in found)}?)" if found else ""


def is_int(v) -> bool:
    return isinstance(v, int) and not isinstance(v, bool)


def check_probability(p: float) -> float:
    if isinstance(p, bool) or not isinstance(p, (int, float)) or not 0 <= p <= 1:
        raise ValueError(f"p must be a number from 0 to 1, got {p!r}")
    return float(p)


def check_strength(strength: float) -> float:
    if (
        isinstance(strength, bool)
        or not isinstance(strength, (int, float))
        or not 0 <= strength < float("inf")
    ):
        raise ValueError(f"strength must be a finite number of at least 0, got {strength!r}")
    return float(strength)


def check_labels(
    y: Tensor, num_classes: int, device: torch.device, count: int | None = None
) -> Tensor:
    """Returns labels (B,) as int64 on `device`, or says what is wrong with them, also where B is not `count`."""
    if not isinstance(y, Tensor) or y.ndim != 1 or y.is_floating_point() or y.dtype == torch.bool:
        what = f"{tuple(y.shape)} {y.dtype}" if isinstance(y, Tensor) else type(y).__name__
        raise TypeError(
            f"labels must be an integer tensor of shape (B,), got {what}; mixed or soft labels have no class"
        )
    if count is not None and len(y) != count:
        raise ValueError(
            f"labels must be one for each image, got {len(y)} labels for {count} images"
        )
    low, high = torch.stack(y.aminmax()).tolist() if y.numel() else (0, 0)  # from a GPU at once
    if low < 0 or high >= num_classes:
        raise ValueError(
            f"labels must be in 0..{num_classes - 1} for a flow of {num_classes} classes, "
            f"got {low}..{high}; choose a flow of this data set, fit one to it, or drop the labels"
        )
    return y.to(device, torch.int64)


def check_choice(name: str, value: str, known) -> None:
    """Raises ValueError where a value is none of the known ones, naming the closest."""
    if value not in known:
        raise ValueError(
            f"{name} must be one of {', '.join(known)}{closest(str(value), known)}, got {value!r}"
        )
