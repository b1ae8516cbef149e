"""wrap_loader: NFA in a training script of one's own, around the loader that it has built."""

import copy
import functools
import math
import os
from collections.abc import Iterator
from typing import Any

from timm.data import AugMixDataset, ImageDataset, IterableImageDataset
from timm.data.loader import PrefetchLoader, fast_collate
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torch.utils.data import IterableDataset, default_collate
from torchvision.datasets import VisionDataset

from .._utils.notices import NFAError
from .._utils.random import random_numbers_apart
from ..augment import NFAugment
from ..data.datasets import NFADataset
from ..fit import check_loader
from ..hub import LINEAR
from . import fit
from .auto import leaves_open, with_advice
from .flags import _complete, augment_from_args, flow_of, needs_fit, useless_flag
from .loader import NFALoader, _find_mixup, _say_on


def wrap_loader(
    loader: Any, args: Any, mean: Any = None, std: Any = None, num_classes: int | None = None,
    fit_dataset: Any = None, erasing: RandomErasing | None = None, value_range: Any = None,
) -> Any:  # fmt: skip
    """Adds the augmentation that flags ask for to a training loader; returns it as is for none.

    Mixup and erasing of timm's prefetcher run after NFA. Random numbers follow from `args.seed`
    (0), rank, epoch and batch; set `epoch` on the result when a training resumes.

    Args:
        loader: timm's, or any of batches (images, hard labels (B,)) that can be read repeatedly.
        args: flags of a parser that `add_args` has extended; NFA's that they lack take defaults.
        mean, std: per channel, of normalised floats; timm's prefetching loader knows its own.
        num_classes: for the fit, where neither the dataset nor `args.num_classes` knows.
        fit_dataset: for the fit: a dataset, stream or loader of (PIL image or tensor, label) without
            random augmentation; needed for a dataset of your own that has a `transform`.
        erasing: timm's RandomErasing, to run after NFA.
        value_range: of images of other ranges, as for `NFAugment`.

    >>> import argparse
    >>> wrap_loader([], argparse.Namespace(aug=None))
    []
    """
    args = _complete(args)
    if value_range is not None and args.nfa_flow is None:
        args.nfa_flow = LINEAR  # whose modes have the scale of the images
    augment = augment_from_args(args)
    if flag := useless_flag(args):
        raise NFAError(f"{flag} does nothing without --aug: add --aug nfa, or drop it")
    if augment is None or augment.idle:
        return loader
    dataset, mixup = getattr(loader, "dataset", None), None
    _check_settings(args, fit_dataset, erasing)
    _check(loader, dataset)
    if isinstance(loader, PrefetchLoader):
        mean, std = ((v.float().flatten() / 255).tolist() for v in (loader.mean, loader.std))
        erasing, mixup = loader.random_erasing or erasing, _find_mixup(loader.loader.collate_fn)
        loader = _bare(loader)
    num_classes = num_classes or getattr(args, "num_classes", None)
    shape = functools.cache(functools.partial(_shape_of, loader))
    if leaves_open(args):
        with random_numbers_apart():
            args = with_advice(args, dataset, num_classes, shape)
        augment = augment_from_args(args) or augment
    if needs_fit(args):
        with random_numbers_apart():
            scale = {"mean": mean, "std": std, "value_range": value_range}
            augment = _sized(augment, args, shape()).replace(**scale)
            augment = _fit(augment, loader, num_classes, fit_dataset)
    else:
        if value_range is not None:  # else that of a saved augmentation stays
            augment = augment.replace(value_range=value_range)
        fit._check_classes(dataset, augment)
        fit._say_unread(fit_dataset)
    splits = dataset.num_splits if isinstance(dataset, AugMixDataset) else 0
    _say_on(augment, "batch")
    return NFALoader(loader, augment, mean, std, getattr(args, "seed", 0), mixup, erasing, splits)


def _check_settings(args: Any, fit_dataset: Any, erasing: Any) -> None:
    if args.nfa_place != "batch":
        own = "v2.RandomChoice([augment, policy])" if args.nfa_place == "either" else "NFAugment"
        instead = f"take --nfa-place batch, or put {own} into the dataset's transform"
        raise NFAError(f"--nfa-place {args.nfa_place} is for the launcher; {instead}")
    if args.nfa_cache:
        raise NFAError("--nfa-cache is for the launcher; put CachedNFADataset around the dataset")
    if isinstance(fit_dataset, (str, os.PathLike)):
        path = f"the path {fit_dataset}: ImageFolder(path)"
        raise NFAError(f"fit_dataset takes a dataset, got {path}")
    if erasing is not None and not callable(erasing):
        raise NFAError(f"erasing takes timm's RandomErasing(...), got {erasing!r}")


