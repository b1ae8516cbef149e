"""The plan of a set with copies: which image belongs to which shard, and what OUT was begun with."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from timm.utils.misc import natural_key

from .._utils.files import write_atomically
from .._utils.random import keyed_generator
from .job import Item, Job, Shard, digest

OTHER = "go on with what it was begun with, or name another --out"


class Plan:
    """The images of a folder in shards, in an order that the seed fixes.

    The order mixes classes, so that a loader that reads few shards at a time sees all of them.

    Args:
        samples: (path, label) of each image, of timm's reader.
        root: folder that all paths lie in.
        images: in a shard.

    >>> plan = Plan([("data/a/0.png", 0), ("data/b/1.png", 1), ("data/b/2.png", 1)], "data", 0, 2)
    >>> len(plan), sorted(item.name for i in range(2) for item in plan.shard(i).items)
    (2, ['a/0.png', 'b/1.png', 'b/2.png'])
    """

    def __init__(self, samples: list[tuple[str, int]], root: str, seed: int, images: int):
        self.samples, self.root, self.images = samples, Path(root), images
        self._order = torch.randperm(len(samples), generator=keyed_generator(seed))

    def __len__(self) -> int:
        return -(-len(self.samples) // self.images)

    def item(self, index: int) -> Item:
        path, label = self.samples[index]
        return Item(index, Path(path).relative_to(self.root).as_posix(), label)

    def shard(self, number: int) -> Shard:
        part = self._order[number * self.images : (number + 1) * self.images]
        return Shard(number, [self.item(i) for i in part.tolist()])

    def check_names(self, copies: int) -> None:
        """Refuses images whose copies would have one name."""
        stems: dict[str, str] = {}
        for i in range(len(self.samples)):
            item = self.item(i)
            if (other := stems.setdefault(item.stem, item.name)) != item.name:
                raise ValueError(
                    f"the copies of {other} and {item.name} would have the same names: rename one, "
                    "or take --format webdataset"
                )
        for stem, name in stems.items():
            own, mark, number = stem.rpartition("_nfa")
            if mark and own in stems and number.isdigit() and 1 <= int(number) <= copies:
                raise ValueError(
                    f"{name} has the name of a copy of {stems[own]}: is --data-dir a set with copies "
                    "already? Rename it, or take --format webdataset"
                )

    def stamps(self) -> Iterator[list]:
        """What tells whether an image was changed: name, label, bytes, time."""
        for i in range(len(self.samples)):
            item = self.item(i)
            found = (self.root / item.name).stat()
            yield [item.name, item.label, found.st_size, found.st_mtime_ns]


def write_plan(plan: Plan, job: Job, settings: dict[str, Any]) -> None:
    """Notes in OUT which images and settings it is begun with; the settings last.

    >>> import tempfile
    >>> job = Job(tempfile.mkdtemp(), "DATA", copies=3)
    >>> write_plan(Plan([], "DATA", 0, 2), job, {"copies": 3})
    >>> read_settings(job)
    {'copies': 3}
    """

    def write_images(path: Path) -> None:
        with open(path, "w", encoding="utf-8") as f:
            f.writelines(json.dumps(stamp) + "\n" for stamp in plan.stamps())

    write_atomically(_images(job), write_images)
    text = json.dumps(settings, indent=1)
    write_atomically(_settings(job), lambda p: p.write_text(text, encoding="utf-8"))


def read_settings(job: Job) -> dict[str, Any] | None:
    """The settings that OUT was begun with; None where it is new.

    >>> read_settings(Job("no folder", "DATA", copies=3)) is None
    True
    """
    try:
        return json.loads(_settings(job).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as e:
        raise ValueError(f"{_settings(job)} is damaged ({e}): name another --out") from e


def check_settings(out: str, known: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuses to go on with other settings; names what differs.

    >>> check_settings("OUT", {"copies": 3, "seed": 0}, {"copies": 2, "seed": 0})
    Traceback (most recent call last):
    ValueError: OUT was begun with copies 3, not 2: go on with ..., or name another --out
    """
    differ = [key for key in {**known, **now} if known.get(key) != now.get(key)]
    if differ:
        what = ", ".join(f"{key} {known.get(key)}, not {now.get(key)}" for key in differ)
        raise ValueError(f"{out} was begun with {what}: {OTHER}")


def touched(plan: Plan, job: Job) -> set[int]:
    """Indices of images with another time than when OUT was begun.

    >>> import tempfile
    >>> job, plan = Job(tempfile.mkdtemp(), "DATA", copies=3), Plan([], "DATA", 0, 2)
    >>> write_plan(plan, job, {})
    >>> touched(plan, job)
    set()

    Raises:
        ValueError: an image is new, gone, of another class or of another size; it is named.
    """
    found = set()
    with open(_images(job), encoding="utf-8") as f:
        pairs = itertools.zip_longest(map(json.loads, f), plan.stamps())
        for index, (known, now) in enumerate(pairs):
            if known is None or now is None or known[:3] != now[:3]:
                raise ValueError(f"{_changed(known, now)} since {job.out} was begun: {OTHER}")
            if known[3] != now[3]:
                found.add(index)
    return found


def check_originals(job: Job, shard: Shard, known: list[str], indices: set[int]) -> None:
    """Refuses images of a finished shard that are not what its copies were made from.

    Args:
        known: checksums of the shard's images.
        indices: of images to be looked at.

    >>> check_originals(Job("OUT", "DATA", copies=3), Shard(0, []), [], set())
    """
    for item, checksum in zip(shard.items, known):
        if item.index in indices and digest(Path(job.root, item.name)) != checksum:
            raise ValueError(
                f"{Path(job.root, item.name)} has changed since its copies in {job.out} were made: "
                f"{OTHER}"
            )


def _changed(known: list | None, now: list | None) -> str:
    if known is None or (now is not None and natural_key(now[0]) < natural_key(known[0])):
        assert now is not None
        return f"the image {now[0]} is new"
    if now is None or now[0] != known[0]:
        return f"the image {known[0]} is gone"
    what = ("class", "size")[known[1] == now[1]]
    return f"the {what} of the image {known[0]} has changed"


def _images(job: Job) -> Path:
    return job.hidden / "images.jsonl"


def _settings(job: Job) -> Path:
    return job.hidden / "settings.json"
