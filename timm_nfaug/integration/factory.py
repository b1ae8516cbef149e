"""loader_factory: timm's create_loader with NFA, on batches or in the loader's workers."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.data.loader import adapt_to_chs
from timm.data.random_erasing import RandomErasing

from ..augment import NFAugment
from ..data.cache import NFACache
from ..data.datasets import CachedNFADataset
from .fit import NFAError, check_channels, check_classes, fit_to_dataset, on_device, process_rank
from .loader import NFALoader, find_mixup
from .workers import FLAG, INSTEAD, WorkerDataset, check_workers


def loader_factory(
    create_loader: Callable, augment: NFAugment, seed: int = 0, fit: bool = False,
    num_classes: int | None = None, place: str = "batch", cache: str | None = None,
    fit_dataset: Any = None,
) -> Callable:  # fmt: skip
    """A `create_loader` with augmented training loaders; others and `no_aug` are left as they are.

    At strength 0 or p 0 it is timm's `create_loader` itself.

    Args:
        seed: key of the random numbers, with the process's rank, epoch and batch.
        fit: fit to the first training dataset, as every process does alike.
        num_classes: for `fit` where the dataset does not know its classes.
        place: "batch", or "dataset": image by image in the loader's workers.
        cache: directory of a cache of tangents, made here; NFA then runs from it, in the workers.
        fit_dataset: for `fit`, as for `wrap_loader`, where the dataset has no `transform` to replace.

    >>> import timm_nfaug as nfa
    >>> from timm.data import create_loader
    >>> augment = nfa.NFAugment.to_fit(nfa.create_flow("linear"), p=0.0)
    >>> loader_factory(create_loader, augment) is create_loader
    True
    """
    own = _Factory(create_loader, augment, seed, fit, num_classes, place, cache, fit_dataset)
    return create_loader if augment.idle else own


@dataclass
class _Factory:
    create_loader: Callable
    augment: NFAugment
    seed: int
    fit: bool
    num_classes: int | None
    place: str
    cache: str | None
    fit_dataset: Any

    def __call__(self, dataset: Any, *args, **kwargs) -> Any:
        given = _arguments(self.create_loader, dataset, *args, **kwargs)
        if not given.get("is_training") or given.get("no_aug"):
            return self.create_loader(dataset, *args, **kwargs)
        self._check(given)
        if mixup := find_mixup(given.get("collate_fn")):
            given["collate_fn"] = None
        channels = self.augment.change.size[0]
        mean = adapt_to_chs(given.get("mean", IMAGENET_DEFAULT_MEAN), channels)  # as the prefetcher
        std = adapt_to_chs(given.get("std", IMAGENET_DEFAULT_STD), channels)
        if self.fit:  # last of the checks, as it may read many images
            self._fit(given, mean, std)
        else:
            check_classes(dataset, self.augment)
        on_batches = None
        if self.cache:
            given["dataset"] = _cached(self, dataset, given.get("device", "cpu"))
        elif self.place == "dataset":
            given["dataset"] = WorkerDataset(dataset, self.augment, self.seed, process_rank())
        else:
            on_batches = self.augment
        erasing, splits = _take_erasing(given), given.get("num_aug_splits") or 0
        loader = self.create_loader(**given)
        return NFALoader(loader, on_batches, mean, std, self.seed, mixup, erasing, splits)

    def _check(self, given: dict[str, Any]) -> None:
        """Refuses what does not go together."""
        if self.place == "dataset" or self.cache:
            flag = "--nfa-cache" if self.cache else FLAG
            if given.get("use_multi_epochs_loader"):
                refused = "--use-multi-epochs-loader; drop one of them"
                raise NFAError(f"{flag} cannot tell the epochs of {refused}")
            if given.get("input_size_choices"):
                raise NFAError(f"{flag} does not work with --train-img-sizes; {INSTEAD}")
            check_workers(given["dataset"], self.augment, flag)
        if given.get("num_aug_splits") and not given.get("use_prefetcher", True):
            why = "whose collate function joins the splits"
            raise NFAError(f"--aug-splits needs the prefetcher, {why}; drop --no-prefetcher")
        size = given.get("input_size")
        if self.fit and isinstance(size, (tuple, list)) and len(size) == 3:
            check_channels(self.augment, size[0], "the training asks for")

    def _fit(self, given: dict[str, Any], mean: Any, std: Any) -> None:
        device = "cpu" if self.place == "dataset" else given.get("device", "cpu")
        plain, own = self.fit_dataset is not None, self.augment.replace(mean=mean, std=std)
        data = self.fit_dataset if plain else given["dataset"]
        workers = given.get("num_workers", 1)
        fitted = fit_to_dataset(own, data, self.num_classes, workers, device, plain)
        self.augment, self.fit = self.augment.replace(flow=fitted.flow), False


def _cached(own: _Factory, dataset: Any, device: torch.device | str) -> CachedNFADataset:
    """The dataset moved from the cache, which is made first where it is not there."""
    augment = on_device(own.augment, device)
    try:
        cache = NFACache.build(augment, dataset, str(own.cache))  # other ranks wait for it
        return CachedNFADataset(dataset, cache, augment.strength, augment.p, seed=own.seed)
    except (ValueError, TypeError, OSError) as e:
        raise NFAError(f"--nfa-cache {own.cache}: {e}") from None


def _arguments(function: Callable, *args, **kwargs) -> dict[str, Any]:
    """The arguments of a call as keywords, with those of a **kwargs parameter unpacked."""
    signature = inspect.signature(function)
    given = signature.bind_partial(*args, **kwargs).arguments
    rest = [n for n, p in signature.parameters.items() if p.kind is p.VAR_KEYWORD and n in given]
    return {k: v for k, v in given.items() if k not in rest} | (given[rest[0]] if rest else {})


def _take_erasing(given: dict[str, Any]) -> RandomErasing | None:
    """Takes random erasing out of the arguments of create_loader, as that would make it."""
    if not given.get("re_prob"):
        return None
    mode, count = given.get("re_mode", "const"), given.get("re_count", 1)
    splits = (given.get("num_aug_splits") or 2) if given.get("re_split") else 0
    device = given.get("device", "cuda") if given.get("use_prefetcher", True) else "cpu"
    p = given.pop("re_prob")
    return RandomErasing(p, mode=mode, max_count=count, num_splits=splits, device=device)