def _check(loader: Any, dataset: Any) -> None:
    if isinstance(loader, NFALoader) or any(isinstance(d, NFADataset) for d in _inside(dataset)):
        raise NFAError("this loader has NFA already, and would move images twice; wrap it once")
    check_loader(loader)
    names = ("transform", "normalize")  # as timm's
    own = [getattr(data, name, None) for data in _inside(dataset) for name in names]
    own += dataset.transforms if fit._is_scheduled(dataset) else ()
    steps = [type(step).__name__ for t in own for step in getattr(t, "transforms", ())]
    if "RandomErasing" in steps:  # timm's or torchvision's
        raise NFAError(
            "the dataset's transform erases before NFA can run; take timm's prefetcher, or leave "
            "re_prob out of create_loader and pass erasing=RandomErasing(...) to wrap_loader"
        )
    if (
        isinstance(dataset, AugMixDataset)
        and getattr(loader, "collate_fn", None) is default_collate
    ):
        raise NFAError(
            "AugMixDataset gives several images a label, which torch's default_collate does not "
            "join: take timm's prefetcher (create_loader(use_prefetcher=True)), or a collate_fn"
        )


def _inside(dataset: Any) -> Iterator[Any]:
    """A dataset and those that it is made of, as torch's Subset and ConcatDataset are."""
    yield dataset
    for inner in (getattr(dataset, "dataset", None), *getattr(dataset, "datasets", ())):
        if inner is not None:
            yield from _inside(inner)


def _bare(loader: Any) -> Any:
    """A copy of timm's loader without mixup and erasing."""
    loader = copy.copy(loader)
    loader.loader, loader.random_erasing = copy.copy(loader.loader), None
    if _find_mixup(loader.loader.collate_fn):
        loader.loader.collate_fn = fast_collate
    return loader


def _shape_of(loader: Any) -> tuple[int, ...] | None:
    """(C, H, W) of the loader's first images; None where its batches begin with no images."""
    if _is_stream(loader) and isinstance(loader, Iterator):
        raise NFAError(f"a {type(loader).__name__} gives its images once; wrap a list or a loader")
    first = next(iter(fit._batches_of(loader, size=2)), None)
    images = first[0] if isinstance(first, (tuple, list)) and first else first
    return tuple(images.shape[1:]) if isinstance(images, Tensor) and images.ndim == 4 else None


def _sized(augment: NFAugment, args: Any, shape: tuple[int, ...] | None) -> NFAugment:
    """The augmentation, with the channels and size of the loader's images where it is linear."""
    if shape is not None:
        if flow_of(args) == LINEAR:
            args.nfa_autoencoder = augment._autoencoder  # which is loaded already
            augment = augment_from_args(args, shape) or augment
        fit._check_channels(augment, shape[0])
    return augment


def _fit(augment: NFAugment, loader: Any, num_classes: int | None, fit_dataset: Any) -> NFAugment:
    """Fits to what can be read without the training's augmentation, the same in every process."""
    dataset, device = getattr(loader, "dataset", None), getattr(loader, "device", "cpu")
    base, by_timm = fit._unwrapped(dataset), isinstance(loader, PrefetchLoader)
    inner = loader.loader if by_timm else loader
    known = by_timm or isinstance(base, (ImageDataset, IterableImageDataset, VisionDataset))
    own_transform = getattr(base, "transform", None) is not None
    if fit_dataset is not None or (known and own_transform) or fit._is_scheduled(dataset):
        if fit_dataset is None and augment.value_range is not None:
            of = "value_range is of the images after the dataset's transform"
            raise NFAError(f"{of}, which a fit leaves out; {fit.REMEDY}")
        how = getattr(inner, "num_workers", 0), device, fit_dataset, inner
        return fit._fit_to_dataset(augment, dataset, num_classes, *how)
    if own_transform:
        own = f"{type(base).__name__} has a `transform` of its own, which may augment at random"
        raise NFAError(f"{own}; {fit.REMEDY}")
    classes = 1 if augment.labels == "none" else num_classes or 1
    stream, picked = _is_stream(loader), None
    count = fit._images_wanted(augment) * classes if stream else math.inf
    if augment.size is not None and not stream:
        picked = fit._picked(augment, dataset, classes)
    batches = fit._batches_of(loader, count, picked=picked)
    return fit._fit_to_batches(fit._on_device(augment, device), batches, num_classes)


def _is_stream(loader: Any) -> bool:
    dataset = getattr(loader, "dataset", None)
    return dataset is None or isinstance(dataset, IterableDataset)
