"""Pictures of what NFA does to your images: ``timm-nfaug preview --images DIR --out preview.png``.

Rows of original and augmented images over strengths; with ``--samples`` images of each class drawn
at temperatures; with ``--interpolate`` the way from one image to the next through the code space.
``python -m timm_nfaug.preview`` is the same.
"""

import argparse
import itertools
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from .flows.cosine import cosine_flow
from .flows.model import ConditionalFlow
from .grid import CELL, FORMATS, PHOTO_CELL, check_picture_name, write_picture
from .hub import COSINE, LINEAR
from .integration.classes import evenly
from .integration.folder import fit_to, linear_to_fit, training_set
from .moves import list_moves
from .pictures import (
    LARGEST,
    preview_augmentation,
    preview_interpolation,
    preview_samples,
    shrink,
    usual_strengths,
)  # fmt: skip
from .reading import read_image
from .space import AUTOENCODER_HELP, SPACE_HELP, SPACES, check_space, chosen_autoencoder

EXTENSIONS = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff"}


def find_images(
    root: Path, count: int, seed: int, class_names: list[str]
) -> list[tuple[Path, int | None]]:
    """Finds image files below a folder, spread over its subfolders, with the labels these spell.

    >>> find_images(Path("no folder"), 8, 0, [])
    Traceback (most recent call last):
    FileNotFoundError: no directory no folder
    """
    if not root.is_dir():
        raise FileNotFoundError(f"no directory {root}")
    files = sorted(p for p in root.rglob("*") if p.suffix.lower() in EXTENSIONS)
    if not files:
        raise ValueError(f"{root} holds no images ({', '.join(sorted(EXTENSIONS))})")
    by_folder: dict[Path, list[Path]] = {}
    for i in torch.randperm(len(files), generator=torch.Generator().manual_seed(seed)).tolist():
        by_folder.setdefault(files[i].parent, []).append(files[i])
    folders = evenly([by_folder[k] for k in sorted(by_folder)], count)
    turns = itertools.zip_longest(*folders)  # one of each folder, a second one of each, ...
    picked = [p for turn in turns for p in turn if p is not None][:count]
    labels = {name: k for k, name in enumerate(class_names)}
    return [(p, labels.get(p.parent.name)) for p in picked]


def _draw(args: argparse.Namespace) -> Image.Image:
    flow = _flow(args)
    latent: dict[str, Any] = {"autoencoder": args.autoencoder}
    if args.flow != LINEAR:
        check_space(args.space, flow.config.latent)
    if args.samples:
        how = args.temperatures, args.mean_scale, args.seed, args.cell
        return preview_samples(flow, *how, **latent)
    found = find_images(args.images, args.count, args.seed, flow.config.class_names)
    channels = 3 if flow.config.latent else flow.config.input_size[0]
    images = [(_shown(p, channels), label) for p, label in found]
    if args.interpolate:
        caption = (
            "A row goes from one image, at 0, to another, at 1, through the codes of the flow "
            f"{flow.config.architecture}, at its own size."
        )
        cell = args.cell or (PHOTO_CELL if flow.config.latent else CELL)
        return preview_interpolation(flow, images, cell=cell, caption=caption, **latent)
    saved = flow.config.augment  # settings that hold where flags do not say
    strengths = args.strengths or usual_strengths(saved.get("strength", 0.5))
    settings: dict[str, Any] = {k: saved[k] for k in ("modes", "kind", "labels") if k in saved}
    given = {"modes": args.modes, "kind": args.kind, "seed": args.seed, "cell": args.cell}
    given |= latent | {"size": args.size}
    settings |= {k: v for k, v in given.items() if v is not None}
    folders = [_folder(p, args.images) for p, _ in found]
    return preview_augmentation(flow, images, strengths, folders=folders, **settings)


