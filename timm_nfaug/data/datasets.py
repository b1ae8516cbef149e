"""Datasets whose images are augmented before their transform.

The random numbers of a sample follow from seed, epoch and index, whatever the workers; `set_epoch`
sets the epoch.
"""

import hashlib
import sys
import zlib
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from .._utils.checks import check_probability, check_strength, is_int
from .._utils.files import make_directory, remove_leftovers, write_atomically
from .._utils.notices import Notices
from .._utils.random import keyed_generator, process_rank
from ..augment import NFAugment
from ..change import FlowChange, LatentChange, add_change, draw
from .cache import NFACache, StrPath, digest
from .samples import label_of, parts, with_image
from .transforms import (
    Later,
    as_stored,
    for_workers,
    is_view,
    map_inside,
    transform_later,
    without_transform,
)  # fmt: skip


class _Wrapped(Dataset):
    """A map-style dataset of (image, label) pairs or dicts whose transform runs after `_changed`."""

    augment: NFAugment
    copies = 0  # further passes over `base`
    # what timm's loaders and evaluation scripts ask of a dataset
    classes = property(lambda self: self.base.classes)
    class_to_idx = property(lambda self: self.base.class_to_idx)

    def __init__(self, base: Any, seed: int):
        if isinstance(base, (DataLoader, IterableDataset)) or not hasattr(base, "__len__"):
            raise TypeError(
                f"expected a map-style dataset (with len and index), got {type(base).__name__}; "
                "give the dataset of a loader; for a stream put NFAugment into its transform"
            )
        transform = None if is_view(base) else getattr(base, "transform", None)
        self.transform = None if transform is as_stored else transform
        self.base = map_inside(transform_later if is_view(base) else without_transform, base)
        self.seed = seed
        # shared memory, so that persistent workers see a new epoch
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state)
        self._epoch.share_memory_()  # which a deep copy lacks

    def __len__(self) -> int:
        return (1 + self.copies) * len(self.base)

    def __getitem__(self, index: int) -> Any:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is out of range for {len(self)} samples")
        index %= len(self)
        sample = self.base[index % len(self.base)]
        image, *rest = parts(sample)
        image, inner = (image.image, image.transform) if isinstance(image, Later) else (image, None)
        image = self._changed(image, self._label(rest), index)
        for transform in (inner, self.transform):
            image = image if transform is None else transform(image)
        return with_image(sample, image)

    def _label(self, rest: list[Any]) -> Any:
        """The class where labels are given (docs/labels.md); else what comes after the image."""
        if self.augment.labels == "given" and not self.augment.idle:
            return label_of(rest, self.augment.change.num_classes)
        return rest[0] if rest else None

    def _changed(self, image: Any, label: Any, index: int) -> Any:
        """The image of sample `index` before the transform."""
        raise NotImplementedError

    def set_epoch(self, epoch: int) -> None:
        """Chooses the random numbers of the next pass: those of this epoch."""
        self._epoch.fill_(epoch)
        if hasattr(self.base, "set_epoch"):
            self.base.set_epoch(epoch)

    def filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        """File name of the original that sample `index` was made from."""
        return self.base.filename(index % len(self.base), basename, absolute)

    def filenames(self, basename: bool = False, absolute: bool = False) -> list[str]:
        """File names of the originals of all samples."""
        return self.base.filenames(basename, absolute) * (1 + self.copies)


class CachedNFADataset(_Wrapped):
    """A dataset whose images a cache moves before their transform: no flow in training.

    It works under timm's `create_loader`, which sets `transform`; call `set_epoch`.

    Args:
        base: the dataset that the cache was built from; its `transform` moves to the wrapper.
        strength, p: as for `NFAugment`.
        modes: number of modes moved along; those of the cache unless given.

    >>> import tempfile
    >>> augment = NFAugment.from_pretrained("conv_p4_tiny.digits", modes=4)
    >>> base = [(torch.zeros(1, 8, 8, dtype=torch.uint8), 3)]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     data = CachedNFADataset(base, NFACache.build(augment, base, folder), p=1.0)
    >>> torch.equal(data[0][0], base[0][0])
    False
    """

    def __init__(
        self,
        base: Any,
        cache: NFACache,
        strength: float = 0.5,
        p: float = 0.5,
        modes: int | None = None,
        seed: int = 0,
    ):
        super().__init__(base, seed)
        if len(base) != len(cache):
            found = f"the cache holds {len(cache)} images, the dataset has {len(base)}"
            raise ValueError(f"{found}; build a cache of this one")
        self.cache, self.modes = cache, cache.checked_modes(modes)
        self.strength, self.p = check_strength(strength), check_probability(p)
        self.notices = Notices().share()  # with the workers

    def _label(self, rest: list[Any]) -> Any:
        return label_of(rest, sys.maxsize) if self.cache.labels == "given" else None

    def _changed(self, image: Any, label: Any, index: int) -> Any:
        g = keyed_generator(self.seed, int(self._epoch), index)
        if self.p == 1:
            torch.rand((), generator=g)  # as at a smaller p, so that the noise is the same
        _, noise = draw(1, self.p, self.modes, g)
        if not (len(noise) and self.strength):
            return image
        change = self.cache.change(index, image, label, noise[0], self.strength).unsqueeze(0)
        if not change.any():
            what = "comes back unchanged: the flow could not move it when the cache was built"
            self.notices.say("no modes", f"image {index} {what}; build it with another flow")
        if isinstance(image, torch.Tensor):
            return add_change(image.unsqueeze(0), change)[0]
        return add_change(image, change)


