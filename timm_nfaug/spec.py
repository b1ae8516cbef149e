"""The string ``nfa-s0.5-k32-p0.5``: the settings of `NFAugment` in timm's idiom."""

import re
from typing import Any

from ._utils.checks import check_keys
from .config import SETTINGS
from .labels import LABELS
from .moves import list_moves


def parse_config(text: str) -> dict[str, Any]:
    """Reads a string of settings: s strength, k modes, p probability, m kind, l labels.

    >>> parse_config("nfa-s0.5-k32-mpca")
    {'strength': 0.5, 'modes': 32, 'kind': 'pca'}

    Raises:
        ValueError: a part that cannot be read, is unknown, or stands twice.
    """
    head, *parts = re.split(r"-(?=[a-z])", text)  # a minus sign belongs to its number
    if head != "nfa":
        if number := re.fullmatch(r"nfa-?([\d.]+)", head):  # without its letter
            meant = text.replace(head, f"nfa-s{number[1]}")
            raise ValueError(f"a number needs its letter, got {text!r}; did you mean {meant!r}?")
        raise ValueError(
            f"an NFA string starts with 'nfa', got {text!r}; example: nfa-s0.5-k32-p0.5"
        )
    values: dict[str, Any] = {}
    for part in parts:
        name, value = _parse_part(part, text)
        if name in values:
            raise ValueError(f"{part[0]} stands twice in {text!r}")
        values[name] = value
    return values


def _parse_part(part: str, text: str) -> tuple[str, Any]:
    match = re.fullmatch(r"([a-z])(.+)", part)
    if not match:
        raise ValueError(
            f"cannot read {part!r} in {text!r}; each part is a letter and a value, as in s0.5"
        )
    key, value = match.groups()
    check_keys({key: value}, SETTINGS, f"{text!r}")
    name = SETTINGS[key]
    known = {"m": list_moves(), "l": LABELS}.get(key)
    if known:
        if value not in known:
            hint = "; the strength is s, as in s0.5" if value[0].isdigit() else ""
            takes = ", ".join(known)
            raise ValueError(f"{key} ({name}) takes {takes}, got {value!r} in {text!r}{hint}")
        return name, value
    try:
        return name, int(value) if key == "k" else float(value)
    except ValueError:
        kind = "an integer" if key == "k" else "a number"
        raise ValueError(f"{key} ({name}) takes {kind}, got {value!r} in {text!r}") from None
