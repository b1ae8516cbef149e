"""NFAugment in timm's training loader, in the right order: NFA on hard labels, then mixup/cutmix, then RandomErasing.

timm mixes in the collate function and erases inside the prefetcher, both before a wrapper sees the batch; here they
leave the loader and run after NFA, on the batch, with timm's own code.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import inspect
import logging
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from timm.data import AugMixDataset, FastCollateMixup, Mixup, create_transform
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.data.loader import PrefetchLoader, fast_collate
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, Subset

from .augment import DEFAULT_FLOW, NFAugment, nf_augment_transform, parse_config
from .flows.model import ConditionalFlow
from .flows.registry import create_flow

_logger = logging.getLogger(__name__)

LINEAR = "linear"  # as --nfa-flow: eigen-images of the classes of the training set itself
LINEAR_SIZE = 32  # side; larger images go through the lift
# read to find the modes, or eight a mode where that is more: all of ImageNet would take hours at every launch
FIT_IMAGES = 256  # of a class
FIT_IMAGES_POOLED = 10_000  # where the modes are of no class


def add_args(parser) -> None:
    """Adds the flags of NFA to a timm training parser, in a group of their own."""
    group = parser.add_argument_group("NFA (timm_nfaug) augmentation parameters")
    group.add_argument(
        "--aug", type=_checked, default=None, metavar="NFA",
        help="learned augmentation by a normalizing flow: nfa, with s strength, k modes, p probability, m kind (pca, "
        "axes, isotropic), l labels (given, posterior, none); nfa alone is nfa-s1-k32-p0.5 (default: none)",
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


def _checked(text: str) -> str:
    """Refuses a bad string at parsing, before anything is built."""
    try:
        parse_config(text)
    except ValueError as e:
        raise argparse.ArgumentTypeError(str(e)) from None
    return text


def augment_from_args(args) -> NFAugment | None:
    """The augmentation that parsed `args` ask for, or None; where `needs_fit(args)`, it is not fitted yet."""
    if not getattr(args, "aug", None):
        return None
    if not needs_fit(args):
        return nf_augment_transform(args.aug, args.nfa_flow)
    if args.nfa_flow != LINEAR:
        return NFAugment.to_fit(ConditionalFlow.from_pretrained(args.nfa_flow), **parse_config(args.aug))
    size = getattr(args, "input_size", None)  # C H W
    side = min(LINEAR_SIZE, (min(size[1:]) if size else getattr(args, "img_size", None)) or LINEAR_SIZE)
    channels = size[0] if size else getattr(args, "in_chans", None) or 3
    return NFAugment.to_fit(create_flow(LINEAR, input_size=(channels, side, side)), **parse_config(args.aug))


def needs_fit(args) -> bool:
    return bool(args.nfa_fit or args.nfa_flow == LINEAR)


class NFAError(ValueError):
    """What is asked of NFA does not go with the data or the flags; the message says what does."""


def loader_factory(
    create_loader: Callable,
    augment: NFAugment,
    seed: int = 0,
    rank: int | None = None,
    fit: bool = False,
    num_classes: int | None = None,
) -> Callable:
    """A `create_loader` whose training loaders are augmented; evaluation loaders and `no_aug` are left as they are.

    At strength 0 or p 0 it is `create_loader` itself: the training is the stock one to the last bit.

    Args:
        create_loader: timm's.
        seed, rank: key of the random numbers, with epoch and batch; rank defaults to that of the environment.
        fit: fit the augmentation to the first training data set; every process does so alike.
        num_classes: for `fit` where the data set does not know its classes.
    """
    if not (augment.strength and augment.p):
        return create_loader
    signature = inspect.signature(create_loader)

    def create(dataset, *args, **kwargs):
        nonlocal fit
        given = signature.bind_partial(dataset, *args, **kwargs).arguments
        if not given.get("is_training") or given.get("no_aug"):
            return create_loader(dataset, *args, **kwargs)
        own_rank = int(os.environ.get("RANK", 0)) if rank is None else rank  # timm sets it late where Slurm launched it
        if fit:
            fit_to_dataset(augment, dataset, given, num_classes, quiet=own_rank > 0)
            fit = False
        else:
            check_classes(dataset, augment)
        mixup, erasing = given.get("collate_fn"), None
        if isinstance(mixup, FastCollateMixup):
            mixup, given["collate_fn"] = _batch_mixup(mixup), None
        else:
            mixup = None
        splits = given.get("num_aug_splits") or 0
        if given.get("re_prob"):
            device = given.get("device", torch.device("cuda")) if given.get("use_prefetcher", True) else "cpu"
            erasing = RandomErasing(
                probability=given.pop("re_prob"),
                mode=given.get("re_mode", "const"),
                max_count=given.get("re_count", 1),
                num_splits=(splits or 2) if given.get("re_split") else 0,
                device=device,
            )
        mean = given.get("mean", IMAGENET_DEFAULT_MEAN)
        std = given.get("std", IMAGENET_DEFAULT_STD)
        loader = create_loader(**_expand(given, signature))
        return NFALoader(loader, augment, mean, std, seed, own_rank, mixup, erasing, splits)

    return create


def wrap_loader(loader, args, mean=None, std=None, num_classes: int | None = None):
    """A training loader with the augmentation that `args` ask for (see `add_args`); the loader itself if they ask for none.

    For a training script of one's own: ``add_args(parser)``, then ``loader = wrap_loader(loader, args)``. Mixup and random
    erasing of a timm loader leave it, and run after NFA. Random numbers are keyed by `args.seed` (0 if there is none), the
    environment's RANK, epoch and batch; set `epoch` on the result when a training resumes.

    Args:
        loader: timm's, or any that gives batches (images, labels) of hard labels (B,), uint8 or float images on any device.
        mean, std: per channel, of normalised float images; a prefetching loader of timm knows its own. Without, floats are in
            [0, 1].
        num_classes: where modes are fitted and neither `loader.dataset` nor `args.num_classes` knows.
    """
    augment = augment_from_args(args)
    if augment is None or not (augment.strength and augment.p):
        return loader
    num_classes = num_classes or getattr(args, "num_classes", None)
    rank, mixup, erasing, inner = int(os.environ.get("RANK", 0)), None, None, loader
    if isinstance(loader, PrefetchLoader):
        inner = loader.loader
        mean, std = ((v.float().flatten() / 255).tolist() for v in (loader.mean, loader.std))
        erasing, loader.random_erasing = loader.random_erasing, None
        if isinstance(inner.collate_fn, FastCollateMixup):
            mixup, inner.collate_fn = _batch_mixup(inner.collate_fn), fast_collate
    augment.mean, augment.std = mean, std
    if not needs_fit(args):
        check_classes(loader.dataset, augment)
    elif hasattr(loader.dataset, "transform"):  # read without the training's random crops
        given = {"num_workers": inner.num_workers, "device": getattr(loader, "device", "cpu")}
        fit_to_dataset(augment, loader.dataset, given, num_classes, quiet=rank > 0)
    else:
        augment.fit(loader, num_classes, allow_empty=True)
    splits = loader.dataset.num_splits if isinstance(loader.dataset, AugMixDataset) else 0
    return NFALoader(loader, augment, mean, std, getattr(args, "seed", 0), rank, mixup, erasing, splits)


def _batch_mixup(mixup: FastCollateMixup) -> FastCollateMixup:
    """Checks that it can mix whole batches, as it does outside the collate function."""
    if "half" in mixup.mode:
        raise NFAError("mixup mode 'half' exists only inside timm's collate function; use batch, pair or elem")
    return mixup


def fit_to_dataset(
    augment: NFAugment,
    dataset,
    given: dict[str, Any],
    num_classes: int | None = None,
    quiet: bool = False,
) -> None:
    """Fits `augment` to a timm data set, read through timm's evaluation transform at the flow's size.

    It reads up to `FIT_IMAGES` images of each class (8 a mode where that is more), spread over the data set, or
    `FIT_IMAGES_POOLED` of all; where labels cannot be had without the images, all of them. Draws nothing from the global
    generators.

    Args:
        given: the arguments of timm's `create_loader` for training on it.
        num_classes: where the data set does not know its classes.
        quiet: log nothing.
    """
    base, size = _base(dataset), augment.flow.config.input_size
    pooled = augment.labels == "none"
    mapping = None if pooled else _class_to_idx(base)
    classes = 1 if pooled else num_classes
    if mapping:
        classes = max(mapping.values()) + 1  # names may share a label, and labels have gaps
    if isinstance(base, IterableDataset):
        raise NFAError(
            f"NFA is fitted to map-style data sets, got {type(base).__name__}; fit one beforehand (NFAugment.fit, then "
            "augment.flow.save_pretrained) and name its directory with --nfa-flow"
        )
    if not classes:
        raise NFAError(f"{type(base).__name__} does not know its classes; say how many there are with --num-classes")
    wanted = given.get("input_size", size)
    if isinstance(wanted, (tuple, list)) and wanted[0] != size[0]:
        raise NFAError(f"the flow takes images of {size[0]} channels, the training asks for {wanted[0]}; take another flow")
    start = time.monotonic()
    data = copy.copy(base)
    data.transform = create_transform(
        size, interpolation="bicubic", mean=(0.0,) * size[0], std=(1.0,) * size[0], crop_pct=1.0, crop_mode="squash"
    )
    labels, count = ([0] * len(base), FIT_IMAGES_POOLED) if pooled else (_labels(base), FIT_IMAGES)
    if labels is not None:
        data = Subset(data, spread(labels, max(count, 8 * augment.modes)))
    loader = DataLoader(data, 256, num_workers=given.get("num_workers", 1), generator=torch.Generator())
    augment.mean = augment.std = None  # the images come in [0, 1]
    augment.to(given.get("device", "cpu")).fit(loader, classes, allow_empty=True)
    if mapping and len(mapping) == classes:
        augment.flow.config.class_names = _names(mapping)
    if quiet:
        return
    found = (augment.flow.prior.mode_std > 0).sum(1)
    seconds = time.monotonic() - start
    _logger.info("NFA: modes of %d classes from %d of %d images in %.1f s", classes, len(data), len(base), seconds)
    if (few := int((found < augment.modes).sum())):
        _logger.warning(
            "NFA: %d of %d classes have fewer than %d images and so fewer than %d modes; the fewest: %d",
            few, classes, augment.modes + 1, augment.modes, int(found.min()),
        )  # fmt: skip


def _labels(dataset) -> list[int] | None:
    """The label of every sample as timm's readers and torchvision's data sets hold them, without reading an image."""
    if getattr(dataset, "target_transform", None) is not None:
        return None
    reader = getattr(dataset, "reader", dataset)
    try:
        labels = getattr(reader, "targets", None)
        labels = [k for _, k in reader.samples] if labels is None else torch.as_tensor(labels).tolist()
        labels = [int(k) for k in labels]
    except (AttributeError, TypeError, ValueError):  # there are none, or they are not one integer a sample
        return None
    return labels if len(labels) == len(dataset) else None


def spread(labels: list[int], count: int) -> list[int]:
    """Indices of up to `count` samples of each label, evenly spaced among its own, in order."""
    members: dict[int, list[int]] = {}
    for i, k in enumerate(labels):
        members.setdefault(k, []).append(i)
    few = ([own[j * len(own) // count] for j in range(count)] if len(own) > count else own for own in members.values())
    return sorted(i for own in few for i in own)


def _expand(given: dict[str, Any], signature: inspect.Signature) -> dict[str, Any]:
    """Bound arguments as keywords, with those of a **kwargs parameter unpacked."""
    flat = {}
    for name, value in given.items():
        if signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
            flat.update(value)
        else:
            flat[name] = value
    return flat


class NFALoader:
    """A timm training loader whose batches are augmented, then mixed, then erased; otherwise the loader itself.

    Args:
        loader: gives images normalised by mean and std (None: uint8, or floats in [0, 1]), on any device, and hard labels (B,).
        mixup: applied after NFA, or None. erasing: applied last, or None.
        splits: number of augmentation splits in a batch; the first stays clean.
    """

    def __init__(
        self,
        loader,
        augment: NFAugment,
        mean=IMAGENET_DEFAULT_MEAN,
        std=IMAGENET_DEFAULT_STD,
        seed: int = 0,
        rank: int = 0,
        mixup: Mixup | None = None,
        erasing: RandomErasing | None = None,
        splits: int = 0,
    ):
        self.loader, self.augment = loader, augment
        augment.mean, augment.std = mean, std
        self.seed, self.rank, self.mixup, self.erasing, self.splits = seed, rank, mixup, erasing, splits
        self.epoch = 0  # of the next pass; counted here unless set before it, as the launcher does

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        epoch, self.epoch = self.epoch, self.epoch + 1
        for i, (images, target) in enumerate(self.loader):
            yield self._after(images, target, epoch, i)

    def _after(self, images: Tensor, target: Tensor, epoch: int, batch: int) -> tuple[Tensor, Tensor]:
        self.augment.to(images.device)
        digest = hashlib.sha256(f"{self.seed} {self.rank} {epoch} {batch}".encode()).digest()
        g = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") % 2**63)
        clean = len(images) // self.splits if self.splits > 1 else 0
        new, _ = self.augment(images[clean:], target[clean:], generator=g)
        images = torch.cat([images[:clean], new]) if clean else new
        if self.mixup is not None:
            images, target = Mixup.__call__(self.mixup, images, target)
        if self.erasing is not None:
            images = self.erasing(images)
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


def _base(dataset):
    return dataset.dataset if isinstance(dataset, AugMixDataset) else dataset


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
    mapping = _class_to_idx(_base(dataset))
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