class _Augmented(_Wrapped):
    """A dataset whose images an `NFAugment` moves."""

    def __init__(self, base: Any, augment: NFAugment, seed: int):
        super().__init__(base, seed)
        self.augment = for_workers(augment)
        self.notices = self.augment.notices

    def _draw(self, image: Any, label: Any, *key: int) -> Any:
        generator = keyed_generator(*key)
        if label is None or self.augment.labels != "given":
            return self.augment(image, generator=generator)
        return self.augment(image, label, generator=generator)[0]


class NFADataset(_Augmented):
    """A dataset whose images are augmented as they are read, in the loader's workers: no copies.

    Each image is augmented with probability `augment.p`, before the dataset's own transform, with
    its label where `augment.labels` is "given". Works with any map-style dataset of (image, label)
    or dicts, with Subset, random_split and ConcatDataset (the transforms of the datasets inside
    run after NFA, too), and under timm's `create_loader`, which sets `transform`.

    Random numbers follow from seed, rank, index and epoch, whatever the workers. The epoch of a
    sample is how often it was read, so that each pass differs from the one before without any call.
    `set_epoch(e)` sets it for all samples: call it before a pass to resume a training, and where
    passes end early, as workers read ahead.

    Args:
        base: the dataset; it stays as it is, its `transform` moves to the wrapper.
        augment: its own `seed` plays no part.

    >>> augment = NFAugment.from_pretrained("conv_p4_tiny.digits", p=1.0, labels="given")
    >>> data = NFADataset([(PIL.Image.new("L", (8, 8)), 3)], augment)
    >>> first, second = data[0], data[0]
    >>> data.set_epoch(0)
    >>> first == second, first == data[0]
    (False, True)
    """

    def __init__(self, base: Any, augment: NFAugment, seed: int = 0):
        super().__init__(base, augment, seed)
        self._epoch = torch.zeros(len(base), dtype=torch.int64).share_memory_()  # of each sample

    def _changed(self, image: Any, label: Any, index: int) -> Any:
        epoch = int(self._epoch[index])
        self._epoch[index] += 1
        return self._draw(image, label, self.seed, process_rank(), epoch, index)


class NFAugmentedDataset(_Augmented):
    """The images of a dataset, then `copies` times all of them augmented, before their transform.

    It works under timm's `create_loader`, which sets `transform`; call `set_epoch`, without which
    every epoch repeats the first.

    Args:
        base: dataset of (image, label) pairs; its `transform` moves to the wrapper.
        augment: its own `seed` plays no part. Take p=1: below, some copies are the originals again.
        cache: directory where augmented PIL images are kept as PNG, made at first use, the same in
            every epoch; keyed by flow, settings, seed, and the original's pixels and label.

    >>> augment = NFAugment.from_pretrained("conv_p4_tiny.digits", p=1.0)
    >>> data = NFAugmentedDataset([(PIL.Image.new("L", (8, 8)), 3)], augment, copies=2)
    >>> len(data), data[0] == data[1]
    (3, False)
    """

    def __init__(
        self,
        base: Any,
        augment: NFAugment,
        copies: int = 1,
        cache: StrPath | None = None,
        seed: int = 0,
    ):
        super().__init__(base, augment, seed)
        if not is_int(copies) or copies < 0:
            raise ValueError(f"copies must be an integer of at least 0, got {copies!r}")
        self.copies, self.cache = copies, None
        if cache is not None:
            self.cache = Path(cache) / _fingerprint(augment, seed)
            make_directory(self.cache)
        self._damaged, self._swept = Notices(augment.strict).share(), set[Path]()

    def _changed(self, image: Any, label: Any, index: int) -> Any:
        if index < len(self.base):
            return image
        if self.cache is None:
            return self._draw(image, label, self.seed, int(self._epoch), index)
        if not isinstance(image, PIL.Image.Image):
            raise TypeError(f"copies are kept of PIL, not {type(image).__name__}; leave cache out")
        key = zlib.crc32(image.tobytes())
        key = zlib.crc32(f"{label} {image.mode} {image.size}".encode(), key)
        path = self.cache / f"{index // 1000:06d}" / f"{index:09d}-{key:08x}.png"
        if (kept := self._kept(path, image)) is not None:
            return kept
        new = self._draw(image, label, self.seed, 0, index)
        if path.parent not in self._swept and path.parent.is_dir():  # once, at the first write
            remove_leftovers(path.parent)
            self._swept.add(path.parent)
        write_atomically(path, lambda p: new.save(p, format="PNG"), durable=False)
        return new

    def _kept(self, path: Path, like: PIL.Image.Image) -> PIL.Image.Image | None:
        """The copy in a file, or None where there is none or it is damaged."""
        try:
            with PIL.Image.open(path) as found:
                kept = found.convert(like.mode)
            if kept.size != like.size:
                raise ValueError(f"it holds {kept.size}, the original {like.size}")
            kept.info = like.info.copy()
            return kept
        except FileNotFoundError:
            return None
        except (OSError, SyntaxError, ValueError) as e:
            what = f"the copy in {path} is damaged ({e}); it and any others are made again"
            self._damaged.say("other", what)
            return None


def _fingerprint(augment: NFAugment, seed: int) -> str:
    """Names the flow's weights, the settings and the seed, so that no cache is read for another."""
    change = augment.change
    if not isinstance(change, (FlowChange, LatentChange)):
        raise TypeError("copies are kept for changes by a flow; leave cache out")
    text = f"{augment!r} {seed} {digest(change.flow)}"
    if isinstance(change, LatentChange):
        text += f" {change.autoencoder.digest()}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]
