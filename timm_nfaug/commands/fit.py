"""Fits an augmentation to your images, and saves it: ``timm-nfaug fit --data-dir DATA --out OUT``.

One pass over the images, no training. OUT then holds the flow, the settings, a card and a picture.
"""

import argparse
import itertools
import shlex
from pathlib import Path
from typing import Any

from PIL import Image
from torch.utils.data import IterableDataset

from .._utils.checks import is_code
from ..augment import NFAugment
from ..autoencoder import Autoencoder
from ..config import settings_string
from ..flows.model import ConditionalFlow
from ..hub import LINEAR
from ..integration.classes import evenly
from ..integration.folder import describe, fit_to, linear_to_fit, training_set
from ..pictures import Labelled, preview_augmentation, shrink, usual_strengths
from ..saved import settings_for_fit, settings_of
from ..space import AUTOENCODER_HELP, SPACE_HELP, SPACES, check_space, chosen_autoencoder
from ..spec import parse_config
from ..unchanged import without_modes

ROWS = 6  # of the picture


def _unfitted(args: argparse.Namespace, autoencoder: Autoencoder | None) -> NFAugment:
    """The augmentation that flags ask for, without modes yet."""
    settings = parse_config(args.aug)
    if args.flow == LINEAR:
        dataset = training_set(args.data_dir, args.dataset)
        return linear_to_fit(dataset, settings, args.size, autoencoder)
    flow = ConditionalFlow.from_pretrained(args.flow)
    check_space(args.space, flow.config.latent)
    if flow.config.latent:
        settings |= {"autoencoder": autoencoder, "size": args.size}
    elif autoencoder is not None:
        raise ValueError(f"{args.flow} moves pixels: drop --autoencoder, or --flow")
    elif args.size not in (None, flow.config.input_size[1]):
        own = " x ".join(map(str, flow.config.input_size[1:]))
        raise ValueError(
            f"--size is for --flow linear, {args.flow} is of {own} pixels; drop --size"
        )
    return NFAugment.to_fit(flow, **settings_for_fit(flow) | settings)


def _examples(dataset: Any, channels: int, labelled: bool) -> Labelled:
    """Some images, evenly spread over the dataset, and their labels; of a stream the first."""
    if isinstance(dataset, IterableDataset):
        samples = list(itertools.islice(dataset, ROWS))
    else:
        samples = [dataset[i] for i in evenly(list(range(len(dataset))), ROWS)]
    mode = "L" if channels == 1 else "RGB"
    label = lambda k: k if labelled else None
    return [(shrink(image.convert(mode)), label(k)) for image, k, *_ in samples]


def _picture(augment: NFAugment, dataset: Any) -> Image.Image:
    images = _examples(dataset, augment.change.size[0], augment.labels == "given")
    strengths, own = usual_strengths(augment.strength), ("modes", "kind", "labels", "size")
    settings = {name: getattr(augment, name) for name in own}
    settings["autoencoder"] = getattr(augment, "autoencoder", None)
    return preview_augmentation(augment.flow, images, strengths, **settings)


def _check_out(out: Path, dataset: Any) -> None:
    """Refuses a file, and a folder that the next training would take for a class."""
    if out.is_file():
        raise NotADirectoryError(f"--out {out} is a file; name a directory")
    root = Path(getattr(getattr(dataset, "reader", None), "root", "") or "/").resolve()
    if root != Path("/") and root in (out := out.resolve()).parents:
        raise ValueError(f"--out {out} lies in the data, {root}, as a class would; name another")


def _fit(args: argparse.Namespace) -> str:
    """Fits and saves; returns what is to be said."""
    size = None if args.autoencoder is None else args.size  # else of the modes of pixels
    space = args.space if args.flow == LINEAR else None
    augment = _unfitted(args, chosen_autoencoder(space, args.autoencoder, size))
    dataset = training_set(args.data_dir, args.dataset, augment.change.size[0])
    _check_out(args.out, dataset)
    augment = fit_to(augment, dataset, args.num_classes, args.workers)
    assert augment.move is not None
    if augment.move.unmoved(augment.flow).all():
        raise ValueError(f"nothing to save: {without_modes(augment.change)}")
    augment.flow.config.info |= describe(args.data_dir, args.dataset, dataset)
    augment.save_pretrained(args.out, args.name, preview=_picture(augment, dataset))
    info, settings = augment.flow.config.info, settings_string(settings_of(augment))
    quoted, own, flag = shlex.quote(str(args.out)), "", ""
    if augment.size is not None and is_code(name := augment.autoencoder.name):
        own, flag = f', autoencoder="{name}"', f" --nfa-autoencoder {shlex.quote(name)}"
    return (
        f"saved {args.out}: {settings}, modes of {info['images']:,} images of "
        f"{info['data']}; look at {args.out / 'preview.png'}\n"
        f'use it: NFAugment.from_pretrained("{args.out}"{own}), or --aug nfa --nfa-flow {quoted}{flag}'
    )


def main(argv: list[str] | None = None) -> None:
    """Fits an augmentation as command-line arguments say, and saves it.

    >>> main(["--data-dir", "no folder", "--out", "out"])
    Traceback (most recent call last):
    SystemExit: 2
    """
    parser = argparse.ArgumentParser("timm-nfaug fit", description=__doc__.partition("\n\n")[0])
    add, usual = parser.add_argument, "(default: %(default)s)"
    flow = "linear, whose modes are images; or a bundled name, a directory, a Hub id"
    add("--data-dir", required=True, help="folder with a folder of images a class, or with train/")
    add("--dataset", default="", metavar="NAME", help="of timm, as its train.py takes it")
    add("--out", type=Path, required=True, help="directory for the augmentation")
    add("--aug", default="nfa", metavar="NFA", help=f"settings, as nfa-s0.5-k32-p0.5 {usual}")
    add("--flow", default=LINEAR, metavar="NAME", help=f"{flow} {usual}")
    add("--space", choices=SPACES, help=SPACE_HELP)
    add("--autoencoder", metavar="NAME", help=AUTOENCODER_HELP)
    latents = "or at which latents are made (default: of the images, 64 to 112)"
    size = f"side in pixels of the linear modes (default: 32), {latents}"
    add("--size", type=int, help=size)
    add("--num-classes", type=int, help="where --dataset does not know it, for modes of classes")
    add("--workers", type=int, default=2, help=f"processes that read images {usual}")
    add("--name", help="title of the card (default: that of the directory)")
    args = parser.parse_args(argv)
    try:
        said = _fit(args)
    except (ValueError, OSError, ImportError, Warning) as e:  # Warning: python -W error
        parser.exit(2, f"error: {e}\n")
    print(said)


if __name__ == "__main__":
    main()
