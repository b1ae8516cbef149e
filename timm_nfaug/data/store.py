"""The files of a cache: arrays with a row for each image, filled shard by shard, and an index.

What the arrays hold is a `Layout`: of the tangents of `NFACache`, or of the latents of train_flow.
The index is written after each shard, with its checksum: builds resume, and damage is found. Where
nothing is left to write, nothing is locked: a complete cache may lie on a read-only disk.
"""

import contextlib
import errno
import hashlib
import io
import json
import math
import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from tokenize import TokenError
from typing import Any, Literal, Protocol

import numpy as np

from .._utils.files import locked, make_directory, reserve, write_atomically
from .._utils.progress import progress, say
from ..change.tangents import BENDS
from .layout import FIELDS, Fields, Index, Layout, is_count, is_text

Arrays = dict[str, np.memmap]
Shards = list[tuple[str, range]]  # the name of each in the index, and its rows

KIND, FORMAT = "tangents", 3
DTYPES: dict[str, Any] = {"crc": np.uint32, "tangents": np.uint8}
# what numpy raises for the header of a damaged file
DAMAGED = (ValueError, EOFError, SyntaxError, TypeError, KeyError, OverflowError, TokenError)
SHARD = 1024  # images between two notes of what is done


OF_TANGENTS: Fields = {
    "flow": is_text,
    "mode_kind": is_text,
    "labels": is_text,
    "step": lambda v: type(v) in (int, float) and 0 < v < math.inf,
    "modes": is_count,
}


def shapes(size: list[int], modes: int) -> dict[str, list[int]]:
    """The shapes of an image's row in each array, for images of a size (C, h, w).

    >>> shapes([3, 32, 32], modes=8)
    {'crc': [], 'tangents': [12, 3080]}
    """
    return {"crc": [], "tangents": [modes + BENDS, math.prod(size) + 8]}


TANGENTS = Layout(
    KIND, FORMAT, DTYPES, OF_TANGENTS, lambda index: shapes(index["size"], index["modes"]),
    "NFA cache", "NFACache.build",
)  # fmt: skip


class Source(Protocol):
    """What a cache is made from.

    >>> [name for name in vars(Source) if not name.startswith("_")]
    ['key', 'unchanged', 'fill', 'check']
    """

    def key(self) -> Index:
        """The index, but for the notes of what is done."""

    def unchanged(self, arrays: Arrays, shards: list[range]) -> list[bool]:
        """Tells which shards are still those of the dataset."""

    def fill(self, arrays: Arrays, shards: list[range]) -> Iterator[int]:
        """Fills shard after shard; yields how many rows of each could not be made."""

    def check(self, unmoved: int) -> None:
        """Warns or raises where so many rows could not be made."""


