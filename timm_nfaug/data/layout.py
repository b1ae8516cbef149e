"""Layout: what the files of a cache hold, and what may stand in its index."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Index = dict[str, Any]


def is_count(value: Any) -> bool:
    """Whether a field of an index is a number of things, as many have to be.

    >>> is_count(3), is_count(0)
    (True, False)
    """
    return type(value) is int and 0 < value < 2**32


def is_notes(value: Any, kind: type) -> bool:
    """Whether a field of an index holds notes of one kind by name, such as checksums of shards.

    >>> is_notes({"0": "3f"}, str), is_notes({"0": 1}, str)
    (True, False)
    """
    return isinstance(value, dict) and all(type(v) is kind for v in value.values())


def is_text(value: Any) -> bool:
    """Whether a field of an index is a text, as many have to be.

    >>> is_text("pca"), is_text(None)
    (True, False)
    """
    return isinstance(value, str)


Fields = dict[str, Callable[[Any], bool]]
FIELDS: Fields = {  # what the index of any cache may hold
    "count": is_count,
    "shard": is_count,
    "size": lambda v: isinstance(v, list) and len(v) == 3 and all(map(is_count, v)),
    "complete": lambda v: type(v) is bool,
    "shards": lambda v: is_notes(v, str),
    "stamps": lambda v: v is None or is_notes(v, int),
    "unmoved": lambda v: v is None or is_notes(v, int),
}


@dataclass(frozen=True)
class Layout:
    """What the files of a cache hold.

    Args:
        kind, format: stand in the index, and are compared.
        dtypes: of each array, by its name.
        fields: of the index, beside `FIELDS`: whether a value may stand there.
        shapes: of a row of each array, from the index.
        name: of the cache, in what it says.
        remedy: what builds it, and says so in errors.

    >>> means = Layout("means", 1, {"mean": np.float32}, {}, lambda i: {"mean": [3]}, "Means", "f")
    >>> means.bytes({"count": 10})
    120
    """

    kind: str
    format: int
    dtypes: dict[str, Any]
    fields: Fields
    shapes: Callable[[Index], dict[str, list[int]]]
    name: str
    remedy: str

    def bytes(self, index: Index) -> int:
        """How many bytes the rows of all images take on the disk."""
        shapes, sizes = (
            self.shapes(index),
            {k: np.dtype(v).itemsize for k, v in self.dtypes.items()},
        )
        return sum(math.prod(shapes[k]) * sizes[k] for k in shapes) * index["count"]
