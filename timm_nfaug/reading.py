"""Reads image files, and datasets in worker processes, so that this one opens no file of theirs.

What cannot be read is named.
"""

import contextlib
import math
import os
import pickle
import re
import traceback
from collections.abc import Iterator
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, Subset

from ._utils.notices import NFAError, warn

HANDED_ON = (
    "collate_fn", "timeout", "worker_init_fn", "multiprocessing_context", "prefetch_factor",
)  # fmt: skip
UNREADABLE = (OSError, SyntaxError, Image.DecompressionBombError)  # what image files raise


def read_image(path: str | os.PathLike, channels: int) -> Image.Image:
    """Reads an image file of 8 bits a channel, in grey (1 channel) or colour (3).

    >>> read_image(__file__, channels=3)
    Traceback (most recent call last):
    ValueError: cannot read ...

    Raises:
        ValueError: the file is damaged or missing, holds more bits, or unpacks to a size that
            Pillow takes for an attack (twice `PIL.Image.MAX_IMAGE_PIXELS`); the file is named.
    """
    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):  # Pillow would clip it at level 255
                what = f"mode {image.mode} has more than 8 bits a channel"
                raise ValueError(f"{what}; convert it to 8 bits first")
            if image.width * image.height > (Image.MAX_IMAGE_PIXELS or math.inf):
                warn(
                    f"{path} has {image.width} x {image.height} pixels; a smaller copy loads faster"
                )
            return image.convert("L" if channels == 1 else "RGB")
    except Exception as e:  # decoders of damaged files raise anything
        raise ValueError(f"cannot read {path}: {str(e) or type(e).__name__}") from e


class WorkerLoader(DataLoader):
    """A loader with at least one worker: the dataset of this process stays as it is.

    Args:
        like: a loader whose workers these are like; its generator is left alone.
        settings: of torch's DataLoader, in place of those of `like`.

    >>> [x.tolist() for x in WorkerLoader([1, 2, 3], batch_size=2)]
    [[1, 2], [3]]
    """

    def __init__(self, dataset: Any, like: Any = None, **settings: Any):
        like = like if isinstance(like, DataLoader) else None
        own = {} if like is None else {name: getattr(like, name) for name in HANDED_ON}
        workers = settings.pop("num_workers", like.num_workers if like is not None else 1)
        own |= {"num_workers": max(1, workers), "generator": torch.Generator()}
        super().__init__(dataset, **own | settings)

    def __iter__(self) -> Iterator:  # type: ignore[override]
        try:
            return super().__iter__()
        except (TypeError, AttributeError, pickle.PicklingError) as e:
            raise NFAError(
                f"{type(self.dataset).__name__} cannot be sent to the worker process that reads it "
                f"({e}): start workers by fork, define its parts at the top of a module, or give a "
                "dataset that can be pickled, for a fit as fit_dataset="
            ) from e


def count_images(loader: Any) -> int | None:
    """How many images a loader gives, for a rate; None where it cannot know.

    >>> count_images(DataLoader([1, 2, 3], batch_size=2)), count_images([])
    (3, None)
    """
    if hasattr(loader, "expected"):  # which knows when it stops
        return loader.expected
    inner = getattr(loader, "loader", loader)  # of timm's prefetcher
    batches = getattr(inner, "batch_sampler", None)
    try:
        return len(batches.sampler)  # type: ignore[union-attr]
    except (AttributeError, TypeError):  # of a stream, or of batches that somebody else makes
        return None


def message_of(error: BaseException) -> str:
    """The message of an error, without the traceback that a worker puts before it.

    >>> message_of(ValueError("no label"))
    'no label'
    """
    text = str(error)
    if not text.startswith("Caught "):
        return text
    lines = text.rpartition("Traceback (most recent call last):")[2].splitlines()
    said = "\n".join(line for line in lines if line and not line.startswith(" "))
    return re.sub(r"^\S*NFAError: ", "", said)


def naming(loader: Any) -> Iterator[Any]:
    """Yields the batches of a loader; where a file cannot be read, its dataset is searched for it.

    >>> list(naming([3]))
    [3]

    Raises:
        OSError, ValueError: names the sample, and its file where the dataset knows that.
    """
    try:
        yield from loader
    except UNREADABLE as e:
        traceback.clear_frames(e.__traceback__)  # ends the workers before others start
        if not (found := _unreadable(loader, type(e))):
            raise
        kind = OSError if isinstance(e, OSError) else ValueError
        raise kind(f"{found}; repair it, or leave it out") from e


def _unreadable(loader: Any, kind: type[Exception]) -> str:
    """The first sample that cannot be read for this kind of error, and why; "" for none."""
    data, at = getattr(loader, "dataset", None), 0
    if not isinstance(loader, DataLoader) or isinstance(data, IterableDataset):
        return ""
    try:
        for _ in WorkerLoader(data, loader, batch_size=None, collate_fn=_nothing):
            at += 1
    except Exception as e:  # of a dataset of the user's own, which may raise anything
        traceback.clear_frames(e.__traceback__)
        if isinstance(e, kind):
            return f"{name_of(data, at)} cannot be read: {message_of(e)}"
    return ""


def _nothing(sample: Any) -> None:
    """What a worker is to send of a sample."""


def name_of(dataset: Any, i: int) -> str:
    """Names a sample for an error: by its index, and its file where the dataset knows that.

    >>> name_of([0, 1], 1)
    'image 1'
    """
    file = _file(dataset, i)
    return f"image {i} ({file})" if file else f"image {i}"


def _file(dataset: Any, i: int) -> str:
    if isinstance(dataset, Subset):
        return _file(dataset.dataset, dataset.indices[i])
    with contextlib.suppress(Exception):  # a dataset that was not asked for it need not answer
        if hasattr(dataset, "filename"):
            return dataset.filename(i, absolute=True)
        samples = dataset.samples if hasattr(dataset, "samples") else dataset.imgs
        return str(samples[i][0])
    return ""
