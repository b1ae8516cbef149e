"""Pictures of what a flow does: ``python -m timm_nfaug.preview --images DIR --out preview.png``.

Rows of original and augmented images over strengths; with ``--samples`` images of each class drawn
at temperatures; with ``--interpolate`` the way from one image to the next through the code space.
"""

import argparse
import itertools
import math
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from . import lift, pixels
from ._utils.files import write_atomically
from .augment import DEFAULT_FLOW, NFAugment
from .flows.model import ConditionalFlow
from .flows.registry import create_flow
from .integration.fit import _evenly
from .integration.folder import fit_to, training_set
from .moves import list_moves, usual_modes
from .reading import read_image

Labelled = list[tuple[Image.Image, int | None]]  # images, and their labels where they are known
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}  # of the picture
EXTENSIONS = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff"}
GAP, TOP = 4, 26  # pixels between cells, and above them
LARGEST = 1024  # side of an image that is augmented; a cell of the picture shows 96 pixels of it


def draw_grid(
    rows: list[list[Image.Image]], columns: list[str], names: list[str], cell: int = 96
) -> Image.Image:
    """Draws a captioned grid: one name per row on the left, one title per column on top.

    >>> draw_grid([[Image.new("L", (8, 8))] * 3], ["a", "b", "c"], [""], cell=20).size
    (84, 50)
    """
    font = ImageFont.load_default(size=14)
    left = 12 + max((math.ceil(font.getlength(n)) for n in names), default=0)
    side = cell + GAP
    sheet = Image.new("RGB", (left + len(columns) * side, TOP + len(rows) * side), "white")
    pen = ImageDraw.Draw(sheet)
    for j, title in enumerate(columns):
        pen.text((left + j * side + cell / 2, TOP / 2), title, "black", font, anchor="mm")
    for i, (row, name) in enumerate(zip(rows, names, strict=True)):
        y = TOP + i * side
        pen.text((left - 6, y + cell / 2), name, "black", font, anchor="rm")
        for j, image in enumerate(row):
            small = max(image.size) < cell
            resample = Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS
            image = ImageOps.contain(image.convert("RGB"), (cell, cell), resample)
            sheet.paste(image, (left + j * side, y))
    return sheet


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
    folders = _evenly([by_folder[k] for k in sorted(by_folder)], count)
    turns = itertools.zip_longest(*folders)  # one of each folder, a second one of each, ...
    picked = [p for turn in turns for p in turn if p is not None][:count]
    labels = {name: k for k, name in enumerate(class_names)}
    return [(p, labels.get(p.parent.name)) for p in picked]


def usual_strengths(strength: float = 0.5) -> list[float]:
    """The strengths of the columns of a picture: half of what it is about, itself, and twice.

    >>> usual_strengths()
    [0.25, 0.5, 1.0]
    """
    return [strength / 2, strength, strength * 2]


def to_pil(x: Tensor) -> Image.Image:
    """Makes a PIL image of one image (C, H, W) in [-1, 1].

    >>> to_pil(torch.zeros(3, 8, 6)).size
    (6, 8)
    """
    return TF.to_pil_image(pixels.model_to_levels(x).cpu())


def class_name(flow: ConditionalFlow, label: int) -> str:
    """Returns the name that the flow knows for a label, or its number.

    >>> class_name(create_flow("linear"), 3)
    '3'
    """
    names = flow.config.class_names
    return names[label] if names else str(label)


def preview_augmentation(
    flow: ConditionalFlow, images: Labelled, strengths: list[float], per_strength: int = 2,
    modes: int | None = None, kind: str = "pca", seed: int = 0,
) -> Image.Image:  # fmt: skip
    """Draws rows of an original and `per_strength` augmented versions at each strength.

    A name in brackets is the flow's own guess, where the image came without a label.

    >>> flow = ConditionalFlow.from_pretrained("linear.cifar10_jpeg")
    >>> preview_augmentation(flow, [(Image.new("RGB", (32, 32)), 0)], [0.5, 1.0]).height
    126
    """
    modes = usual_modes(flow) if modes is None else modes
    augment = NFAugment(flow, modes=modes, p=1.0, kind=kind, labels="given")
    at = [augment.replace(strength=s) for s in strengths for _ in range(per_strength)]
    _, labels, names = _read(flow, images)
    rows = [[image] for image, _ in images]
    for i, (image, own) in enumerate(images):
        if own is None:
            names[i] = f"({names[i]})" if flow.num_classes > 1 else ""
        for j, augment in enumerate(at):  # the same directions at every strength
            g = torch.Generator().manual_seed(seed + 1000 * i + j % per_strength)
            rows[i].append(augment(image, int(labels[i]), generator=g)[0])
    return draw_grid(rows, ["original", *(f"{a.strength:g}" for a in at)], names)


@torch.no_grad()
def _read(flow: ConditionalFlow, images: Labelled) -> tuple[Tensor, Tensor, list[str]]:
    """Images (B, C, h, w) in [-1, 1] at the flow's size; labels, given or guessed; their names."""
    large = [pixels.levels_to_model(TF.pil_to_tensor(image)).unsqueeze(0) for image, _ in images]
    x = torch.cat([lift.down(image, flow.config.input_size[1:]) for image in large])
    guess = flow.class_logits(x).argmax(1).tolist()
    labels = [own if label is None else label for (_, label), own in zip(images, guess)]
    return x, torch.tensor(labels), [class_name(flow, k) for k in labels]


