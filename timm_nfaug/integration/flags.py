"""The flags of NFA, and the augmentation that they ask for."""

from __future__ import annotations

import argparse
from typing import Any

import torch

from ..augment import DEFAULT_FLOW, NFAugment, nf_augment_transform
from ..flows.model import ConditionalFlow
from ..flows.registry import create_flow
from ..moves import list_moves
from ..spec import parse_config
from .fit import NFAError, check_channels

LINEAR = "linear"  # as --nfa-flow: eigen-images of the classes of the training set itself
LINEAR_SIZE = 32  # side; larger images go through the lift
PLACES = ("batch", "dataset")


def _checked(text: str) -> str:
    """Refuses a bad string at parsing, before anything is built."""
    try:
        parse_config(text)
    except ValueError as e:
        raise argparse.ArgumentTypeError(str(e)) from None
    return text


def add_args(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of NFA to a training parser, in a group of their own.

    >>> parser = argparse.ArgumentParser()
    >>> add_args(parser)
    >>> parser.parse_args(["--aug", "nfa-s0.5"]).nfa_flow
    'linear'
    """
    add = parser.add_argument_group("NFA (timm_nfaug) augmentation parameters").add_argument
    kinds = ", ".join(list_moves())
    what = (
        "learned augmentation by a normalizing flow: nfa, with s strength, k modes, p probability, m "
        f"kind ({kinds}), l labels (given, posterior, none); nfa alone is nfa-s0.5-k32-p0.5"
    )
    flow = (
        f"flow of --aug: {LINEAR}, the eigen-images of the training set's own classes; or a bundled "
        f"name, e.g. {DEFAULT_FLOW}, a directory, a Hub id org/name"
    )
    fit = (
        "take class Gaussians and modes from the training set before the first epoch: for a flow that "
        f"was trained on other classes (always so with --nfa-flow {LINEAR})"
    )
    place = "where it runs: on the batch, on its device, or on each image, in the loader's workers"
    cache = (
        "of a deep flow: compute once, into this directory, how it changes each training image, so "
        "that epochs need no flow; NFA then comes before crop and flip, in the loader's workers"
    )
    add("--aug", type=_checked, metavar="NFA", help=f"{what} (default: none)")
    add("--nfa-flow", default=LINEAR, metavar="NAME", help=f"{flow} (default: {LINEAR})")
    add("--nfa-fit", action="store_true", help=fit)
    add("--nfa-place", choices=PLACES, default="batch", help=f"{place} (default: batch)")
    add("--nfa-cache", metavar="DIR", help=f"{cache} (default: none)")


def augment_from_args(args: Any, shape: tuple[int, ...] | None = None) -> NFAugment | None:
    """The augmentation that parsed flags ask for, or None; not fitted yet where `needs_fit`.

    Args:
        shape: (C, H, W) of the images, for what `args` leave open.

    >>> args = argparse.Namespace(aug="nfa", nfa_flow="linear", nfa_fit=False, nfa_place="batch")
    >>> augment_from_args(args, (1, 28, 28)).change.size
    (1, 28, 28)

    Raises:
        ValueError, OSError: flags that do not go together, or a flow that cannot be loaded.
    """
    if not getattr(args, "aug", None):
        return None
    if args.nfa_place not in PLACES:  # argparse does not check what a --config file says
        raise NFAError(f"nfa_place must be one of {', '.join(PLACES)}, got {args.nfa_place!r}")
    channels, side = _asked_size(args)
    if args.nfa_flow == LINEAR:
        if getattr(args, "nfa_cache", None):
            why = f"--nfa-flow {LINEAR} costs next to nothing without"
            raise NFAError(f"--nfa-cache is for deep flows; {why}: drop --nfa-cache")
        if shape is not None:
            channels, side = channels or shape[0], side or min(shape[1:])
        side = min(LINEAR_SIZE, side or LINEAR_SIZE)
        flow = create_flow(LINEAR, input_size=(channels or 3, side, side))
        return NFAugment.to_fit(flow, **parse_config(args.aug))
    if args.nfa_fit:
        flow = ConditionalFlow.from_pretrained(args.nfa_flow)
        augment = NFAugment.to_fit(flow, **parse_config(args.aug))
    else:
        augment = nf_augment_transform(args.aug, args.nfa_flow)
    if channels is not None:
        check_channels(augment, channels, "--in-chans or --input-size asks for")
    augment.flow.set_net_dtype(_net_dtype(args))
    return augment


def needs_fit(args: Any) -> bool:
    """Whether the flags ask for modes of the training set.

    >>> needs_fit(argparse.Namespace(nfa_fit=False, nfa_flow="linear"))
    True
    """
    return bool(args.nfa_fit or args.nfa_flow == LINEAR)


def _net_dtype(args: Any) -> torch.dtype | None:
    """Precision of a training with --amp; full in workers, and in a cache, which others may read."""
    on_batches = args.nfa_place == "batch" and not getattr(args, "nfa_cache", None)
    known = {"bfloat16": torch.bfloat16, "float16": torch.float16}
    wanted = on_batches and getattr(args, "amp", False)
    return known.get(getattr(args, "amp_dtype", "")) if wanted else None


def _asked_size(args: Any) -> tuple[int | None, int | None]:
    """Channels and shorter side of the images, where `args` say: a side, (H, W) or (C, H, W)."""
    channels = getattr(args, "in_chans", None)
    size = getattr(args, "input_size", None) or getattr(args, "img_size", None)
    sides = list(size) if isinstance(size, (tuple, list)) else [size] if size else []
    if len(sides) == 3:
        channels = channels or sides[0]
    return channels or None, min(sides[-2:], default=None)
