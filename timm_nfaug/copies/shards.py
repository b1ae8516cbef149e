"""Makes a shard: some images, all files made of them, and a record.

A shard is the unit of work of `timm_nfaug.materialise`: a process, or a machine of a cluster, makes
it whole, and its bytes follow from the seed, the images and the settings alone. Its record, written
last, holds the checksum of every file: a shard without one is made again.
"""

import contextlib
import functools
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from .. import lift, pixels
from .._utils.files import write_atomically
from .._utils.notices import INACTIVE
from .._utils.random import keyed_generator
from ..augment import NFAugment
from ..change import LatentChange, add_change, draw
from ..reading import read_image
from .formats import FORMATS
from .job import Item, Job, Shard, Version

BATCH = 8  # images that are changed together, everywhere: convolutions round by the batch
Record = dict[str, Any]


def make_shard(job: Job, shard: Shard) -> Record:
    """Makes all files of a shard, then its record, which it returns.

    >>> make_shard(Job("no folder", "DATA", copies=3), Shard(0, []))
    Traceback (most recent call last):
    FileNotFoundError: no folder/.nfa/augmentation holds no config.json; ...

    Raises:
        ValueError: an image cannot be read; the file is named.
        OSError: a file cannot be written.
    """
    originals: list[str] = []

    def noted() -> Iterator[Version]:
        for version in _versions(job, augment, shard.items):
            if not version.copy:
                originals.append(hashlib.sha256(version.data).hexdigest())
            yield version

    with one_thread():
        augment = _augmentation(job)
        before = augment.notices.count(*INACTIVE)
        files, size = FORMATS[job.format](job, shard, noted())
        unchanged = augment.notices.count(*INACTIVE) - before
    record = {
        "files": files, "originals": originals, "images": len(shard.items), "bytes": size,
        "unchanged": unchanged,
    }  # fmt: skip
    text = json.dumps(record, indent=0)
    write_atomically(job.record(shard.number), lambda p: p.write_text(text, encoding="utf-8"))
    job.damaged(shard.number).unlink(missing_ok=True)
    return record


def read_record(path: Path) -> Record | None:
    """The record of a shard; None where there is none, or it is damaged.

    >>> read_record(Path("no file")) is None
    True
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        whole = record.keys() == {"files", "originals", "images", "bytes", "unchanged"}
    except (FileNotFoundError, ValueError, AttributeError):
        return None
    return record if whole else None


@functools.lru_cache(maxsize=1)
def _augmentation(job: Job) -> NFAugment:
    own: dict[str, Any] = {} if job.autoencoder is None else {"autoencoder": job.autoencoder}
    return NFAugment.from_pretrained(job.hidden / "augmentation", **own).to(job.device)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Lets torch compute with one thread, since their number changes how convolutions round.

    >>> with one_thread():
    ...     torch.get_num_threads()
    1
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _versions(job: Job, augment: NFAugment, items: list[Item]) -> Iterator[Version]:
    """Each image as it is stored, then its copies."""
    channels = augment.change.size[0]
    read = lambda item: read_image(Path(job.root, item.name), channels)
    # beside a GPU one thread that reads and writes images would be too slow; bytes stay the same
    threads = 1 if job.device == "cpu" else os.cpu_count() or 1
    with ThreadPoolExecutor(threads) as pool:
        each: Callable = map if threads == 1 else pool.map
        for start in range(0, len(items), BATCH):
            part = items[start : start + BATCH]
            images = list(each(read, part))
            again = images * job.copies
            moved = list(
                each(functools.partial(_encoded, job), again, _changes(job, augment, images, part))
            )
            for i, item in enumerate(part):
                yield Version(item, 0, Path(job.root, item.name).read_bytes())
                for copy in range(1, job.copies + 1):
                    yield Version(item, copy, moved[(copy - 1) * len(part) + i])


@torch.no_grad()
def _changes(job: Job, augment: NFAugment, images: list[Image.Image], items: list[Item]) -> Tensor:
    """The changes (copies * B, C, h, w) of images, the first copies of all of them first."""
    change, copies = augment.change, range(1, job.copies + 1)
    draws = [
        draw(1, augment.p, change.noise_size, keyed_generator(job.seed, copy, item.index))[1]
        for copy in copies
        for item in items
    ]
    noise = torch.cat([n if len(n) else torch.zeros(1, change.noise_size) for n in draws])

    def small() -> Tensor:
        levels = [pixels.levels_of(image).unsqueeze(0) for image in images]
        x = torch.cat([lift.down(pixels.levels_to_model(v), change.size[1:]) for v in levels])
        once = isinstance(change, LatentChange)  # which encodes each image once for all its copies
        return x if once else x.repeat(job.copies, 1, 1, 1)

    labels = torch.tensor([item.label for item in items]).repeat(job.copies)
    found = augment._change(small, labels if augment.labels == "given" else None, noise)
    found = found.cpu().clone()
    found[[not len(n) for n in draws]] = 0.0  # those that p leaves as they are
    return found


def _encoded(job: Job, image: Image.Image, change: Tensor) -> bytes:
    """The bytes of the image file of a moved copy."""
    file = io.BytesIO()
    moved = add_change(image, change.unsqueeze(0))
    if job.quality is None:
        moved.save(file, format="PNG")
    else:
        moved.save(file, format="JPEG", quality=job.quality)
    return file.getvalue()
