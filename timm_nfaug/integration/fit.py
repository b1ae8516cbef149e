"""Fits the modes of an augmentation to a timm data set, and checks that both mean the same classes."""

from __future__ import annotations

import contextlib
import copy
import logging
import time
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from PIL import Image
from timm.data import AugMixDataset, ImageDataset, IterableImageDataset, create_transform
from torch.utils.data import DataLoader, IterableDataset, Subset
from torchvision.datasets import VisionDataset

from ..augment import NFAugment
from ..data.transforms import set_transform

_logger = logging.getLogger(__name__)

# read to find the modes, or eight a mode where that is more: all of ImageNet would take hours at every launch
FIT_IMAGES = 256  # of a class
FIT_IMAGES_POOLED = 10_000  # where the modes are of no class
BATCH = 256


class NFAError(ValueError):
    """What is asked of NFA does not go with the data or the flags; the message says what does."""


def fit_to_dataset(
    augment: NFAugment,
    dataset,
    given: dict[str, Any],
    num_classes: int | None = None,
    quiet: bool = False,
) -> None:
    """Fits `augment` to a timm data set, read through timm's evaluation transform at the flow's size.

    It reads up to `FIT_IMAGES` images of each class (8 a mode where that is more), spread over the data set, or
    `FIT_IMAGES_POOLED` of all; where labels cannot be had without the images, all of them. Of a stream (an iterable data
    set) it reads as many in all, the first ones; there the modes that the first process finds are those of all. Draws
    nothing from the global generators.

    Args:
        given: the arguments of timm's `create_loader` for training on it.
        num_classes: where the data set does not know its classes.
        quiet: log nothing.
    """
    base, size = unwrapped(dataset), augment.flow.config.input_size
    pooled = augment.labels == "none"
    mapping = None if pooled else _class_to_idx(base)
    classes = 1 if pooled else num_classes
    if mapping:
        classes = max(mapping.values()) + 1  # names may share a label, and labels have gaps
    if not classes:
        raise NFAError(
            f"{type(base).__name__} does not know its classes; say how many there are with --num-classes"
        )
    wanted = given.get("input_size", size)
    if isinstance(wanted, (tuple, list)) and len(wanted) == 3 and wanted[0] != size[0]:
        raise NFAError(
            f"the flow takes images of {size[0]} channels, the training asks for {wanted[0]}; take another flow"
        )
    plain = create_transform(
        size,
        interpolation="bicubic",
        mean=(0.0,) * size[0],
        std=(1.0,) * size[0],
        crop_pct=1.0,
        crop_mode="squash",
    )
    with _read_through(base, plain) as data:
        _fit(augment, base, data, given, classes, quiet)
    if mapping and len(mapping) == classes:
        augment.flow.config.class_names = _names(mapping)


def _fit(augment: NFAugment, base, data, given: dict[str, Any], classes: int, quiet: bool) -> None:
    """Fits to `data`, which is `base` read as images in [0, 1] of the flow's size."""
    start = time.monotonic()
    pooled = augment.labels == "none"
    workers = given.get("num_workers", 1)
    stream = isinstance(base, IterableDataset)
    if stream:
        workers = max(workers, 1)  # it is a worker's copy of the stream that moves on
        if hasattr(
            base, "set_loader_cfg"
        ):  # timm's readers share out a stream among as many workers as they are told
            base.set_loader_cfg(num_workers=workers)
    elif (labels := [0] * len(base) if pooled else _labels(base)) is not None:
        data = Subset(data, spread(labels, _wanted(augment)))
    loader = DataLoader(data, BATCH, num_workers=workers, generator=torch.Generator())
    augment.mean = augment.std = None  # the images come in [0, 1]
    augment.to(given.get("device", "cpu"))
    if stream:
        images = fit_to_stream(augment, loader, classes)
    else:
        augment.fit(loader, classes, allow_empty=True)
    if quiet:
        return
    found = (augment.flow.prior.mode_std > 0).sum(1)
    seconds = time.monotonic() - start
    read = (
        f"the first {images} images of a stream" if stream else f"{len(data)} of {len(base)} images"
    )
    _logger.info("NFA: modes of %d classes from %s in %.1f s", classes, read, seconds)
    if few := int((found < augment.modes).sum()):
        _logger.warning(
            "NFA: for want of images %d of %d classes have fewer than %d modes; the fewest: %d",
            few, classes, augment.modes, int(found.min()),
        )  # fmt: skip


@contextlib.contextmanager
def _read_through(dataset, transform) -> Iterator:
    """A shallow copy that reads through another transform; the data set itself is as it was, at the latest afterwards."""
    data, own = copy.copy(dataset), getattr(dataset, "transform", None)
    try:
        set_transform(data, transform)
        yield data
    finally:
        if (
            getattr(dataset, "transform", None) is not own
        ):  # it handed that on to one within, which the copy shares
            set_transform(dataset, own)


