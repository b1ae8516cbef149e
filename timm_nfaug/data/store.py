"""The files of a cache: arrays with a row for each image, filled shard by shard, and an index.

The index is written after each shard, with its checksum: builds resume, and damage is found.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .._utils.files import locked, write_atomically

Index = dict[str, Any]
Arrays = dict[str, np.memmap]
Fill = Callable[[Arrays, range], None]
Check = Callable[[Arrays, range], bool]

KIND, FORMAT = "tangents", 3
DTYPES = {"crc": np.uint32, "tangents": np.uint8}  # of each array
INDEX = "index.json"
SHARD = 1024  # images between two notes of what is done

_logger = logging.getLogger(__name__)


def read_index(path: Path) -> Index:
    """Reads the index of a cache, and refuses one of another format or kind.

    >>> read_index(Path("nowhere"))
    Traceback (most recent call last):
    FileNotFoundError: nowhere holds no index.json; NFACache.build makes a cache
    """
    try:
        index = json.loads((path / INDEX).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} holds no {INDEX}; NFACache.build makes a cache") from None
    except ValueError as e:
        raise ValueError(f"{path / INDEX} is not JSON ({e}); delete {path}, build again") from e
    for name, known in (("format", FORMAT), ("kind", KIND)):
        if index.get(name) != known:
            found = f"{path} holds a cache of {name} {index.get(name)}, this version reads {known}"
            raise ValueError(f"{found}; delete it and build it again with NFACache.build")
    return index


def open_arrays(path: Path, index: Index, verify: bool = True) -> Arrays:
    """Maps the arrays of a complete cache into memory, to be read; raises ValueError where damaged.

    Args:
        verify: compare them with their checksums; without, only their shapes are looked at.
    """
    if not index["complete"]:
        raise ValueError(f"the cache in {path} is not complete; call NFACache.build again")
    arrays = _map(path, index, "r")
    for number, known in index["shards"].items() if verify else ():
        rows = _shard(index, int(number))
        if _checksum(arrays, rows) != known:
            what = f"rows {rows.start} to {rows.stop - 1} of the cache in {path}"
            raise ValueError(f"{what} are damaged; call NFACache.build again to repair them")
    return arrays


def write(path: Path, key: Index, fill: Fill, unchanged: Check) -> None:
    """Makes the files of a cache, resumes, or repairs rows; other processes wait.

    Args:
        key: the index without notes of what is done; where there is one of another key, it raises.
        fill: computes rows of the arrays.
        unchanged: whether rows still are those of the dataset. They are also compared with their
            checksum if anybody wrote to the files since the last build.
    """
    path.mkdir(parents=True, exist_ok=True)
    with locked(path):
        index = _find_index(path, key)
        _check_space(path, index)
        arrays = _map(path, index, "r+")
        trusted = index.get("stamps") == _stamps(path)
        for number in range(-(-index["count"] // index["shard"])):
            rows, name = _shard(index, number), str(number)
            if known := index["shards"].get(name):
                intact = trusted or known == _checksum(arrays, rows)
                if intact and unchanged(arrays, rows):
                    continue
                del index["shards"][name]
                _save(path, index, complete=False, stamps=None)
            fill(arrays, rows)
            for array in arrays.values():
                array.flush()
            index["shards"][name] = _checksum(arrays, rows)
            _save(path, index)
            _logger.info("NFA cache %s: %d of %d images", path, rows.stop, index["count"])
        if not (index["complete"] and trusted):
            _save(path, index, complete=True, stamps=_stamps(path))


def _find_index(path: Path, key: Index) -> Index:
    if not (path / INDEX).exists():
        return {**key, "complete": False, "shards": {}}
    index = read_index(path)
    if other := ", ".join(k for k, v in key.items() if index.get(k) != v):
        found = f"{path} holds a cache that differs in {other}"
        raise ValueError(f"{found}; name another directory or delete it")
    return index


def _save(path: Path, index: Index, **changes: Any) -> None:
    index.update(changes)
    text = json.dumps(index, indent=1)
    write_atomically(path / INDEX, lambda p: p.write_text(text, encoding="utf-8"))


def _check_space(path: Path, index: Index) -> None:
    """Raises where the rest does not fit: a full disk kills the process that maps the files."""
    count, shapes = index["count"], index["shapes"]
    row = sum(math.prod(shapes[part]) * np.dtype(t).itemsize for part, t in DTYPES.items()) / 1e9
    there = all((path / f"{part}.npy").is_file() for part in DTYPES)
    done = sum(len(_shard(index, int(number))) for number in index["shards"]) if there else 0
    free = shutil.disk_usage(path).free / 1e9
    if row * (count - done) > free:
        size = f"takes {row * count:.1f} GB, of which {row * done:.1f} GB are there"
        raise OSError(
            f"a cache of {KIND} of {count} images {size}; {path} has {free:.1f} GB left; "
            "take fewer modes or another disk"
        )
    if done < count:
        size = f"{row * count:.1f} GB for {count} images, of which {done} are there"
        _logger.info("NFA cache %s: %s", path, size)


def _map(path: Path, index: Index, mode: Any) -> Arrays:
    """The arrays, to be read ("r") or written ("r+"), which makes those that are not there."""
    arrays: Arrays = {}
    for part, dtype in DTYPES.items():
        file, shape = path / f"{part}.npy", (index["count"], *index["shapes"][part])
        with contextlib.suppress(FileNotFoundError, ValueError, EOFError):
            arrays[part] = np.load(file, mmap_mode=mode)
        if part not in arrays or arrays[part].shape != shape or arrays[part].dtype != dtype:
            if mode == "r":
                raise ValueError(f"{file} is missing or damaged; call NFACache.build to repair it")
            arrays[part] = np.lib.format.open_memmap(file, "w+", dtype, shape)
    return arrays


def _stamps(path: Path) -> dict[str, int]:
    """When each file was last written to."""
    return {part: (path / f"{part}.npy").stat().st_mtime_ns for part in DTYPES}


def _shard(index: Index, number: int) -> range:
    return range(number * index["shard"], min((number + 1) * index["shard"], index["count"]))


def _checksum(arrays: Arrays, rows: range) -> str:
    h = hashlib.sha256()
    for array in arrays.values():
        h.update(np.ascontiguousarray(array[rows.start : rows.stop]).data)
    return h.hexdigest()
