"""What a cache is filled from: a dataset, whose images worker processes read, and a change."""

import os
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor
from torch.utils.data import Dataset

from .. import lift, pixels
from .._utils.checks import is_int
from .._utils.notices import FEW, NFAError, Notices
from .._utils.progress import progress
from ..augment import NFAugment
from ..inputs import check_image
from ..labels import class_of
from ..reading import WorkerLoader, name_of
from ..unchanged import without_modes
from . import store
from .samples import label_of, parts
from .transforms import map_inside, without_transform


class Source:
    """What a cache is filled from; a subclass says what is kept of an image.

    Args:
        augment: its change moves codes along modes.
        base: a map-style dataset of uint8 images; without its transform.
        batch_size, workers: as for `NFACache.build`.

    >>> from timm_nfaug import NFAugment
    >>> Source(NFAugment.from_pretrained("conv_p4_tiny.digits"), [("image", 3)], 64, None).labels
    'none'
    """

    part = ""  # the array that holds it
    broken = ""  # what is wrong with an image that has nothing to keep
    classes = 0  # of the labels that count; 0: they do not

    def __init__(self, augment: NFAugment, base: Any, batch_size: int, workers: int | None):
        change: Any = augment.change
        self.change, self.flow, self.move = change, change.flow, change.move
        if self.move.needs_code or self.move.noise_size(self.flow) != self.move.modes:
            what = f"kind pca or axes; {self.move.name} takes more than a number for each mode"
            raise ValueError(f"a cache is for moves along modes, {what}")
        if augment.value_range is not None:
            what = "a cache is of uint8 images of levels 0..255, it knows no value_range"
            raise ValueError(f"{what}; put nfa.NFADataset around the dataset instead")
        for name, value in (
            ("batch_size", batch_size),
            ("workers", 1 if workers is None else workers),
        ):
            if not is_int(value) or value < 1:
                raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
        if not hasattr(base, "__len__"):
            raise TypeError(f"expected a map-style dataset (with len), got {type(base).__name__}")
        if not len(base):
            raise ValueError(f"a cache is of images; this {type(base).__name__} has none")
        self.base, self.labels = map_inside(without_transform, base), augment.labels
        self.notices = Notices(augment.strict)
        self.batch_size, self.workers = batch_size, workers

    def made(self, x: Tensor, y: Tensor | None) -> tuple[np.ndarray, int]:
        """What is kept of images (B, C, h, w) in [-1, 1], and of how many there is nothing."""
        raise NotImplementedError

    def unchanged(self, arrays: store.Arrays, shards: list[range]) -> list[bool]:
        """Looks at a few of the images; each is looked at again when it is used."""
        some = [rows[:: max(1, len(rows) // 8)] for rows in shards]
        same = []
        with progress(sum(map(len, some)), "NFA cache, comparing", "images") as bar:
            for rows, (_, _, crc) in zip(some, self._read(some), strict=True):
                same.append(arrays["crc"][list(rows)].tolist() == crc.tolist())
                bar.update(len(rows))
        return same

    def fill(self, arrays: store.Arrays, shards: list[range]) -> Iterator[int]:
        """Fills the rows of each shard; yields how many of them the flow could not move."""
        size = self.batch_size
        batches = [[rows[i : i + size] for i in range(0, len(rows), size)] for rows in shards]
        read = self._read([rows for own in batches for rows in own])
        count = len(self.base)
        with progress(count, "NFA cache", "images", count - sum(map(len, shards))) as bar:
            for own in batches:
                unmoved = 0
                for rows, (x, y, crc) in zip(own, read):
                    (found, failed), where = self.made(x, y), slice(rows.start, rows.stop)
                    arrays[self.part][where] = found
                    arrays["crc"][where] = crc.numpy()
                    unmoved += failed
                    bar.update(len(rows))
                yield unmoved

    def check(self, unmoved: int) -> None:
        count = len(self.base)
        cause = without_modes(self.change) or f"{self.broken}, or take another one"
        what = f"the flow cannot move {unmoved} of {count} images: {cause}"
        if unmoved == count:
            raise NFAError(what)
        if unmoved > FEW * count:
            self.notices.say("no modes", what, images=unmoved)

    def _read(self, batches: list[range]) -> Iterator[tuple[Tensor, Tensor | None, Tensor]]:
        """Yields images, labels and checksums of rows, which worker processes read."""
        if not batches:
            return
        data = _Rows(self.base, self.change.size, self.classes)
        workers = self.workers or min(4, cpus(), len(batches))
        how: dict[str, Any] = {"batch_size": None, "num_workers": workers}
        for found in WorkerLoader(data, sampler=batches, **how):
            if isinstance(found, Exception):
                raise found
            yield found


class _Rows(Dataset):
    """Gives rows of a dataset as the flow takes them; read in a loader's worker processes."""

    def __init__(self, base: Any, size: tuple[int, int, int], num_classes: int):
        self.base, self.size, self.num_classes = base, size, num_classes  # 0: of no labels

    def __getitem__(self, rows: range) -> tuple[Tensor, Tensor | None, Tensor] | Exception:
        """Images (B, C, h, w) in [-1, 1], labels (B,) if given, and checksums (B,) of the rows.

        Or the error at the first that cannot be read, for the main process to raise.
        """
        images, labels, crc = [], [], []
        for i in rows:
            try:
                image, *rest = parts(self.base[i])
                images.append(self._small(image))
                if self.num_classes:
                    labels.append(class_of(label_of(rest, self.num_classes)))
                crc.append(crc_of(image, *labels[-1:]))
            except Exception as e:  # whatever a dataset may raise
                kind = next((k for k in (OSError, TypeError) if isinstance(e, k)), ValueError)
                return kind(f"{name_of(self.base, i)} cannot be cached: {type(e).__name__}: {e}")
        return torch.cat(images), torch.tensor(labels) if labels else None, torch.tensor(crc)

    def _small(self, image: Any) -> Tensor:
        """An image at the flow's size: (1, C, h, w), in [-1, 1]."""
        levels, (c, h, w) = pixels.levels_of(image).unsqueeze(0), self.size
        check_image(image, c)
        return lift.down(pixels.levels_to_model(levels), (h, w))


def cpus() -> int:
    """How many CPUs this process may use.

    >>> cpus() > 0
    True
    """
    known = hasattr(os, "sched_getaffinity")  # not on macOS or Windows
    return len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1


def crc_of(image: Any, label: int = 0) -> int:
    """A checksum of the pixels and, where it counts, the label.

    >>> crc_of(torch.zeros(1, 2, 2, dtype=torch.uint8))
    558161692
    """
    pil = isinstance(image, PIL.Image.Image)
    own = image.tobytes() if pil else image.contiguous().numpy().tobytes()
    return zlib.crc32(own, label & 0xFFFFFFFF)
