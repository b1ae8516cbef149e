"""Data sets whose images are augmented before their transform, the same for any number of workers."""

from __future__ import annotations

import hashlib
import os
import zlib
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.data import Dataset

from .. import lift
from .._utils.checks import check_probability, check_strength
from .._utils.files import write_atomically
from .._utils.random import keyed_generator
from ..augment import NFAugment
from ..moves import draw_noise
from .cache import NFACache, digest
from .transforms import without_transform


class _Wrapped(Dataset):
    """A map-style data set of (image, label) pairs whose transform has moved out, to run after what a subclass does."""

    def __init__(self, base: Dataset, seed: int):
        if not hasattr(base, "__len__"):
            raise TypeError(
                f"{type(self).__name__} needs a map-style data set with a length, got {type(base).__name__}"
            )
        self.transform = getattr(base, "transform", None)
        self.base = without_transform(base)
        self.seed = seed
        # shared memory: workers that live on through epochs see a new epoch without being started again
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    @property
    def classes(self):
        return self.base.classes

    @property
    def class_to_idx(self):
        return self.base.class_to_idx

    def set_epoch(self, epoch: int) -> None:
        """Chooses the random numbers of the next pass; without it every epoch repeats the first."""
        self._epoch.fill_(epoch)
        if hasattr(self.base, "set_epoch"):
            self.base.set_epoch(epoch)

    # what timm's loaders and evaluation scripts ask of a data set

    def filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        """File name of the original that sample `index` was made from."""
        return self.base.filename(index % len(self.base), basename, absolute)

    def filenames(self, basename: bool = False, absolute: bool = False) -> list[str]:
        return self.base.filenames(basename, absolute) * (len(self) // len(self.base))


class CachedNFADataset(_Wrapped):
    """A data set whose images are moved along the modes of their class by what a cache knows of them: no flow in training.

    Augmentation comes before the transform, on the images that the cache was made from. The random numbers of a sample
    follow from (seed, epoch, index) alone; call `set_epoch`. It works under timm's `create_loader`, which sets `transform`.

    Args:
        base: the data set of the cache; its `transform`, if it has one, moves to the wrapper.
        cache: see `NFACache.build`.
        strength, p: as of `NFAugment`.
        modes: number of modes moved along; those of the cache unless given.
    """

    def __init__(
        self,
        base: Dataset,
        cache: NFACache,
        strength: float = 0.5,
        p: float = 0.5,
        modes: int | None = None,
        seed: int = 0,
    ):
        super().__init__(base, seed)
        if len(base) != len(cache):
            raise ValueError(
                f"the cache holds {len(cache)} images, the data set has {len(base)}; build a cache of this one"
            )
        self.modes = cache.checked_modes(modes)
        self.cache, self.strength, self.p = cache, check_strength(strength), check_probability(p)

    def __len__(self) -> int:
        return len(self.base)

    def __getitem__(self, index: int) -> Any:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is out of range for {len(self)} samples")
        index %= len(self)
        image, *rest = self.base[index]
        g = keyed_generator(self.seed, int(self._epoch), index)
        if self.strength and torch.rand((), generator=g) < self.p:
            noise = draw_noise(1, self.modes, g)[0]
            change = (
                self.cache.change(index, image, rest[0], noise, self.strength)
                .clamp_(-2, 2)
                .mul_(128)
            )
            if isinstance(image, Image.Image):
                image = lift.add_to_image(image, change.numpy())
            else:
                c = len(image)
                image = lift.add(image.unsqueeze(0), change.unsqueeze(0), [0] * c, [255] * c)[0]
        if self.transform is not None:
            image = self.transform(image)
        return (image, *rest)


class NFAugmentedDataset(_Wrapped):
    """``(1 + copies) * len(base)`` samples: the originals first, then `copies` times all of them through `augment`.

    Augmentation comes before the transform, on what `base` loads (PIL images, usually). The random numbers of a sample
    follow from (seed, epoch, index) alone. It works under timm's `create_loader`, which sets `transform`.

    Args:
        base: a map-style data set of (image, label) pairs; its `transform`, if it has one, moves to the wrapper.
        augment: the augmentation; its own `seed` plays no part. With its p below 1 only that share of
            the copies is augmented and the rest are the originals again, so p 1 is wanted here.
        copies: augmented copies; 3 in the paper's ImageNet run.
        cache: directory where augmented PIL images are kept as PNG, made on first use and read from then on. The
            copies are then the same in every epoch. Files are keyed by flow, settings, seed, and the original's pixels and
            label.
        seed: of the augmented copies.
    """

    def __init__(
        self,
        base: Dataset,
        augment: NFAugment,
        copies: int = 1,
        cache: str | os.PathLike | None = None,
        seed: int = 0,
    ):
        super().__init__(base, seed)
        if isinstance(copies, bool) or not isinstance(copies, int) or copies < 0:
            raise ValueError(f"copies must be an integer of at least 0, got {copies!r}")
        self.augment, self.copies = augment, copies
        self.cache = None
        if cache is not None:
            self.cache = Path(cache) / _fingerprint(augment, seed)
            self.cache.mkdir(parents=True, exist_ok=True)

    def __len__(self) -> int:
        return (1 + self.copies) * len(self.base)

    def __getitem__(self, index: int) -> Any:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is out of range for {len(self)} samples")
        copy, i = divmod(index % len(self), len(self.base))
        image, *rest = self.base[i]
        if copy:
            image = self._augmented(image, rest[0] if rest else None, index % len(self))
        if self.transform is not None:
            image = self.transform(image)
        return (image, *rest)

    def _augmented(self, image: Any, label: Any, index: int) -> Any:
        if self.cache is None:
            return self._draw(image, label, index, int(self._epoch))
        if not isinstance(image, Image.Image):
            raise TypeError(
                f"the cache keeps PIL images, the data set gave {type(image).__name__}; leave cache out"
            )
        original = zlib.crc32(
            f"{label} {image.mode} {image.size}".encode(), zlib.crc32(image.tobytes())
        )
        path = self.cache / f"{index // 1000:06d}" / f"{index:09d}-{original:08x}.png"
        if path.exists():
            with Image.open(path) as kept:
                return kept.convert(image.mode)
        new = self._draw(image, label, index, 0)
        write_atomically(path, lambda p: new.save(p, format="PNG"))
        return new

    def _draw(self, image: Any, label: Any, index: int, epoch: int) -> Any:
        g = keyed_generator(self.seed, epoch, index)
        inputs = (image,) if label is None else (image, label)
        out = self.augment(*inputs, generator=g)
        return out if label is None else out[0]


def _fingerprint(augment: NFAugment, seed: int) -> str:
    """Names the flow's weights, the settings and the seed, so that a cache is never read for another."""
    return hashlib.sha256(f"{augment!r} {seed} {digest(augment.flow)}".encode()).hexdigest()[:16]
