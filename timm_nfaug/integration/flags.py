"""The flags of NFA, and the augmentation that they ask for."""

import argparse
import copy
from typing import Any

import torch

from .._utils.checks import check_choice
from .._utils.notices import NFAError
from ..advice import DEEP
from ..augment import NFAugment
from ..fit import SIDES, latent_flow, latent_side
from ..flows.model import ConditionalFlow
from ..flows.registry import create_flow
from ..from_string import nf_augment_transform
from ..hub import COSINE, LINEAR
from ..moves import list_moves
from ..saved import settings_for_fit
from ..space import AUTOENCODER_HELP, SPACE_HELP, SPACES, check_space, chosen_autoencoder
from ..spec import parse_config
from .fit import _check_channels

PLACES = ("batch", "dataset", "either")
SIDE = 32  # of modes of pixels, at most
CHEAP = (
    "cosine and linear cost next to nothing without: drop --nfa-cache, or name the deep flow that it "
    f"is for, as in --nfa-flow {DEEP} --nfa-fit"
)


def nfa_string(text: str) -> str:
    """The type of ``--aug``: refuses a bad string at parsing, before anything is built.

    >>> nfa_string("nfa-s1")
    'nfa-s1'
    """
    try:
        parse_config(text)
    except ValueError as e:
        raise argparse.ArgumentTypeError(str(e)) from None
    return text


