"""NFAugment in timm's training loader, in the right order: NFA on hard labels, then mixup/cutmix, then RandomErasing.

timm mixes in the collate function and erases inside the prefetcher, both before a wrapper sees the batch; here they
leave the loader and run after NFA, on the batch, with timm's own code. NFA itself runs on the batch, where that lies, or
image by image in the loader's workers (`timm_dataset`).
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import inspect
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
from timm.data import AugMixDataset, FastCollateMixup, Mixup
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.data.loader import PrefetchLoader, adapt_to_chs, fast_collate
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset
from torchvision.transforms import Compose

from .._utils.random import keyed_generator, random_numbers_apart
from ..augment import DEFAULT_FLOW, NFAugment, nf_augment_transform
from ..data.cache import NFACache
from ..data.datasets import CachedNFADataset
from ..data.transforms import set_transform
from ..flows.model import ConditionalFlow
from ..flows.registry import create_flow
from ..spec import parse_config
from .fit import (
    NFAError,
    check_classes,
    fit_to_dataset,
    fit_to_stream,
    hands_images_to_its_transform,
    is_scheduled,
    take_modes_of_first_process,
    unwrapped,
)
from .workers import WorkerDataset, check_map_style

LINEAR = "linear"  # as --nfa-flow: eigen-images of the classes of the training set itself
LINEAR_SIZE = 32  # side; larger images go through the lift
PLACES = ("batch", "dataset")


def add_args(parser) -> None:
    """Adds the flags of NFA to a timm training parser, in a group of their own."""
    group = parser.add_argument_group("NFA (timm_nfaug) augmentation parameters")
    group.add_argument(
        "--aug", type=_checked, default=None, metavar="NFA",
        help="learned augmentation by a normalizing flow: nfa, with s strength, k modes, p probability, m kind (pca, "
        "axes, isotropic), l labels (given, posterior, none); nfa alone is nfa-s0.5-k32-p0.5 (default: none)",
    )  # fmt: skip
    group.add_argument(
        "--nfa-flow", default=LINEAR, metavar="NAME",
        help=f"flow of --aug: {LINEAR}, the eigen-images of the training set's own classes, which need no pretrained flow; or a "
        f"bundled name, e.g. {DEFAULT_FLOW}, a directory, a Hub id org/name (default: {LINEAR})",
    )  # fmt: skip
    group.add_argument(
        "--nfa-fit", action="store_true",
        help="take class Gaussians and modes from images of the training set before the first epoch: for a flow that was "
        f"trained on other classes (always so with --nfa-flow {LINEAR})",
    )  # fmt: skip
    group.add_argument(
        "--nfa-place", choices=PLACES, default="batch",
        help="where it runs: on the batch, on the device where that lies, or on each image of the data set, in the loader's "
        "workers on the CPU (default: batch)",
    )  # fmt: skip
    group.add_argument(
        "--nfa-cache", default=None, metavar="DIR",
        help="of a deep flow: work out once, into this directory, how it changes each training image, so that epochs need no "
        "flow; NFA then comes before crop and flip, in the loader's workers, to a good approximation (default: none)",
    )  # fmt: skip


def _checked(text: str) -> str:
    """Refuses a bad string at parsing, before anything is built."""
    try:
        parse_config(text)
    except ValueError as e:
        raise argparse.ArgumentTypeError(str(e)) from None
    return text


def augment_from_args(args, shape: tuple[int, ...] | None = None) -> NFAugment | None:
    """The augmentation that parsed `args` ask for, or None; where `needs_fit(args)`, it is not fitted yet.

    Args:
        shape: (C, H, W) of the images, for what `args` leave open.
    """
    if not getattr(args, "aug", None):
        return None
    if args.nfa_place not in PLACES:  # argparse does not check what a --config file says
        raise ValueError(f"nfa_place must be one of {', '.join(PLACES)}, got {args.nfa_place!r}")
    if getattr(args, "nfa_cache", None) and args.nfa_flow == LINEAR:
        raise ValueError(
            f"--nfa-cache is for deep flows; --nfa-flow {LINEAR} costs next to nothing without: drop --nfa-cache"
        )
    channels, side = _asked_size(args)
    if args.nfa_flow == LINEAR:
        if shape is not None:
            channels, side = channels or shape[0], side or min(shape[1:])
        side = min(LINEAR_SIZE, side or LINEAR_SIZE)
        return NFAugment.to_fit(
            create_flow(LINEAR, input_size=(channels or 3, side, side)), **parse_config(args.aug)
        )
    if args.nfa_fit:
        augment = NFAugment.to_fit(
            ConditionalFlow.from_pretrained(args.nfa_flow), **parse_config(args.aug)
        )
    else:
        augment = nf_augment_transform(args.aug, args.nfa_flow)
    if (
        getattr(args, "amp", False)
        and args.nfa_place == "batch"
        and not getattr(args, "nfa_cache", None)
    ):
        # beside a training in mixed precision; workers stay on the CPU, and a cache is made once for all trainings
        augment.flow.set_net_dtype(
            {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(
                getattr(args, "amp_dtype", None)
            )
        )
    own = augment.flow.config.input_size[0]
    if channels not in (None, own):
        raise ValueError(
            f"flow {args.nfa_flow} takes images of {own} channels, --in-chans or --input-size asks for {channels}; take "
            f"--nfa-flow {LINEAR}, or train a flow on such images"
        )
    return augment


def _asked_size(args) -> tuple[int | None, int | None]:
    """Channels and shorter side of the images, where `args` say: as train.py has it, or with sizes of one side or of H W."""
    channels, size = (
        getattr(args, "in_chans", None),
        getattr(args, "input_size", None) or getattr(args, "img_size", None),
    )
    sides = list(size) if isinstance(size, (tuple, list)) else [size] if size else []
    if len(sides) == 3:  # C H W
        channels = channels or sides[0]
    return channels or None, min(sides[-2:], default=None)


def needs_fit(args) -> bool:
    return bool(args.nfa_fit or args.nfa_flow == LINEAR)


def loader_factory(
    create_loader: Callable,
    augment: NFAugment,
    seed: int = 0,
    rank: int | None = None,
    fit: bool = False,
    num_classes: int | None = None,
    place: str = "batch",
    cache: str | None = None,
) -> Callable:
    """A `create_loader` whose training loaders are augmented; evaluation loaders and `no_aug` are left as they are.

    At strength 0 or p 0 it is `create_loader` itself: the training is the stock one to the last bit.

    Args:
        create_loader: timm's.
        seed, rank: key of the random numbers, with epoch and batch; rank defaults to the process's.
        fit: fit the augmentation to the first training data set; every process does so alike.
        num_classes: for `fit` where the data set does not know its classes.
        place: "batch", or "dataset": image by image in the loader's workers.
        cache: directory of a cache of tangents, made or gone on with here; NFA then runs from it, in the workers, whatever
            `place` is.
    """
    if not (augment.strength and augment.p):
        return create_loader
    signature = inspect.signature(create_loader)

    def create(dataset, *args, **kwargs):
        nonlocal fit
        given = signature.bind_partial(dataset, *args, **kwargs).arguments
        if not given.get("is_training") or given.get("no_aug"):
            return create_loader(dataset, *args, **kwargs)
        own_rank = process_rank() if rank is None else rank
        if place == "dataset" or cache:
            flag = "--nfa-cache" if cache else "--nfa-place dataset"
            if given.get("use_multi_epochs_loader"):
                raise NFAError(
                    f"{flag} cannot tell the epochs of --use-multi-epochs-loader; drop one of them"
                )
            if given.get("input_size_choices"):
                raise NFAError(
                    f"{flag} does not work with --train-img-sizes; take --nfa-place batch"
                )
            check_map_style(dataset, flag)
        if place == "dataset" and not cache:
            given["dataset"] = WorkerDataset(dataset, augment, seed, own_rank)
        mixup, erasing = given.get("collate_fn"), None
        if isinstance(mixup, FastCollateMixup):
            mixup, given["collate_fn"] = _batch_mixup(mixup), None
        else:
            mixup = None
        splits = given.get("num_aug_splits") or 0
        if splits and not given.get("use_prefetcher", True):
            raise NFAError(
                "--aug-splits needs the prefetcher, whose collate function joins the splits; drop --no-prefetcher"
            )
        if fit:  # last, as it may read many images
            on = given | {"device": torch.device("cpu")} if place == "dataset" else given
            fit_to_dataset(augment, dataset, on, num_classes, quiet=own_rank > 0)
            fit = False
        else:
            check_classes(dataset, augment)
        if cache:
            augment.to(given.get("device", "cpu"))
            given["dataset"] = cached(dataset, augment, cache, seed)
        if given.get("re_prob"):
            device = (
                given.get("device", torch.device("cuda"))
                if given.get("use_prefetcher", True)
                else "cpu"
            )
            erasing = RandomErasing(
                probability=given.pop("re_prob"),
                mode=given.get("re_mode", "const"),
                max_count=given.get("re_count", 1),
                num_splits=(splits or 2) if given.get("re_split") else 0,
                device=device,
            )
        channels = augment.flow.config.input_size[0]
        mean = adapt_to_chs(
            given.get("mean", IMAGENET_DEFAULT_MEAN), channels
        )  # as the prefetcher does
        std = adapt_to_chs(given.get("std", IMAGENET_DEFAULT_STD), channels)
        loader = create_loader(**_expand(given, signature))
        on_batches = augment if place == "batch" and not cache else None
        return NFALoader(loader, on_batches, mean, std, seed, own_rank, mixup, erasing, splits)

    return create


def cached(dataset, augment: NFAugment, path: str, seed: int) -> CachedNFADataset:
    """The data set moved from the cache in `path`, which is made first where it is not there; other ranks wait for it."""
    try:
        return CachedNFADataset(
            dataset, NFACache.build(augment, dataset, path), augment.strength, augment.p, seed=seed
        )
    except (ValueError, TypeError, OSError) as e:
        raise NFAError(f"--nfa-cache {path}: {e}") from None


def wrap_loader(loader, args, mean=None, std=None, num_classes: int | None = None):
    """A training loader with the augmentation that `args` ask for (see `add_args`); the loader itself if they ask for none.

    For a training script of one's own: ``add_args(parser)``, then ``loader = wrap_loader(loader, args)``. Mixup and random
    erasing of a timm loader, with its prefetcher or without, run after NFA. Random numbers are keyed by `args.seed` (0 if there
    is none), the process's rank, epoch and batch; set `epoch` on the result when a training resumes.

    Args:
        loader: timm's, or anything that gives batches (images, labels) of hard labels (B,), uint8 or float images on any
            device, in every pass anew. Where it has no `dataset` modes are fitted to the first batches it gives.
        mean, std: per channel, of normalised float images; a prefetching loader of timm knows its own. Without, floats are in
            [0, 1].
        num_classes: where modes are fitted and neither `loader.dataset` nor `args.num_classes` knows.
    """
    augment = augment_from_args(args)
    if augment is None or not (augment.strength and augment.p):
        return loader
    if args.nfa_place == "dataset":
        raise NFAError(
            "--nfa-place dataset is for the launcher, which builds the loader; here it is built already: take --nfa-place batch, "
            "or put NFAugment into the data set's transform or NFAugmentedDataset around it"
        )
    if getattr(args, "nfa_cache", None):
        raise NFAError(
            "--nfa-cache is for the launcher, which builds the loader; here it is built already: put CachedNFADataset around the "
            "data set"
        )
    num_classes = num_classes or getattr(args, "num_classes", None)
    mixup, erasing, inner = None, None, loader
    if isinstance(
        loader, PrefetchLoader
    ):  # copies, so that the script's own goes on mixing and erasing
        loader = copy.copy(loader)
        inner = loader.loader = copy.copy(loader.loader)
        mean, std = ((v.float().flatten() / 255).tolist() for v in (loader.mean, loader.std))
        erasing, loader.random_erasing = loader.random_erasing, None
        if isinstance(inner.collate_fn, FastCollateMixup):
            mixup, inner.collate_fn = _batch_mixup(inner.collate_fn), fast_collate
    dataset = getattr(loader, "dataset", None)
    if needs_fit(args):
        stream = dataset is None or isinstance(dataset, IterableDataset)
        if stream and isinstance(loader, Iterator):
            raise NFAError(
                f"a {type(loader).__name__} gives its images once, and modes are fitted to images that the training needs again; "
                "wrap a list or a loader"
            )
        with random_numbers_apart(), _erasing_apart(dataset):
            shape = _first_shape(loader if stream else _in_order(inner, 0, 2))
            if args.nfa_flow == LINEAR:
                augment = augment_from_args(args, shape)
            if shape is not None:
                _check_channels(augment, shape[0], args.nfa_flow)
            augment.mean, augment.std = mean, std
            _fit(augment, loader, num_classes)
    else:
        check_classes(dataset, augment)
    splits = dataset.num_splits if isinstance(dataset, AugMixDataset) else 0
    return NFALoader(
        loader, augment, mean, std, getattr(args, "seed", 0), None, mixup, erasing, splits
    )


@contextlib.contextmanager
def _erasing_apart(dataset) -> Iterator[RandomErasing | None]:
    """Timm's random erasing at the end of a data set's transform, where `create_loader` puts it without the prefetcher, or None.

    Until the context ends the data set does without.
    """
    own, scheduled = dict(getattr(dataset, "__dict__", {})), is_scheduled(dataset)
    transforms = dataset.transforms if scheduled else [own.get("transform")]
    steps = [list(getattr(t, "transforms", ())) for t in transforms]
    pair = (
        None if scheduled else own.get("transforms")
    )  # of torchvision's data sets, which hold the transform a second time
    twice = getattr(pair, "transform", transforms[0]) is transforms[0]
    if not (twice and all(s and isinstance(s[-1], RandomErasing) for s in steps)):
        yield None
        return
    cut = [Compose(s[:-1]) for s in steps]
    try:
        if scheduled:
            dataset.transforms = tuple(cut)
        else:
            set_transform(dataset, cut[0])
        yield steps[0][-1]
    finally:
        dataset.__dict__.update({k: own[k] for k in ("transform", "transforms") if k in own})


def _first_shape(loader) -> tuple[int, ...] | None:
    """(C, H, W) of the first batch, or None where that is no batch of images."""
    batch = next(iter(loader), None)
    images = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
    return tuple(images.shape[1:]) if isinstance(images, Tensor) and images.ndim == 4 else None


def _check_channels(augment: NFAugment, channels: int, flow: str | None = None) -> None:
    own = augment.flow.config.input_size[0]
    if channels == own:
        return
    if flow == LINEAR:
        raise NFAError(
            f"--in-chans or --input-size asks for images of {own} channels, the loader gives {channels}; ask for {channels}, or "
            "convert the images"
        )
    raise NFAError(
        f"the flow takes images of {own} channels, the loader gives {channels}; take --nfa-flow {LINEAR}, convert the images, or "
        "train a flow on such images"
    )


def _fit(augment: NFAugment, loader, num_classes: int | None) -> None:
    """Fits to what a loader reads, the same modes in every process."""
    prefetching, dataset = isinstance(loader, PrefetchLoader), getattr(loader, "dataset", None)
    channels = augment.flow.config.input_size[0]
    workers = getattr(loader.loader if prefetching else loader, "num_workers", 0)
    if hands_images_to_its_transform(
        unwrapped(dataset), channels, prefetching or is_scheduled(dataset)
    ):
        given = {
            "num_workers": workers,
            "device": getattr(loader, "device", "cpu"),
        }  # read without the training's random crops
        fit_to_dataset(augment, dataset, given, num_classes, quiet=process_rank() > 0)
    elif dataset is None or isinstance(dataset, IterableDataset):
        fit_to_stream(augment, loader, num_classes)
    else:
        whole = _in_order(loader, workers)
        augment.fit(whole, num_classes, allow_empty=True)
        if whole is loader:
            take_modes_of_first_process(augment)


def _in_order(loader, num_workers: int, batch_size: int | None = None):
    """All of a loader's data set, in order, whatever its sampler gives this process; a loader of another kind as it is."""
    if isinstance(loader, PrefetchLoader):
        whole = copy.copy(loader)
        whole.loader = _in_order(loader.loader, num_workers)
        return whole
    if not isinstance(loader, DataLoader):
        return loader
    # indices of timm's data set of several transforms name one of them: its first
    sampler = [(i, 0) for i in range(len(loader.dataset))] if is_scheduled(loader.dataset) else None
    size = (
        None if loader.batch_sampler is None else batch_size or loader.batch_size or 256
    )  # None: the data set gives batches
    return DataLoader(
        loader.dataset, size, sampler=sampler, collate_fn=loader.collate_fn, num_workers=num_workers,
        generator=torch.Generator(),
    )  # fmt: skip


