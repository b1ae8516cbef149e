"""What a result file must hold. Plain Python: results can be checked without torch."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

REQUIRED = {
    "benchmark": str,  # the module, as in python -m benchmarks.NAME
    "command": str,  # what to type to make it again
    "data": str,  # which images: "CIFAR-10 (JPEG), 10,000 validation images"
    "seeds": list,  # of integers
    "environment": dict,
    "results": (dict, list),
}
OPTIONAL = {"claim": str, "settings": dict, "notes": list}
ENVIRONMENT = {
    "machine": dict,
    "versions": dict,
    "commit": str,
    "dirty": bool,
    "threads": int,
    "date": str,
}
MACHINE = {"cpu": str, "cores": int, "memory_gb": (int, float), "gpu": (str, type(None))}
VERSIONS = {"python": str, "torch": str, "torchvision": str, "timm": str, "timm_nfaug": str}

# /x, ~/x and C:\x where a path can begin: at the start, after a space, a quote or one of = : , ( [ {
ABSOLUTE_PATH = re.compile(r"(?:^|[\s\"'=:,(\[{])(?:~?/[\w.~-]|~\w+/|[A-Za-z]:\\)|file:/")


def validate(result: Any) -> None:
    """Raises ValueError with everything that is wrong with a result."""
    if not isinstance(result, dict):
        raise ValueError(
            f"a result is an object with {', '.join(REQUIRED)}, got {type(result).__name__}"
        )
    errors = check_keys(result, REQUIRED, "the result")
    errors += check_keys(result, OPTIONAL, "the result", required=False)
    known = [*REQUIRED, *OPTIONAL]
    errors += [
        f"unknown key {key!r}; known: {', '.join(known)}" for key in result if key not in known
    ]
    filled = ("benchmark", "command", "data", "results")
    errors += [f"{key!r} is empty" for key in filled if result.get(key) in ("", {}, [])]
    seeds = result.get("seeds")
    if isinstance(seeds, list) and not all(_is(s, int) for s in seeds):
        errors.append(f"'seeds' must hold integers, got {seeds!r}")
    environment = result.get("environment")
    if isinstance(environment, dict):
        errors += check_keys(environment, ENVIRONMENT, "environment")
        for key, wanted in (("machine", MACHINE), ("versions", VERSIONS)):
            if isinstance(environment.get(key), dict):
                errors += check_keys(environment[key], wanted, f"environment.{key}")
        commit = environment.get("commit")
        if (
            isinstance(commit, str)
            and commit != "unknown"
            and not re.fullmatch(r"[0-9a-f]{40}", commit)
        ):
            errors.append(f"environment.commit must be a full hash or 'unknown', got {commit!r}")
    errors += check_values(result, "")
    if errors:
        raise ValueError("not a valid result: " + "; ".join(errors))


def validate_file(path: Path) -> dict:
    """Reads and validates a result file; returns it."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        validate(result)
    except ValueError as e:  # JSONDecodeError is one
        raise ValueError(f"{path.name}: {e}") from e
    return result


def check_keys(values: dict, wanted: dict, where: str, required: bool = True) -> list[str]:
    errors = []
    for key, types in wanted.items():
        if key not in values:
            if required:
                errors.append(f"{where} lacks {key!r}")
        elif not _is(values[key], types):
            names = " or ".join(
                t.__name__ for t in (types if isinstance(types, tuple) else (types,))
            )
            errors.append(f"{key!r} in {where} must be {names}, got {type(values[key]).__name__}")
    return errors


def _is(value: Any, types) -> bool:
    if isinstance(value, bool):  # which Python counts among the integers
        return types is bool
    return isinstance(value, types)


def check_values(value: Any, where: str) -> list[str]:
    """Finite numbers, string keys, no absolute path, at any depth."""
    if isinstance(value, dict):
        errors = []
        for key, v in value.items():
            if not isinstance(key, str):
                errors.append(f"key {key!r} at {where or 'the top'} is no string")
            errors += check_values(str(key), f"a key of {where or 'the result'}")
            errors += check_values(v, f"{where}.{key}" if where else str(key))
        return errors
    if isinstance(value, (list, tuple)):
        return [e for i, v in enumerate(value) for e in check_values(v, f"{where}[{i}]")]
    if isinstance(value, str):
        return [f"{where} holds an absolute path: {value!r}"] if ABSOLUTE_PATH.search(value) else []
    if value is None or isinstance(value, (bool, int)):
        return []
    if isinstance(value, float):
        return [] if math.isfinite(value) else [f"{where} is {value}"]
    return [f"{where} is a {type(value).__name__}, which JSON does not know"]