def add_args(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of NFA to a training parser, in a group of their own.

    >>> add_args(parser := argparse.ArgumentParser())
    >>> parser.parse_args(["--aug", "nfa-s0.5"]).nfa_place
    'batch'
    """
    add = parser.add_argument_group("NFA (timm_nfaug) augmentation parameters").add_argument
    what = (
        "learned augmentation by a normalizing flow: nfa, with s strength, k modes, p probability, "
        f"m kind ({', '.join(list_moves())}), l labels (none, given, posterior), by default "
        "nfa-s0.5-k32-p0.5-mpca-lnone; nfa alone chooses s, p and the flow by the images of a "
        "class (default: off)"
    )
    flow = (
        f"flow of --aug: {COSINE}, smooth shading that needs no data; {LINEAR}, the eigen-images of "
        "the training set itself; or a bundled name, e.g. conv_p4_small.cifar10, a directory, a Hub "
        "id org/name; a saved augmentation brings the settings that --aug does not name (default: "
        f"{COSINE}, or what nfa alone chooses; {LINEAR} for labels, axes, latents and --nfa-fit)"
    )
    fit = f"first fit a flow of other classes to the training set (always with --nfa-flow {LINEAR})"
    place = (
        "where it runs: on batches, on their device; on images, in the loader's workers (dataset); "
        "or there and in the place of --aa, so that each image gets one of the two (either)"
    )
    cache = (
        "of a deep flow: compute once, into this directory, how it changes each training image, so "
        "that epochs need no flow; of latents: these, so that epochs only decode; NFA then comes "
        "before crop and flip, in the loader's workers"
    )
    size = f"side at which latents are made (default: of the images, {SIDES[0]} to {SIDES[1]})"
    strict = "end with an error where NFA would warn: at images that it cannot move, or guesses"
    add("--aug", type=nfa_string, metavar="NFA", help=what)
    add("--nfa-flow", metavar="NAME", help=flow)
    add("--nfa-space", choices=SPACES, help=SPACE_HELP)
    add("--nfa-autoencoder", metavar="NAME", help=AUTOENCODER_HELP)
    add("--nfa-size", type=int, metavar="PIXELS", help=size)
    add("--nfa-fit", action="store_true", help=fit)
    add("--nfa-place", choices=PLACES, default="batch", help=f"{place} (default: batch)")
    add("--nfa-cache", metavar="DIR", help=f"{cache} (default: none)")
    add("--nfa-strict", action="store_true", help=strict)


def _usual() -> dict[str, Any]:
    """The flags of `add_args` at their defaults."""
    add_args(parser := argparse.ArgumentParser(add_help=False))
    return vars(parser.parse_args([]))


def _complete(args: Any) -> Any:
    """A copy of parsed flags with the flags of NFA that they lack, all but --aug."""
    if hasattr(args, "__iter__"):
        raise NFAError(
            f"expected wrap_loader(loader, args), args as of parser.parse_args(), got a "
            f"{type(args).__name__}; of a dict argparse.Namespace(**flags) makes them"
        )
    if not hasattr(args, "aug"):
        raise NFAError(
            f"the {type(args).__name__} of flags has no `aug`, so that NFA is neither on nor off: "
            "call nfa.add_args(parser) before parser.parse_args(), or set args.aug = None"
        )
    args = copy.copy(args)
    for name, value in _usual().items():
        setattr(args, name, getattr(args, name, value))
    return args


def useless_flag(args: Any) -> str | None:
    """A flag of NFA that is given without --aug, and would do nothing.

    >>> add_args(parser := argparse.ArgumentParser())
    >>> useless_flag(parser.parse_args(["--nfa-fit"]))
    '--nfa-fit'
    """
    usual = {} if args.aug else _usual()
    # args.yaml of older versions has the name of a flow also without --aug
    same = lambda k, v: getattr(args, k) == v or (k, getattr(args, k)) == ("nfa_flow", LINEAR)
    given = (k for k, v in usual.items() if k != "aug" and not same(k, v))
    return next((f"--{k.replace('_', '-')}" for k in given), None)


def augment_from_args(args: Any, shape: tuple[int, ...] | None = None) -> NFAugment | None:
    """The augmentation that parsed flags ask for, if any; modes may have to be fitted yet.

    `shape` is that of the images, (C, H, W), for what `args` leave open. Raises ValueError where
    flags do not go together, and OSError where a flow cannot be loaded.

    >>> add_args(parser := argparse.ArgumentParser())
    >>> augment_from_args(parser.parse_args(["--aug", "nfa-k8"])).modes
    8
    """
    if not getattr(args, "aug", None):
        return None
    if not isinstance(args.aug, str):
        raise NFAError(f"aug must be a string such as nfa-s0.5-k32-p0.5, got {args.aug!r}")
    check_choice("nfa_place", args.nfa_place, PLACES)  # which argparse skips in a --config file
    flow = flow_of(args)
    if flow == COSINE:
        return _cosine(args)
    return _linear(args, shape) if flow == LINEAR else _pretrained(args)


def flow_of(args: Any) -> str:
    """The name of the flow that flags ask for.

    Where they name none it is cosine; linear where they ask for what takes images to find: modes of
    classes or latents, variances of axes, a fit.

    >>> add_args(parser := argparse.ArgumentParser())
    >>> [flow_of(parser.parse_args(["--aug", aug])) for aug in ("nfa-s1", "nfa-s1-lgiven")]
    ['cosine', 'linear']
    """
    if args.nfa_flow is not None:
        return args.nfa_flow
    own = parse_config(args.aug) if args.aug else {}
    of_data = own.get("labels", "none") != "none" or own.get("kind") == "axes"
    latent = args.nfa_space == "latent" or args.nfa_autoencoder or args.nfa_size
    return LINEAR if of_data or latent or args.nfa_fit else COSINE


def _pretrained(args: Any) -> NFAugment:
    """The augmentation of a flow that has a name; with --nfa-fit without modes yet."""
    latent = {"autoencoder": args.nfa_autoencoder, "size": args.nfa_size}
    if args.nfa_fit:
        flow = ConditionalFlow.from_pretrained(args.nfa_flow)
        settings = settings_for_fit(flow) | parse_config(args.aug) | latent
        augment = NFAugment.to_fit(flow, strict=args.nfa_strict, **settings)
    else:
        augment = nf_augment_transform(args.aug, args.nfa_flow, strict=args.nfa_strict, **latent)
    check_space(args.nfa_space, augment.flow.config.latent, "--nfa-")
    if (channels := _asked_size(args)[0]) is not None:
        _check_channels(augment, channels, "--in-chans or --input-size asks for")
    augment.flow.set_net_dtype(_net_dtype(args))
    return augment


def _cosine(args: Any) -> NFAugment:
    """The augmentation by cosine images, which looks at no data."""
    if args.nfa_fit:
        raise NFAError(f"{COSINE} has nothing to fit: drop --nfa-fit, or take --nfa-flow {LINEAR}")
    if args.nfa_cache:
        raise NFAError(CHEAP)
    check_space(args.nfa_space, {}, "--nfa-")
    channels, side = _asked_size(args)
    size = min(SIDE, side or SIDE)  # larger images go through the lift
    latent = {"autoencoder": args.nfa_autoencoder, "size": args.nfa_size}  # refused
    settings = parse_config(args.aug) | latent | {"strict": args.nfa_strict}
    return NFAugment.from_cosine(input_size=(channels or 3, size, size), **settings)


def _linear(args: Any, shape: tuple[int, ...] | None) -> NFAugment:
    """The augmentation by eigen-images, or by modes of latents, none of which are known yet."""
    (channels, side), settings = _asked_size(args), parse_config(args.aug)
    c, h, w = shape or (3, *(side or SIDES[1],) * 2)
    side = side or min(h, w)
    latent = args.nfa_space, args.nfa_autoencoder, args.nfa_size
    if (autoencoder := chosen_autoencoder(*latent, "--nfa-")) is not None:
        flow = latent_flow(autoencoder, args.nfa_size or latent_side(side, autoencoder.factor))
        settings["autoencoder"] = autoencoder
    elif args.nfa_cache:
        raise NFAError(CHEAP)
    else:
        size = min(SIDE, side)  # larger images go through the lift
        flow = create_flow(LINEAR, input_size=(channels or c, size, size))
    return NFAugment.to_fit(flow, strict=args.nfa_strict, **settings)


def needs_fit(args: Any) -> bool:
    """Whether the modes of the augmentation that flags ask for have to be fitted yet.

    >>> needs_fit(argparse.Namespace(nfa_flow="linear", nfa_fit=False))
    True
    """
    return bool(args.nfa_fit) or flow_of(args) == LINEAR


def _net_dtype(args: Any) -> torch.dtype | None:
    """Precision of a training with --amp; full in workers and in a cache, which others may read."""
    if args.nfa_place != "batch" or args.nfa_cache or not getattr(args, "amp", 0):
        return None
    known = {"bfloat16": torch.bfloat16, "float16": torch.float16}
    return known.get(getattr(args, "amp_dtype", ""))


def _asked_size(args: Any) -> tuple[int | None, int | None]:
    """Channels and shorter side of the images, where `args` say: a side, (H, W) or (C, H, W)."""
    size = getattr(args, "input_size", None) or getattr(args, "img_size", None) or []
    sides = list(size) if isinstance(size, (tuple, list)) else [size]
    channels = getattr(args, "in_chans", None) or (sides[0] if len(sides) == 3 else None)
    return channels, min(sides[-2:], default=None)
