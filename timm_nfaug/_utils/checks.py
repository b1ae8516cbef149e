"""Checks of arguments; errors say what was expected, what came and what to do."""

import difflib
import operator
from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import Tensor

from .notices import warn

STRONG = 5.0  # strength above which images are hardly to be recognised


def check_keys(values: Iterable[str], known: Collection[str], what: str) -> None:
    """Refuses keys outside `known`, naming the closest one.

    >>> check_keys({"depth": 3}, {"depth", "hidden"}, "network")
    """
    for key in values:
        if key not in known:
            similar, every = closest(key, known), ", ".join(sorted(known))
            raise ValueError(f"unknown key {key!r} in {what}{similar}; known: {every}")


def check_choice(name: str, value: str, known: Collection[str]) -> str:
    """Returns `value` if it is one of `known`; else raises, naming the closest.

    >>> check_choice("kind", "pca", ("pca", "axes"))
    'pca'
    """
    if value not in known:
        similar = closest(str(value), known)
        raise ValueError(f"{name} must be one of {', '.join(known)}{similar}, got {value!r}")
    return value


def closest(name: str, known: Iterable[str]) -> str:
    """Gives ' (did you mean ...?)' with the closest of `known`, or ''.

    >>> closest("dept", ["depth", "hidden"])
    " (did you mean 'depth'?)"
    """
    found = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f" (did you mean {' or '.join(map(repr, found))}?)" if found else ""


def is_int(v: Any) -> bool:
    """Tells integers from all else, True and False included.

    >>> is_int(3), is_int(True)
    (True, False)
    """
    return isinstance(v, int) and not isinstance(v, bool)


def is_code(name: str) -> bool:
    """Whether a name stands for a function to be imported and called.

    >>> is_code("models/mine.py:load"), is_code("org/name")
    (True, False)
    """
    path, colon, function = name.rpartition(":")
    module = path.endswith(".py") or all(part.isidentifier() for part in path.split("."))
    return bool(colon) and function.isidentifier() and module


def check_probability(p: float) -> float:
    """Returns `p` as a float if it is in [0, 1].

    >>> check_probability(1)
    1.0
    """
    if not (is_int(p) or isinstance(p, float)) or not 0 <= p <= 1:
        raise ValueError(f"p must be a number from 0 to 1, got {p!r}")
    return float(p)


def check_strength(strength: float) -> float:
    """Returns `strength` as a float if it is finite and at least 0.

    >>> check_strength(2)
    2.0
    """
    if not (is_int(strength) or isinstance(strength, float)) or not 0 <= strength < float("inf"):
        raise ValueError(f"strength must be a finite number of at least 0, got {strength!r}")
    if strength > STRONG:
        warn(
            f"strength {strength:g} moves images by {strength:g} standard deviations along each "
            "mode, which leaves little of them; 0.5 is the default, 1 is strong"
        )
    return float(strength)


def check_modes(modes: int) -> int:
    """Returns `modes` if it is an integer of at least 1.

    >>> check_modes(32)
    32
    """
    if not is_int(modes) or modes < 1:
        raise ValueError(f"modes must be a positive integer, got {modes!r}")
    return modes


def check_seed(seed: Any) -> int | None:
    """Returns `seed` as an int, or None.

    >>> check_seed(None), check_seed(3)
    (None, 3)
    """
    try:
        return None if seed is None else operator.index(seed)
    except TypeError:
        raise TypeError(f"seed must be an integer or None, got {seed!r}") from None


def check_labels(
    y: Any, num_classes: int, device: torch.device, count: int | None = None
) -> Tensor:
    """Returns labels (B,) in 0..num_classes - 1 as int64 on `device`; B must be `count` if given.

    >>> check_labels(torch.tensor([0, 2], dtype=torch.uint8), 3, torch.device("cpu"))
    tensor([0, 2])
    """
    if not isinstance(y, Tensor) or y.ndim != 1 or y.is_floating_point() or y.dtype == torch.bool:
        what = f"{tuple(y.shape)} {y.dtype}" if isinstance(y, Tensor) else type(y).__name__
        wanted = "labels must be an integer tensor of shape (B,)"
        raise TypeError(f"{wanted}, got {what}; mixed or soft labels have no class")
    n, y = len(y), y.to(torch.int64)  # torch has no aminmax of unsigned ones
    if count is not None and n != count:
        raise ValueError(f"labels must be one for each image, got {n} labels for {count} images")
    if n == 1:
        low = high = int(y)
    else:
        low, high = torch.stack(y.aminmax()).tolist() if n else (0, 0)  # one copy from a GPU
    if low < 0 or high >= num_classes:
        wanted = f"labels must be in 0..{num_classes - 1} for a flow of {num_classes} classes"
        one = low >= 1 and high == num_classes
        hint = "labels count from 0: subtract 1 from those that count from 1; " * one
        hint += "choose a flow of this dataset or fit one to it; for images without a class take "
        hint += 'NFAugment with labels="none" or "posterior"'
        if num_classes == 1:
            hint = 'its modes are of all images together: take labels="none" (nfa-lnone), or fit it'
        raise ValueError(f"{wanted}, got {low}..{high}; {hint}")
    return y.to(device)