def hands_images_to_its_transform(dataset, channels: int, set_by_timm: bool = False) -> bool:
    """Whether its images are what its `transform` makes of PIL images of so many channels, so that another can take its place.

    Of a data set that timm's `create_loader` has given its transform, and of timm's and torchvision's own, a first image
    tells; others do with their `transform` what they like.
    """
    if type(dataset) is IterableImageDataset:
        return True
    known = isinstance(dataset, (ImageDataset, VisionDataset)) and not hasattr(
        type(dataset), "transform"
    )
    if (
        isinstance(dataset, IterableDataset)
        or not (known or set_by_timm)
        or not hasattr(dataset, "transform")
    ):
        return False
    given, made = [], torch.zeros(channels, 1, 1)
    try:
        with _read_through(dataset, lambda image: given.append(image) or made) as data:
            sample = data[0]
    except Exception:  # whatever a transform or a data set of another make raises
        return False
    pil = (
        len(given) == 1
        and isinstance(given[0], Image.Image)
        and len(given[0].getbands()) == channels
    )
    return pil and isinstance(sample, (tuple, list)) and sample[0] is made


def _wanted(augment: NFAugment) -> int:
    """Images of a class, or of all where there are none."""
    return max(FIT_IMAGES_POOLED if augment.labels == "none" else FIT_IMAGES, 8 * augment.modes)


def fit_to_stream(augment: NFAugment, loader, num_classes: int | None) -> int:
    """Fits to the first images that a loader gives, the same modes in every process; returns how many images it read."""
    first = _First(loader, _wanted(augment) * (num_classes or 1))
    augment.fit(first, num_classes, allow_empty=True)
    take_modes_of_first_process(augment)
    return first.images


class _First:
    """The batches of a loader until `count` images have come; `images` says how many that were."""

    def __init__(self, loader: DataLoader, count: int):
        self.loader, self.count, self.images = loader, count, 0
        self.dataset = getattr(loader, "dataset", None)  # which may know its classes

    def __iter__(self):
        for batch in self.loader:
            self.images += len(batch[0] if isinstance(batch, (tuple, list)) else batch)
            yield batch
            if self.images >= self.count:
                return


def take_modes_of_first_process(augment: NFAugment) -> None:
    """Each process of a distributed training reads a share of its own of a stream."""
    if not (dist.is_available() and dist.is_initialized()):
        return
    device = "cuda" if "nccl" in dist.get_backend() else "cpu"
    for tensor in (*augment.flow.prior.state_dict().values(), augment.flow.log_prior):
        shared = tensor.to(device)
        dist.broadcast(shared, 0)
        tensor.copy_(shared)


def _labels(dataset) -> list[int] | None:
    """The label of every sample as timm's readers and torchvision's data sets hold them, without reading an image."""
    if getattr(dataset, "target_transform", None) is not None:
        return None
    reader = getattr(dataset, "reader", dataset)
    try:
        labels = getattr(reader, "targets", None)
        if labels is not None:
            labels = torch.as_tensor(labels).tolist()
        elif hasattr(reader, "iter_targets"):  # of timm's reader of the Hub's data sets
            labels = list(reader.iter_targets())
        else:
            labels = [k for _, k in reader.samples]
        labels = [int(k) for k in labels]
    except (
        AttributeError,
        TypeError,
        ValueError,
    ):  # there are none, or they are not one integer a sample
        return None
    return labels if len(labels) == len(dataset) else None


def spread(labels: list[int], count: int) -> list[int]:
    """Indices of up to `count` samples of each label, evenly spaced among its own, in order."""
    members: dict[int, list[int]] = {}
    for i, k in enumerate(labels):
        members.setdefault(k, []).append(i)
    few = (
        [own[j * len(own) // count] for j in range(count)] if len(own) > count else own
        for own in members.values()
    )
    return sorted(i for own in few for i in own)


def unwrapped(dataset):
    """The data set within those that timm puts around one."""
    wrapper = isinstance(dataset, AugMixDataset) or is_scheduled(dataset)
    return dataset.dataset if wrapper else dataset


def is_scheduled(dataset) -> bool:
    """Whether it is timm's data set of several transforms (``--train-img-sizes``), which older versions lack."""
    return type(dataset).__name__ == "ScheduledTransformDataset"


def _class_to_idx(dataset) -> dict[str, int] | None:
    """Of timm's readers (that of tar files has its own name for it) and of torchvision's data sets."""
    reader = getattr(dataset, "reader", dataset)
    for owner in (reader, dataset):
        for name in ("class_to_idx", "class_name_to_idx"):
            if mapping := getattr(owner, name, None):
                return mapping
    return None


def check_classes(dataset, augment: NFAugment) -> None:
    """Refuses labels that mean other classes to the flow than to the data set, where both name theirs."""
    mapping = _class_to_idx(unwrapped(dataset))
    names = augment.flow.config.class_names
    if augment.labels != "given" or not mapping or not names:
        return
    own = _names(mapping)
    if own != names:
        raise NFAError(
            f"the flow knows the classes {_few(names)}, the data set has {_few(own)}; add --nfa-fit to take the classes "
            "of the data set, train a flow for it, or let the flow choose the class itself with -lposterior"
        )


def _names(mapping: dict[str, int]) -> list[str]:
    return [str(k) for k, _ in sorted(mapping.items(), key=lambda kv: kv[1])]


def _few(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f", ... ({len(names)})" if len(names) > 4 else "")
