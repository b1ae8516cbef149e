"""The augmentation of a set with copies, as flags ask for it, and what its bytes depend on."""

import argparse
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..augment import NFAugment
from ..config import settings_string
from ..data.cache import digest
from ..hub import COSINE, LINEAR
from ..integration.fit import _check_classes
from ..integration.folder import ImageFiles, describe, fit_to, linear_to_fit
from ..saved import settings_of
from ..space import check_space, chosen_autoencoder
from ..spec import parse_config
from ..unchanged import without_modes
from .shards import one_thread


def start(args: argparse.Namespace, dataset: ImageFiles) -> NFAugment:
    """The augmentation that flags of `timm_nfaug.materialise` ask for; a linear one has no modes yet.

    >>> flags = argparse.Namespace(aug="nfa-s1", flow="conv_p4_tiny.digits", space=None)
    >>> start(argparse.Namespace(**vars(flags), autoencoder=None, size=None), None).p
    1.0

    Raises:
        ValueError, OSError: the flags do not go together, or there is no such flow or autoencoder.
    """
    settings = {"p": 1.0} | parse_config(args.aug)
    own = args.flow == LINEAR
    autoencoder = chosen_autoencoder(args.space if own else None, args.autoencoder)
    autoencoder = autoencoder if autoencoder is None else autoencoder.to(args.device)
    if own:
        return linear_to_fit(dataset, settings, args.size, autoencoder)
    latent = {"autoencoder": autoencoder, "size": args.size}
    if args.flow == COSINE:
        augment = NFAugment.from_cosine(**settings, **latent)
    else:
        augment = NFAugment.from_pretrained(args.flow, **settings, **latent)
    check_space(args.space, augment.flow.config.latent)
    return augment


def fitted(augment: NFAugment, data: str, dataset: ImageFiles) -> NFAugment:
    """A copy with the modes of the dataset, found with one thread: the same on any machine.

    >>> from torchvision.datasets import FakeData
    >>> from timm_nfaug import create_flow
    >>> augment = NFAugment.to_fit(create_flow(LINEAR), modes=2)
    >>> fitted(augment, "flowers", FakeData(4, (3, 32, 32))).flow.config.info["data"]
    'flowers'
    """
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


def check(augment: NFAugment, args: argparse.Namespace, dataset: Any) -> None:
    """Refuses what would give copies that are no copies, or cannot be made.

    >>> augment = NFAugment.from_pretrained("conv_p4_tiny.digits")
    >>> check(augment, argparse.Namespace(aug="nfa", flow=LINEAR), [])
    """
    if augment.idle:
        raise ValueError(f"--aug {args.aug} moves nothing: its copies would be the images again")
    if augment.value_range is not None:
        raise ValueError(
            f"the modes of {args.flow} are of images in the range {augment.value_range}, image files "
            "have levels 0 to 255: take one that was fitted to 8-bit images"
        )
    if args.flow != LINEAR:
        _check_classes(dataset, augment)


def settings_now(augment: NFAugment, args: argparse.Namespace, names: list[str]) -> dict[str, Any]:
    """All that the bytes of the set depend on, beside the images and the versions.

    >>> flags = dict(flow=LINEAR, copies=3, seed=0, format="folder", quality=None, device="cpu")
    >>> augment = NFAugment.from_pretrained("conv_p4_tiny.digits")
    >>> settings_now(augment, argparse.Namespace(**flags, shard_images=64), ["a", "b"])["side"]
    8
    """
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
    """Versions of the packages whose rounding and compression the bytes depend on.

    >>> sorted(versions())
    ['numpy', 'pillow', 'torch']
    """
    return {name: version(name) for name in ("torch", "pillow", "numpy")}
