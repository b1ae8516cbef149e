"""loader_factory: timm's create_loader with NFA, on batches or in the loader's workers."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.data.loader import adapt_to_chs
from timm.data.random_erasing import RandomErasing

from .._utils.notices import NFAError
from .._utils.progress import say
from ..augment import NFAugment
from ..data.cache import NFACache
from ..data.datasets import CachedNFADataset
from ..hub import LINEAR
from .auto import with_advice
from .fit import _check_channels, _check_classes, _fit_to_dataset, _on_device, _say_unread
from .flags import augment_from_args, needs_fit
from .loader import NFALoader, _find_mixup, _say_on
from .workers import FLAG, INSTEAD, _check_workers, _WorkerDataset

SLOW = (
    "NFA: the workers encode an image once and decode it twice, on a CPU, which is slow: on a GPU "
    f"{INSTEAD}, or keep moved copies of the images, by timm-nfaug materialise"
)
SLOW_FLOW = (
    "NFA: the workers run a deep flow image by image, milliseconds of a CPU core each: give them "
    f"more cores, or take --nfa-flow {LINEAR}"
)


def loader_factory(
    create_loader: Callable, augment: NFAugment, seed: int = 0, fit: bool = False,
    num_classes: int | None = None, place: str = "batch", cache: str | None = None,
    fit_dataset: Any = None, open_args: Any = None,
) -> Callable:  # fmt: skip
    """A `create_loader` with augmented training loaders; others and `no_aug` are left as they are.

    Args:
        seed: key of the random numbers, with the process's rank, epoch and batch.
        fit: fit to the first training dataset, or to `fit_dataset`, as every process does alike.
        num_classes, fit_dataset: as for `wrap_loader`.
        place: "batch"; "dataset", image by image in the loader's workers; or "either", there and in
            the place of RandAugment, which is for the images that NFA leaves as they are.
        open_args: flags that leave settings open, see `auto.leaves_open`: what the first training
            dataset gives them then stands for `augment` and `fit`.
        cache: directory of a cache of tangents, made here; NFA then runs from it, in the workers.

    >>> import timm_nfaug as nfa
    >>> loader_factory(len, nfa.NFAugment.to_fit(nfa.create_flow("linear"), p=0.0)) is len
    True
    """
    how = place, cache, fit_dataset, open_args
    own = _Factory(create_loader, augment, seed, fit, num_classes, *how)
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
    open_args: Any

    def __call__(self, dataset: Any, *args, **kwargs) -> Any:
        bound = inspect.signature(self.create_loader).bind_partial(dataset, *args, **kwargs)
        given = dict(zip(bound.signature.parameters, bound.args)) | bound.kwargs
        if not given.get("is_training") or given.get("no_aug"):
            if given.get("is_training"):
                say("NFA off: --no-aug switches it off, too")
            return self.create_loader(dataset, *args, **kwargs)
        self._check(given)
        if self.open_args is not None:
            flags = with_advice(self.open_args, dataset, self.num_classes, lambda: _size(given))
            self.augment, self.fit = augment_from_args(flags) or self.augment, needs_fit(flags)
            self.open_args = None
        if mixup := _find_mixup(given.get("collate_fn")):
            given["collate_fn"] = None
        channels = self.augment.change.size[0]  # as timm's prefetcher repeats or cuts them
        mean = adapt_to_chs(given.get("mean", IMAGENET_DEFAULT_MEAN), channels)
        std = adapt_to_chs(given.get("std", IMAGENET_DEFAULT_STD), channels)
        if self.fit:  # last of the checks, as it may read many images
            own = self.augment.replace(mean=mean, std=std)
            device = "cpu" if self.place != "batch" else given.get("device", "cpu")
            how = self.num_classes, given.get("num_workers", 1), device, self.fit_dataset
            fitted = _fit_to_dataset(own, dataset, *how)
            parts = {"flow": fitted.flow, "autoencoder": fitted._autoencoder}
            self.augment, self.fit = self.augment.replace(**parts), False
            self.augment.notices = fitted.notices
        else:
            _check_classes(dataset, self.augment)
            _say_unread(self.fit_dataset)
        self.fit_dataset = None  # which is read, or named, once
        given["dataset"] = self._augmented(dataset, given)
        on_batches = self.augment if given["dataset"] is dataset else None
        erasing, splits = _take_erasing(given), given.get("num_aug_splits") or 0
        loader = self.create_loader(**given)
        _say_on(self.augment, f"cache {self.cache}" if self.cache else self.place)
        return NFALoader(loader, on_batches, mean, std, self.seed, mixup, erasing, splits)

    def _check(self, given: dict[str, Any]) -> None:
        if self.place != "batch" or self.cache:
            flag = "--nfa-cache" if self.cache else f"{FLAG} {self.place}"
            if self.place == "either" and self.cache:
                raise NFAError(
                    f"{flag} moves images before --aa, {FLAG} either instead of it: drop one"
                )
            if given.get("use_multi_epochs_loader"):
                raise NFAError(f"{flag} cannot tell the epochs: drop --use-multi-epochs-loader")
            if given.get("input_size_choices"):
                raise NFAError(f"{flag} does not work with --train-img-sizes; {INSTEAD}")
            _check_workers(given["dataset"], self.augment, flag)
        if given.get("num_aug_splits") and not given.get("use_prefetcher", True):
            raise NFAError("--aug-splits needs the prefetcher to join them; drop --no-prefetcher")
        if self.fit and (size := _size(given)):
            _check_channels(self.augment, size[0], "the training asks for")

    def _augmented(self, dataset: Any, given: dict[str, Any]) -> Any:
        """The dataset with NFA in it, from a cache or by the flow, or itself for NFA on batches."""
        if self.place != "batch" and not self.cache:
            flow = getattr(self.augment, "flow", None)
            if self.augment.size is not None:
                say(SLOW)
            elif flow is not None and not flow.is_linear:
                say(SLOW_FLOW)
            return _WorkerDataset(dataset, self.augment, self.seed, self.place)
        if not self.cache:
            return dataset
        augment = _on_device(self.augment, given.get("device", "cpu"))
        workers = max(1, given.get("num_workers", 1))
        try:
            cache = NFACache.build(augment, dataset, self.cache, workers=workers)  # others wait
            return CachedNFADataset(dataset, cache, augment.strength, augment.p, seed=self.seed)
        except (ValueError, TypeError, OSError) as e:
            raise NFAError(f"--nfa-cache {self.cache}: {e}") from None


def _size(given: dict[str, Any]) -> tuple[int, ...] | None:
    """Channels, height and width of the images, where the arguments of create_loader say them."""
    size = given.get("input_size")
    return tuple(size) if isinstance(size, (tuple, list)) and len(size) == 3 else None


def _take_erasing(given: dict[str, Any]) -> RandomErasing | None:
    """Takes random erasing out of the arguments of create_loader, as that would make it."""
    if not (p := given.pop("re_prob", 0)):
        return None
    mode, count = given.get("re_mode", "const"), given.get("re_count", 1)
    splits = (given.get("num_aug_splits") or 2) if given.get("re_split") else 0
    device = given.get("device", "cuda") if given.get("use_prefetcher", True) else "cpu"
    return RandomErasing(p, mode=mode, max_count=count, num_splits=splits, device=device)