def _flow(args: argparse.Namespace) -> ConditionalFlow:
    """The flow that --flow names."""
    if args.flow == LINEAR:
        return _fitted(args)
    if args.flow == COSINE:
        return cosine_flow(modes=32 if args.modes is None else args.modes)
    return ConditionalFlow.from_pretrained(args.flow)


def _folder(path: Path, root: Path) -> str:
    return "" if path.parent == root else path.parent.name


def _fitted(args: argparse.Namespace) -> ConditionalFlow:
    """The eigen-images of a folder, as a training on these images would fit them."""
    find_images(args.images, 1, 0, [])  # refuses a folder without images
    modes, dataset = 32 if args.modes is None else args.modes, training_set(args.images)
    # loaded once
    args.autoencoder = chosen_autoencoder(args.space, args.autoencoder, args.size)
    augment = linear_to_fit(dataset, {"modes": modes}, args.size, args.autoencoder)
    return fit_to(augment, dataset).flow


def _shown(path: Path, channels: int) -> Image.Image:
    return shrink(read_image(path, channels))


def main(argv: list[str] | None = None) -> None:
    """Draws the picture that command-line arguments ask for."""
    what = "Draws what NFA does to your images; the picture says what its cells are."
    parser = argparse.ArgumentParser("timm-nfaug preview", description=what)
    add, usual = parser.add_argument, "(default: %(default)s)"
    flows = "cosine; linear: the modes of --images; or a bundled name, a directory, a Hub id"
    other = f"{LINEAR} for latents, --samples and --interpolate"
    add("--flow", help=f"{flows} (default: {COSINE}; {other})")
    add("--images", type=Path, help="folder of images; a class folder's name gives the label")
    add("--out", type=Path, default=Path("preview.png"), help=f"{', '.join(FORMATS)} {usual}")
    add("--count", type=int, default=8, help=f"images {usual}")
    add("--cell", type=int, help=f"pixels of a cell (default: {CELL}, of photographs {PHOTO_CELL})")
    own = "default: as saved with --flow, else"
    add("--strengths", type=float, nargs="+", help=f"({own} 0.25 0.5 1)")
    add("--modes", type=int, help=f"modes moved along ({own} 32, or all that the flow stores)")
    add("--kind", choices=list_moves(), help=f"of move ({own} pca)")
    add("--space", choices=SPACES, help=SPACE_HELP)
    add("--autoencoder", metavar="NAME", help=AUTOENCODER_HELP)
    add("--size", type=int, help=f"side at which latents are made ({own} of the images)")
    add("--samples", action="store_true", help="draw samples of each class over temperatures")
    add("--temperatures", type=float, nargs="+", default=[1.0, 0.7, 0.5, 0.3])
    add("--mean-scale", type=float, default=1.0, help="factor of the class means in --samples")
    add("--interpolate", action="store_true", help="draw the way from each image to the next")
    add("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    if args.flow is None:
        latent = args.space == "latent" or args.autoencoder or args.size
        args.flow = LINEAR if latent or args.samples or args.interpolate else COSINE
    if args.samples and args.interpolate:
        parser.error("--samples and --interpolate are two pictures: choose one")
    check_picture_name(parser, args.out)
    if args.cell is not None and not 16 <= args.cell <= LARGEST:
        parser.error(f"--cell takes 16 to {LARGEST} pixels, got {args.cell}")
    if args.count < 1:
        parser.error(f"--count takes at least 1 image, got {args.count}")
    if args.images is None and (args.flow == LINEAR or not args.samples):
        parser.error(
            "--images is required: a folder of images (only --samples of a pretrained --flow NAME "
            "goes without)"
        )
    try:
        sheet = _draw(args)
        write_picture(sheet, args.out)
    except (ValueError, OSError, ImportError, Warning) as e:  # Warning: python -W error
        parser.exit(2, f"error: {e}\n")
    print(f"{args.out}: {sheet.width} x {sheet.height}")


if __name__ == "__main__":
    main()
