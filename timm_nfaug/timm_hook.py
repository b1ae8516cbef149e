"""NFAugment in timm's training loader, in the right order: NFA on hard labels, then mixup/cutmix, then RandomErasing.

timm mixes in the collate function and erases inside the prefetcher, both before a wrapper sees the batch; here they
leave the loader and run after NFA, on the batch, with timm's own code.
"""

from __future__ import annotations

import hashlib
import inspect
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
from timm.data import FastCollateMixup, Mixup
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.data.random_erasing import RandomErasing
from torch import Tensor

from .augment import DEFAULT_FLOW, NFAugment, nf_augment_transform


def add_args(parser) -> None:
    """Adds the flags of NFA to a timm training parser, in a group of their own."""
    group = parser.add_argument_group("NFA (timm_nfaug) augmentation parameters")
    group.add_argument(
        "--aug", type=_checked, default=None, metavar="NFA",
        help="learned augmentation by a normalizing flow: nfa, with s strength, k modes, p probability, m kind (pca, "
        "axes, isotropic), l labels (given, posterior), e.g. nfa-s0.5-k32-p0.5 (default: none)",
    )  # fmt: skip
    group.add_argument(
        "--nfa-flow", default=DEFAULT_FLOW, metavar="NAME",
        help=f"flow of --aug: a bundled name, a directory, or a Hub id org/name (default: {DEFAULT_FLOW})",
    )  # fmt: skip


def _checked(text: str) -> str:
    """Refuses a bad string at parsing, before anything is built."""
    import argparse

    from .augment import parse_config

    try:
        parse_config(text)
    except ValueError as e:
        raise argparse.ArgumentTypeError(str(e)) from None
    return text


def augment_from_args(args) -> NFAugment | None:
    """The augmentation that parsed `args` ask for, or None."""
    if not getattr(args, "aug", None):
        return None
    return nf_augment_transform(args.aug, args.nfa_flow)


def loader_factory(create_loader: Callable, augment: NFAugment, seed: int = 0, rank: int | None = None) -> Callable:
    """A `create_loader` whose training loaders are augmented; evaluation loaders and `no_aug` are left as they are.

    At strength 0 or p 0 it is `create_loader` itself: the training is the stock one to the last bit.

    Args:
        create_loader: timm's.
        seed, rank: key of the random numbers, with epoch and batch; rank defaults to that of torchrun.
    """
    if not (augment.strength and augment.p):
        return create_loader
    signature = inspect.signature(create_loader)
    rank = int(os.environ.get("RANK", 0)) if rank is None else rank

    def create(dataset, *args, **kwargs):
        given = signature.bind_partial(dataset, *args, **kwargs).arguments
        if not given.get("is_training") or given.get("no_aug"):
            return create_loader(dataset, *args, **kwargs)
        check_classes(dataset, augment)
        mixup, erasing = given.get("collate_fn"), None
        if isinstance(mixup, FastCollateMixup):
            if "half" in mixup.mode:
                raise ValueError("mixup mode 'half' exists only inside timm's collate function; use batch, pair or elem")
            given["collate_fn"] = None
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
        return NFALoader(loader, augment, mean, std, seed, rank, mixup, erasing, splits)

    return create


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
        loader: gives images normalised by mean and std, on any device, and hard labels (B,).
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
        augment.mean, augment.std = tuple(mean), tuple(std)
        self.seed, self.rank, self.mixup, self.erasing, self.splits = seed, rank, mixup, erasing, splits
        self.epoch = 0

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


def check_classes(dataset, augment: NFAugment) -> None:
    """Refuses labels that mean other classes to the flow than to the data set, where both name theirs."""
    reader = getattr(dataset, "reader", dataset)
    mapping = getattr(reader, "class_to_idx", None) or getattr(dataset, "class_to_idx", None)
    names = augment.flow.config.class_names
    if augment.labels == "posterior" or not mapping or not names:
        return
    own = [str(k) for k, _ in sorted(mapping.items(), key=lambda kv: kv[1])]
    if own != names:
        raise ValueError(
            f"the flow knows the classes {_few(names)}, the data set has {_few(own)}; train or fit a flow for this data "
            "set, or let the flow choose the class itself with -lposterior"
        )


def _few(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f", ... ({len(names)})" if len(names) > 4 else "")
