"""The files of a cache: arrays with a row for each image, filled shard by shard, and an index.

The index is written after each shard, with its checksum: builds resume, and damage is found.
"""

import contextlib
import hashlib
import json
import logging
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np

from .._utils.files import locked, write_atomically

Index = dict[str, Any]
Arrays = dict[str, np.memmap]
Fill = Callable[[Arrays, range], None]
Check = Callable[[Arrays, range], bool]

KIND, FORMAT = "tangents", 3
DTYPES: dict[str, np.dtype] = {"crc": np.dtype(np.uint32), "tangents": np.dtype(np.uint8)}
SHARD = 1024  # images between two notes of what is done

_logger = logging.getLogger(__name__)


class Store:
    """The files in one directory; `read` or `write` sets its `index`.

    >>> Store(Path("nowhere")).read()
    Traceback (most recent call last):
    FileNotFoundError: nowhere holds no index.json; NFACache.build makes a cache
    """

    index: Index

    def __init__(self, path: Path):
        self.path, self.file = path, path / "index.json"
        self.parts = {part: path / f"{part}.npy" for part in DTYPES}

    def read(self) -> Index:
        """Reads the index, and refuses one of another format or kind."""
        try:
            self.index = json.loads(self.file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            what = f"{self.path} holds no {self.file.name}"
            raise FileNotFoundError(f"{what}; NFACache.build makes a cache") from None
        except ValueError as e:
            raise ValueError(
                f"{self.file} is not JSON ({e}); delete {self.path}, build again"
            ) from e
        for name, known in (("format", FORMAT), ("kind", KIND)):
            if (value := self.index.get(name)) != known:
                what = f"{self.path} holds a cache of {name} {value}, this version reads {known}"
                raise ValueError(f"{what}; delete it and build it again with NFACache.build")
        return self.index

    def open(self, verify: bool) -> Arrays:
        """Maps the arrays to be read; raises ValueError where they are not complete or damaged.

        Without `verify` it looks at their shapes alone, not at their checksums.
        """
        if not self.index["complete"]:
            raise ValueError(f"the cache in {self.path} is not complete; call NFACache.build again")
        arrays = self._map("r")
        for name, rows in self._shards() if verify else ():
            if self.index["shards"][name] != _checksum(arrays, rows):
                what = f"rows {rows.start} to {rows.stop - 1} of the cache in {self.path}"
                raise ValueError(f"{what} are damaged; call NFACache.build again to repair them")
        return arrays

    def write(self, key: Index, fill: Fill, unchanged: Check) -> None:
        """Makes the files, resumes, or repairs rows; other processes wait.

        Rows are filled again where they are no longer `unchanged`, or differ from their checksum,
        which is compared if anybody wrote to the files since the last build. Raises ValueError for
        a cache of another key, which is the index but for the notes of what is done.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with locked(self.path):
            fresh = {**key, "complete": False, "shards": {}}
            self.index = self.read() if self.file.exists() else fresh
            if other := ", ".join(k for k, v in key.items() if self.index.get(k) != v):
                what = f"{self.path} holds a cache that differs in {other}"
                raise ValueError(f"{what}; name another directory or delete it")
            self._check_space()
            arrays = self._map("r+")
            trusted = self.index.get("stamps") == self._stamps()
            for name, rows in self._shards():
                known = self.index["shards"].get(name)
                intact = known and (trusted or known == _checksum(arrays, rows))
                if not (intact and unchanged(arrays, rows)):
                    self._fill(arrays, name, rows, fill)
            self._save(complete=True, stamps=self._stamps())

    def _fill(self, arrays: Arrays, name: str, rows: range, fill: Fill) -> None:
        if self.index["shards"].pop(name, None):  # nobody is to take half of it for whole
            self._save(complete=False, stamps=None)
        fill(arrays, rows)
        for array in arrays.values():
            array.flush()
        self.index["shards"][name] = _checksum(arrays, rows)
        self._save()
        _logger.info("NFA cache %s: %d of %d images", self.path, rows.stop, self.index["count"])

    def _save(self, **changes: Any) -> None:
        self.index.update(changes)
        text = json.dumps(self.index, indent=1)
        write_atomically(self.file, lambda p: p.write_text(text, encoding="utf-8"))

    def _check_space(self) -> None:
        """Raises where the rest does not fit: a full disk kills the process that maps the files."""
        count, shapes = self.index["count"], self.index["shapes"]
        notes = self.index["shards"] if all(file.is_file() for file in self.parts.values()) else ()
        done = sum(len(rows) for name, rows in self._shards() if name in notes)
        row = sum(math.prod(shapes[part]) * dtype.itemsize for part, dtype in DTYPES.items()) / 1e9
        free = shutil.disk_usage(self.path).free / 1e9
        what = f"{row * count:.1f} GB for {count} images, of which {done} are there"
        if row * (count - done) > free:
            what = f"a cache takes {what}; {self.path} has {free:.1f} GB left"
            raise OSError(f"{what}; take fewer modes or another disk")
        if done < count:
            _logger.info("NFA cache %s: %s", self.path, what)

    def _map(self, mode: Literal["r", "r+"]) -> Arrays:
        """Maps the arrays, to be read ("r") or written ("r+"), which makes those that lack."""
        arrays: Arrays = {}
        for part, file in self.parts.items():
            shape, dtype = (self.index["count"], *self.index["shapes"][part]), DTYPES[part]
            with contextlib.suppress(FileNotFoundError, ValueError, EOFError):
                arrays[part] = np.load(file, mmap_mode=mode)
            if part not in arrays or (arrays[part].shape, arrays[part].dtype) != (shape, dtype):
                if mode == "r":
                    raise ValueError(f"{file} is missing or damaged; NFACache.build repairs it")
                arrays[part] = np.lib.format.open_memmap(file, "w+", dtype, shape)
        return arrays

    def _stamps(self) -> dict[str, int]:
        """When each file was last written to."""
        return {part: file.stat().st_mtime_ns for part, file in self.parts.items()}

    def _shards(self) -> list[tuple[str, range]]:
        """The name of each shard in the index, and its rows."""
        rows, size = range(self.index["count"]), self.index["shard"]
        return [(str(i // size), rows[i : i + size]) for i in rows[::size]]


def _checksum(arrays: Arrays, rows: range) -> str:
    h = hashlib.sha256()
    for part in DTYPES:
        h.update(arrays[part][rows.start : rows.stop].data)
    return h.hexdigest()