class Store:
    """The files in one directory; `read` or `write` sets its `index`.

    >>> Store(Path("nowhere")).read()
    Traceback (most recent call last):
    FileNotFoundError: nowhere holds no index.json; NFACache.build makes a cache
    """

    index: Index

    def __init__(self, path: Path, layout: Layout = TANGENTS):
        self.path, self.file, self.layout = path, path / "index.json", layout
        self.parts = {part: path / f"{part}.npy" for part in layout.dtypes}

    def read(self) -> Index:
        """Reads the index, and refuses one of another format or kind, or that is damaged."""
        try:
            index = json.loads(self.file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            what = f"{self.path} holds no {self.file.name}"
            raise FileNotFoundError(f"{what}; {self.layout.remedy} makes a cache") from None
        except (ValueError, RecursionError) as e:
            raise self._damaged(f"is not JSON ({e})") from e
        if not isinstance(index, dict):
            raise self._damaged(f"holds a {type(index).__name__}, not a dict")
        layout = self.layout
        for name, known in (("format", layout.format), ("kind", layout.kind)):
            if (value := index.get(name)) != known:
                what = f"{self.path} holds a cache of {name} {value}, this version reads {known}"
                raise ValueError(f"{what}; delete it and build it again with {layout.remedy}")
        for name, fits in (FIELDS | layout.fields).items():
            if not fits(index.get(name)):
                raise self._damaged(f"holds {name}: {str(index.get(name))[:60]}")
        if index.get("shapes") != layout.shapes(index):
            raise self._damaged("holds shapes that do not go with its size and modes")
        self.index = index
        return index

    def _damaged(self, what: str) -> ValueError:
        remedy = f"delete {self.path} and build it again with {self.layout.remedy}"
        return ValueError(f"{self.file} is damaged: it {what}; {remedy}")

    def open(self, verify: bool) -> Arrays:
        """Maps the arrays to be read; raises ValueError where they are not complete or damaged.

        Without `verify` it looks at their shapes alone, not at their checksums.
        """
        if not self.index["complete"]:
            what = f"the cache in {self.path} is not complete"
            raise ValueError(f"{what}; call {self.layout.remedy} again")
        arrays = self._map("r")
        for _, rows, same in self._compared(arrays, self._shards() if verify else []):
            if not same:
                what = f"rows {rows.start} to {rows.stop - 1} of the cache in {self.path}"
                remedy = f"call {self.layout.remedy} again to repair them"
                raise ValueError(f"{what} are damaged; {remedy}")
        return arrays

    def write(self, source: Source) -> None:
        """Makes the files, resumes, or repairs rows; other processes wait.

        Rows are filled again where they are no longer `unchanged`, or differ from their checksum,
        which is compared if anybody wrote to the files since the last build. Raises ValueError for
        a cache of another key.
        """
        key = source.key()  # with a checksum of all weights
        if self._is_done(key, source):
            self._say("complete")
            return source.check(self._unmoved())
        make_directory(self.path)
        if not os.access(self.path, os.W_OK):
            what = f"{self.path} cannot be written to, and holds no complete cache of this dataset"
            raise OSError(errno.EROFS, f"{what}; name another directory")
        with self._locked(key["count"]):
            self._write(key, source)

    @contextlib.contextmanager
    def _locked(self, count: int) -> Iterator[None]:
        """Keeps other processes out; shows how far one has come that is in already."""

        def look() -> None:
            with contextlib.suppress(OSError, ValueError):  # there is no index yet
                self.read()
                bar.update(self._done() - int(bar.n))

        with contextlib.ExitStack() as held:
            with progress(count, f"{self.layout.name}, made by another process", "images") as bar:
                held.enter_context(locked(self.path, meanwhile=look))
            yield

    def _is_done(self, key: Index, source: Source) -> bool:
        """Tells whether there is nothing to write; looks without a lock."""
        if not self.file.exists():
            return False
        self._read_own(key)
        trusted = self._is_trusted()
        if not self.index["complete"] or (not trusted and os.access(self.path, os.W_OK)):
            return False
        try:
            arrays = self._map("r")
        except ValueError:  # one is missing or damaged
            return False
        return not self._stale(arrays, trusted, source)

    def _read_own(self, key: Index) -> None:
        fresh = {**key, "complete": False, "shards": {}}
        self.index = self.read() if self.file.exists() else fresh
        self.index["unmoved"] = self.index.get("unmoved") or {}  # which older ones lack
        if other := ", ".join(k for k, v in key.items() if self.index.get(k) != v):
            what = f"{self.path} holds a cache that differs in {other}"
            raise ValueError(f"{what}; name another directory or delete it")

    def _write(self, key: Index, source: Source) -> None:
        self._read_own(key)
        self._say(f"of which {self._done():,} are there; if stopped, the same command resumes it")
        trusted, arrays = self._is_trusted(), self._map("r+")  # which may touch the files
        stale, notes = self._stale(arrays, trusted, source), self.index["shards"]
        if any(name in notes for name, _ in stale):  # so that nobody reads them meanwhile
            notes = {k: v for k, v in notes.items() if k not in dict(stale)}
            self._save(complete=False, stamps=None, shards=notes)
        filled = source.fill(arrays, [rows for _, rows in stale])
        for (name, rows), unmoved in zip(stale, filled, strict=True):
            self._note(arrays, name, rows, unmoved)
        source.check(self._unmoved())
        self._save(complete=True, stamps=self._stamps())

    def _done(self) -> int:
        noted = self.index["shards"]
        return sum(len(rows) for name, rows in self._shards() if name in noted)

    def _say(self, state: str) -> None:
        count, size = self.index["count"], self.layout.bytes(self.index)
        amount = f"{size / 1e9:.1f} GB for {count:,} images"
        say(f"{self.layout.name} {self.path}: {amount}, {state}")

    def _note(self, arrays: Arrays, name: str, rows: range, unmoved: int) -> None:
        for array in arrays.values():
            array.flush()
            _forget(array)
        self.index["shards"][name] = _checksum(arrays, rows)
        self.index["unmoved"][name] = unmoved
        self._save()

    def _unmoved(self) -> int:
        return sum(self.index["unmoved"].values())

    def _stale(self, arrays: Arrays, trusted: bool, source: Source) -> Shards:
        """The shards that are to be filled."""
        shards = self._shards()
        intact = [(name, rows) for name, rows in shards if name in self.index["shards"]]
        if not trusted:
            intact = [(name, rows) for name, rows, same in self._compared(arrays, intact) if same]
        same = source.unchanged(arrays, [rows for _, rows in intact])
        kept = {name for (name, _), ok in zip(intact, same, strict=True) if ok}
        return [(name, rows) for name, rows in shards if name not in kept]

    def _compared(self, arrays: Arrays, shards: Shards) -> Iterator[tuple[str, range, bool]]:
        """Reads shards through, and tells of each whether it has its checksum."""
        total = sum(len(rows) for _, rows in shards)
        with progress(total, f"{self.layout.name}, checksums", "images") as bar:
            for name, rows in shards:
                yield name, rows, self.index["shards"].get(name) == _checksum(arrays, rows)
                bar.update(len(rows))

    def _save(self, **changes: Any) -> None:
        self.index.update(changes)
        text = json.dumps(self.index, indent=1)
        write_atomically(self.file, lambda p: p.write_text(text, encoding="utf-8"))

    def _map(self, mode: Literal["r", "r+"]) -> Arrays:
        """Maps the arrays to read ("r"), or to write ("r+"), which makes missing ones."""
        arrays: Arrays = {}
        for part, file in reversed(self.parts.items()):  # the large one first, if there is no room
            shape = self.index["count"], *self.index["shapes"][part]
            dtype = np.dtype(self.layout.dtypes[part])
            with contextlib.suppress(FileNotFoundError, *DAMAGED):
                arrays[part] = np.lib.format.open_memmap(file, "r")
            fits = part in arrays and (arrays[part].shape, arrays[part].dtype) == (shape, dtype)
            if mode == "r+":
                _make(file, shape, dtype, anew=not fits)
                arrays[part] = np.lib.format.open_memmap(file, "r+")
            elif not fits:
                raise ValueError(f"{file} is missing or damaged; {self.layout.remedy} repairs it")
        return arrays

    def _is_trusted(self) -> bool:
        """Tells whether the files are unchanged since they were complete, by their times."""
        with contextlib.suppress(FileNotFoundError):
            return self.index.get("stamps") == self._stamps()
        return False

    def _stamps(self) -> dict[str, int]:
        """When each file was last written to."""
        return {part: file.stat().st_mtime_ns for part, file in self.parts.items()}

    def _shards(self) -> Shards:
        rows, size = range(self.index["count"]), self.index["shard"]
        return [(str(i // size), rows[i : i + size]) for i in rows[::size]]


def _make(file: Path, shape: tuple[int, ...], dtype: np.dtype, anew: bool) -> None:
    """Reserves a file of .npy, as a full disk kills a process that writes to a map; new ones are 0."""
    head = io.BytesIO()
    described = {"descr": dtype.str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(head, described)
    if anew:
        file.unlink(missing_ok=True)
    reserve(file, head.tell() + math.prod(shape) * dtype.itemsize)
    if anew:
        with open(file, "r+b") as f:
            f.write(head.getvalue())


def _checksum(arrays: Arrays, rows: range) -> str:
    h = hashlib.sha256()
    for part in sorted(arrays):
        h.update(arrays[part][rows.start : rows.stop].data)
        _forget(arrays[part])
    return h.hexdigest()


def _forget(array: np.memmap) -> None:
    """Gives back the memory of what was read or written of a mapped file, which keeps it."""
    mapped = getattr(array, "_mmap", None)
    if hasattr(mmap, "MADV_DONTNEED") and isinstance(mapped, mmap.mmap):
        mapped.madvise(mmap.MADV_DONTNEED)
