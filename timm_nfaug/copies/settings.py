"""The augmentation of a set with copies, as flags ask for it, and what its bytes depend on."""

import argparse
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..augment import NFAugment
from ..autoencoder import Autoencoder, load_autoencoder
from ..config import settings_string
from ..data.cache import digest
from ..fit import SIDES, latent_flow
from ..flows.registry import create_flow
from ..hub import LINEAR
from ..integration.fit import _check_classes
from ..integration.folder import ImageFiles, describe, fit_to
from ..saved import settings_of
from ..spec import parse_config
from ..unchanged import without_modes
from .shards import one_thread


def start(args: argparse.Namespace, dataset: ImageFiles) -> NFAugment:
    """The augmentation that flags of `timm_nfaug.materialise` ask for; a linear one has no modes yet.

    Raises:
        ValueError, OSError: the flags do not go together, or there is no such flow or autoencoder.
    """
    settings = {"p": 1.0} | parse_config(args.aug)
    if args.space == "pixels" and args.autoencoder:
        raise ValueError("--autoencoder is for --space latent: drop one of them")
    autoencoder = _autoencoder(args)
    if args.flow != LINEAR:
        own = {"autoencoder": autoencoder, "size": args.size}
        own = {k: v for k, v in own.items() if v is not None}
        return NFAugment.from_pretrained(args.flow, **settings, **own)
    if autoencoder is None:
        if args.space == "latent":
            raise ValueError("--space latent needs --autoencoder NAME, or a --flow over latents")
        side = 32 if args.size is None else args.size
        return NFAugment.to_fit(create_flow(LINEAR, input_size=(3, side, side)), **settings)
    side = _side(dataset, autoencoder.factor) if args.size is None else args.size
    flow = latent_flow(autoencoder, side)
    return NFAugment.to_fit(flow, autoencoder=autoencoder, size=side, **settings)


def fitted(augment: NFAugment, data: str, dataset: ImageFiles) -> NFAugment:
    """A copy with the modes of the dataset, found with one thread: the same on any machine."""
    with one_thread():
        augment = fit_to(augment, dataset)
    assert augment.move is not None
    if augment.move.unmoved(augment.flow).all():
        raise ValueError(without_modes(augment.change))
    augment.flow.config.info |= describe(data, "", dataset)
    return augment


def absolute(name: str | None) -> str | None:
    """The name of an autoencoder as it holds in other working directories.

    >>> absolute("org/name"), absolute("/models/mine.py:load")
    ('org/name', '/models/mine.py:load')
    """
    path, _, function = (name or "").rpartition(":")
    if path.endswith(".py"):
        return f"{Path(path).resolve()}:{function}"
    return str(Path(name).resolve()) if name and Path(name).is_dir() else name


def _autoencoder(args: argparse.Namespace) -> Autoencoder | None:
    return None if args.autoencoder is None else load_autoencoder(args.autoencoder).to(args.device)


def _side(dataset: ImageFiles, factor: int) -> int:
    """Side of latents: that of the first image, 64 to 224, a multiple of `factor`."""
    side = min(max(min(dataset[0][0].size), SIDES[0]), SIDES[1])
    return max(factor, side // factor * factor)


def check(augment: NFAugment, args: argparse.Namespace, dataset: Any) -> None:
    """Refuses what would give copies that are no copies, or cannot be made."""
    if augment.idle:
        raise ValueError(f"--aug {args.aug} moves nothing: its copies would be the images again")
    if augment.value_range is not None:
        raise ValueError(
            f"the modes of {args.flow} are of images in the range {augment.value_range}, image files "
            "have levels 0 to 255: take one that was fitted to 8-bit images"
        )
    if args.space is not None and (args.space == "latent") != (augment.size is not None):
        raise ValueError(f"{args.flow} is not a flow over the space {args.space}: drop --space")
    if args.flow != LINEAR:
        _check_classes(dataset, augment)


def settings_now(augment: NFAugment, args: argparse.Namespace, names: list[str]) -> dict[str, Any]:
    """All that the bytes of the set depend on, beside the images and the versions."""
    latent = getattr(augment, "autoencoder", None)
    return {
        "aug": settings_string(settings_of(augment)),
        "modes": "of the images" if args.flow == LINEAR else digest(augment.flow)[:16],
        "side": augment.change.size[1],
        "autoencoder": None if latent is None else latent.digest(),
        "copies": args.copies,
        "seed": args.seed,
        "format": args.format,
        "quality": args.quality,
        "images a shard": args.shard_images,
        "device": args.device,
        "classes": names,
    }


def versions() -> dict[str, str]:
    """Of the packages whose rounding and compression the bytes depend on.

    >>> sorted(versions())
    ['numpy', 'pillow', 'torch']
    """
    return {name: version(name) for name in ("torch", "pillow", "numpy")}