@torch.no_grad()
def _preview_samples(flow: ConditionalFlow, args: argparse.Namespace) -> Image.Image:
    """Draws rows of 3 samples of a class at each temperature, from the same noise at each."""
    labels = range(min(10, flow.num_classes))
    y = torch.arange(len(labels)).repeat_interleave(3)
    noise = lambda: torch.Generator().manual_seed(args.seed)
    drawn = [flow.sample(y, t, args.mean_scale, noise()) for t in args.temperatures]
    rows = [[to_pil(image) for x in drawn for image in x[y == k]] for k in labels]
    titles = [f"T {t:g}" for t in args.temperatures for _ in range(3)]
    return draw_grid(rows, titles, [class_name(flow, k) for k in labels])


@torch.no_grad()
def preview_interpolation(flow: ConditionalFlow, images: Labelled, steps: int = 8) -> Image.Image:
    """Draws rows from each image to the next, at the flow's size.

    >>> flow = ConditionalFlow.from_pretrained("linear.cifar10_jpeg")
    >>> preview_interpolation(flow, [(Image.new("RGB", (32, 32)), 0)] * 2).height
    126
    """
    if len(images) < 2:
        raise ValueError(f"--interpolate needs at least 2 images, got {len(images)}")
    x, y, names = _read(flow, images)
    frames = flow.interpolate(x[:-1], x[1:], steps, y[:-1], y[1:])
    pairs = [f"{a} - {b}" for a, b in itertools.pairwise(names)]
    titles = [f"{i / (steps - 1):.2f}" for i in range(steps)]
    return draw_grid([[to_pil(f) for f in row] for row in frames], titles, pairs)


def _draw(args: argparse.Namespace) -> Image.Image:
    linear = args.flow == "linear"
    flow = _fitted(args) if linear else ConditionalFlow.from_pretrained(args.flow)
    if args.samples:
        return _preview_samples(flow, args)
    found = find_images(args.images, args.count, args.seed, flow.config.class_names)
    images = [(_shown(p, flow.config.input_size[0]), label) for p, label in found]
    if args.interpolate:
        return preview_interpolation(flow, images)
    saved = flow.config.augment  # settings that hold where flags do not say
    strengths = args.strengths or usual_strengths(saved.get("strength", 0.5))
    modes = saved.get("modes") if args.modes is None else args.modes
    kind = args.kind or saved.get("kind", "pca")
    return preview_augmentation(flow, images, strengths, 2, modes, kind, args.seed)


def _fitted(args: argparse.Namespace) -> ConditionalFlow:
    """The eigen-images of a folder, as a training on these images would fit them."""
    find_images(args.images, 1, 0, [])  # refuses a folder without images
    modes = 32 if args.modes is None else args.modes
    augment = NFAugment.to_fit(create_flow("linear"), modes=modes, labels="given")
    return fit_to(augment, training_set(args.images)).flow


def _shown(path: Path, channels: int) -> Image.Image:
    image = read_image(path, channels)
    image.thumbnail((LARGEST, LARGEST))  # leaves a smaller one as it is
    return image


def main(argv: list[str] | None = None) -> None:
    """Draws the picture that command-line arguments ask for."""
    parser = argparse.ArgumentParser("python -m timm_nfaug.preview", description="Shows a flow.")
    add, usual = parser.add_argument, "(default: %(default)s)"
    flows = "a bundled name, a directory, a Hub id, or linear: the eigen-images of --images"
    add("--flow", default=DEFAULT_FLOW, help=f"{flows} {usual}")
    add("--images", type=Path, help="folder of images; a class folder's name gives the label")
    add("--out", type=Path, default=Path("preview.png"), help=f"{', '.join(FORMATS)} {usual}")
    add("--count", type=int, default=8, help=f"images {usual}")
    own = "default: as saved with --flow, else"
    add("--strengths", type=float, nargs="+", help=f"({own} 0.25 0.5 1)")
    add("--modes", type=int, help=f"modes moved along ({own} 32, or all that the flow stores)")
    add("--kind", choices=list_moves(), help=f"({own} pca)")
    add("--samples", action="store_true", help="draw samples of each class over temperatures")
    add("--temperatures", type=float, nargs="+", default=[1.0, 0.7, 0.5, 0.3])
    add("--mean-scale", type=float, default=1.0, help="factor of the class means in --samples")
    add("--interpolate", action="store_true", help="draw the way from each image to the next")
    add("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    if args.samples and args.interpolate:
        parser.error("--samples and --interpolate are two pictures: choose one")
    if args.out.suffix.lower() not in FORMATS:
        parser.error(f"--out takes a name that ends in {', '.join(FORMATS)}, got {args.out}")
    if args.count < 1:
        parser.error(f"--count takes at least 1 image, got {args.count}")
    if args.images is None and (args.flow == "linear" or not args.samples):
        parser.error("--images is required (only --samples of a pretrained flow goes without)")
    try:
        sheet, kind = _draw(args), FORMATS[args.out.suffix.lower()]
        write_atomically(args.out, lambda p: sheet.save(p, format=kind))
    except (ValueError, OSError, Warning) as e:  # Warning: python -W error
        parser.exit(2, f"error: {e}\n")
    print(f"{args.out}: {sheet.width} x {sheet.height}")


if __name__ == "__main__":
    main()