def _batch_mixup(mixup: FastCollateMixup) -> FastCollateMixup:
    """Checks that it can mix whole batches, as it does outside the collate function."""
    if "half" in mixup.mode:
        raise NFAError(
            "mixup mode 'half' exists only inside timm's collate function; use batch, pair or elem"
        )
    return mixup


def _expand(given: dict[str, Any], signature: inspect.Signature) -> dict[str, Any]:
    """Bound arguments as keywords, with those of a **kwargs parameter unpacked."""
    flat = {}
    for name, value in given.items():
        if signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
            flat.update(value)
        else:
            flat[name] = value
    return flat


def process_rank() -> int:
    """Of torch.distributed once that runs, before it as torchrun has said; 0 without either."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank()
    return int(os.environ.get("RANK", 0))


class NFALoader:
    """A timm training loader whose batches are augmented, then mixed, then erased; otherwise the loader itself.

    Args:
        augment: None where the data set does it (`WorkerDataset`, `CachedNFADataset`).
        loader: gives images normalised by mean and std (None: uint8, or floats in [0, 1]), on any device, and hard labels (B,).
        seed, rank: key of the random numbers, with epoch and batch; rank None is that of the process in each pass.
        mixup: applied after NFA, or None. erasing: applied last, or None.
        splits: number of augmentation splits in a batch; the first stays clean.
    """

    def __init__(
        self,
        loader,
        augment: NFAugment | None,
        mean=IMAGENET_DEFAULT_MEAN,
        std=IMAGENET_DEFAULT_STD,
        seed: int = 0,
        rank: int | None = 0,
        mixup: Mixup | None = None,
        erasing: RandomErasing | None = None,
        splits: int = 0,
    ):
        self.loader, self.augment = loader, augment
        if augment is not None:
            augment.mean, augment.std = mean, std
        self.seed, self.rank, self.mixup, self.erasing, self.splits = (
            seed,
            rank,
            mixup,
            erasing,
            splits,
        )
        self.epoch = 0  # of the next pass; counted here unless set before it, as the launcher does

    def __iter__(self) -> Iterator[tuple]:
        epoch, self.epoch = self.epoch, self.epoch + 1
        dataset = getattr(self.loader, "dataset", None)
        if isinstance(dataset, (WorkerDataset, CachedNFADataset)):
            dataset.set_epoch(epoch)
        with _erasing_apart(dataset) as erasing:
            for i, (images, target, *rest) in enumerate(self.loader):
                images, target = self._after(images, target, epoch, i)
                for erase in (self.erasing, erasing):
                    images = images if erase is None else erase(images)
                yield (images, target, *rest)

    def _after(
        self, images: Tensor, target: Tensor, epoch: int, batch: int
    ) -> tuple[Tensor, Tensor]:
        if self.augment is not None:
            self.augment.to(images.device)
            if images.ndim == 4:
                _check_channels(self.augment, images.shape[1])
            g = keyed_generator(
                self.seed, process_rank() if self.rank is None else self.rank, epoch, batch
            )
            clean = len(images) // self.splits if self.splits > 1 else 0
            new, _ = self.augment(images[clean:], target[clean:], generator=g)
            images = torch.cat([images[:clean], new]) if clean else new
        if self.mixup is not None:
            images, target = Mixup.__call__(self.mixup, images, target)
        return images, target

    def __len__(self) -> int:
        return len(self.loader)

    @property
    def mixup_enabled(self) -> bool:
        return self.mixup is not None and self.mixup.mixup_enabled

    @mixup_enabled.setter
    def mixup_enabled(self, value: bool) -> None:
        if self.mixup is not None:
            self.mixup.mixup_enabled = value

    def __getattr__(self, name: str):  # dataset, sampler, batch_sampler, ...
        if name == "loader":  # not set yet: while unpickling
            raise AttributeError(name)
        return getattr(self.loader, name)
