"""Pictures of what NFA does to your images: ``timm-nfaug preview --images DIR --out preview.png``.

Rows of original and augmented images over strengths; with ``--samples`` images of each class drawn
at temperatures; with ``--interpolate`` the way from one image to the next through the code space.
``python -m timm_nfaug.preview`` is the same.
"""

import argparse
import itertools
import math
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from . import lift, pixels
from ._utils.files import write_atomically
from .augment import NFAugment
from .flows.model import ConditionalFlow
from .flows.registry import create_flow
from .hub import LINEAR
from .integration.classes import evenly
from .integration.folder import fit_to, training_set
from .moves import list_moves, usual_modes
from .reading import read_image

Labelled = list[tuple[Image.Image, int | None]]  # images, and their labels where they are known
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}  # of the picture
EXTENSIONS = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff"}
GAP, TOP = 4, 26  # pixels between cells, and above them
LARGEST = 1024  # side of an image that is augmented; a cell shows it smaller
CELL, PHOTO_CELL, SMALL = 96, 160, 64  # cells of images up to SMALL pixels, and of larger ones


def draw_grid(
    rows: list[list[Image.Image]], columns: list[str], names: list[str], cell: int = CELL,
    caption: str = "",
) -> Image.Image:  # fmt: skip
    """Draws a grid: one name per row on the left, one title per column on top, a caption below.

    Neighbouring columns of one title share it. An image keeps its aspect.

    >>> draw_grid([[Image.new("L", (8, 8))] * 3], ["a", "b", "c"], [""], cell=20).size
    (84, 50)
    """
    font = ImageFont.load_default(size=14)
    left = 12 + max((math.ceil(font.getlength(n)) for n in names), default=0)
    side = cell + GAP
    width, height = left + len(columns) * side, TOP + len(rows) * side
    text = _wrapped(caption, font, width - 12)
    below = (text.count("\n") + 1) * 18 + 6 if text else 0
    sheet = Image.new("RGB", (width, height + below), "white")
    pen = ImageDraw.Draw(sheet)
    pen.text((6, height), text, "black", font)
    x = left
    for title, group in itertools.groupby(columns):
        span = len(list(group)) * side
        pen.text((x + (span - GAP) / 2, TOP / 2), title, "black", font, anchor="mm")
        x += span
    for i, (row, name) in enumerate(zip(rows, names, strict=True)):
        y = TOP + i * side
        pen.text((left - 6, y + cell / 2), name, "black", font, anchor="rm")
        for j, image in enumerate(row):
            small = max(image.size) < cell
            resample = Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS
            image = ImageOps.contain(image.convert("RGB"), (cell, cell), resample)
            inside = (cell - image.width) // 2, (cell - image.height) // 2
            sheet.paste(image, (left + j * side + inside[0], y + inside[1]))
    return sheet


def _wrapped(text: str, font: Any, width: int) -> str:
    """The text in lines of at most so many pixels."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return "\n".join(lines)


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


def usual_strengths(strength: float = 0.5) -> list[float]:
    """The strengths of the columns of a picture: half of what it is about, itself, and twice.

    >>> usual_strengths()
    [0.25, 0.5, 1.0]
    """
    return [strength / 2, strength, strength * 2]


def check_picture_name(parser: argparse.ArgumentParser, out: Path) -> None:
    """Ends the program where ``--out`` names no file that a picture can be written to.

    >>> check_picture_name(argparse.ArgumentParser(), Path("a.png"))
    """
    if out.suffix.lower() not in FORMATS:
        parser.error(f"--out takes a name that ends in {', '.join(FORMATS)}, got {out}")


def write_picture(picture: Image.Image, out: Path) -> None:
    """Writes a picture in the format that its name ends in, one of `FORMATS`.

    >>> import tempfile
    >>> write_picture(Image.new("L", (8, 8)), Path(tempfile.mkdtemp(), "a.webp"))
    """
    kind = FORMATS[out.suffix.lower()]
    write_atomically(out, lambda path: picture.save(path, format=kind))


def shrink(image: Image.Image) -> Image.Image:
    """Shrinks an image in place to sides of at most `LARGEST`; a smaller one stays as it is.

    >>> shrink(Image.new("L", (2 * LARGEST, 8))).size
    (1024, 4)
    """
    image.thumbnail((LARGEST, LARGEST))
    return image


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
    modes: int | None = None, kind: str = "pca", seed: int = 0, cell: int | None = None,
    folders: list[str] | None = None, **settings: Any,
) -> Image.Image:  # fmt: skip
    """Draws rows of an original and `per_strength` augmented versions at each strength.

    Args:
        cell: pixels of a cell; by default 96 for images of up to 64 pixels, else 160.
        folders: names of rows without a label, where the flow's guess is not what moves them.
        settings: others of `NFAugment`, as labels.

    >>> flow = ConditionalFlow.from_pretrained("conv_p4_tiny.digits")
    >>> preview_augmentation(flow, [(Image.new("L", (8, 8)), 0)], [0.5, 1.0]).width > 500
    True
    """
    modes = usual_modes(flow) if modes is None else modes
    augment = NFAugment(flow, modes=modes, p=1.0, kind=kind, **settings)
    at = [augment.replace(strength=s) for s in strengths for _ in range(per_strength)]
    _, labels, names = _read(flow, images)
    rows = [[image] for image, _ in images]
    guessing = flow.num_classes > 1 and augment.labels != "none"
    guessing = guessing and any(own is None for _, own in images)
    for i, (image, own) in enumerate(images):
        if own is None:
            names[i] = f"({names[i]})" if guessing else folders[i] if folders else ""
        for j, moved in enumerate(at):  # the same directions at every strength
            g = torch.Generator().manual_seed(seed + 1000 * i + j % per_strength)
            rows[i].append(moved(image, int(labels[i]), generator=g)[0])
    space = flow.config.architecture
    titles = ["original", *(f"{space}, s {a.strength:g}" for a in at)]
    caption = (
        f"A row is one image: as it is, then moved {per_strength} times at each strength s, along "
        f"{modes} modes of the flow {space}. s 0.5 is the default of --aug nfa. The moves "
        "are random; under each strength the same ones come in the same order."
    )
    if guessing:
        caption += " A name in brackets is the flow's guess of the class."
    return draw_grid(rows, titles, names, cell or _cell(images), caption)


def _cell(images: Labelled) -> int:
    return CELL if max(max(image.size) for image, _ in images) <= SMALL else PHOTO_CELL


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
    caption = (
        "A cell is an image drawn from the flow's Gaussian of the class in its row, at temperature "
        "T: 1 as learned, less is closer to the mean. Each T has the same noise."
    )
    names = [class_name(flow, k) for k in labels]
    return draw_grid(rows, titles, names, args.cell or CELL, caption)


@torch.no_grad()
def preview_interpolation(
    flow: ConditionalFlow, images: Labelled, steps: int = 8, cell: int = CELL, caption: str = ""
) -> Image.Image:
    """Draws rows from each image to the next, at the flow's size.

    >>> flow = ConditionalFlow.from_pretrained("conv_p4_tiny.digits")
    >>> preview_interpolation(flow, [(Image.new("L", (8, 8)), 0)] * 2).height
    126
    """
    if len(images) < 2:
        raise ValueError(f"--interpolate needs at least 2 images, got {len(images)}")
    x, y, names = _read(flow, images)
    frames = flow.interpolate(x[:-1], x[1:], steps, y[:-1], y[1:])
    pairs = [f"{a} - {b}" for a, b in itertools.pairwise(names)]
    titles = [f"{i / (steps - 1):.2f}" for i in range(steps)]
    return draw_grid([[to_pil(f) for f in row] for row in frames], titles, pairs, cell, caption)


def _draw(args: argparse.Namespace) -> Image.Image:
    flow = _fitted(args) if args.flow == LINEAR else ConditionalFlow.from_pretrained(args.flow)
    if args.samples:
        return _preview_samples(flow, args)
    found = find_images(args.images, args.count, args.seed, flow.config.class_names)
    images = [(_shown(p, flow.config.input_size[0]), label) for p, label in found]
    if args.interpolate:
        caption = (
            "A row goes from one image, at 0, to another, at 1, through the codes of the flow "
            f"{flow.config.architecture}, at its own size."
        )
        return preview_interpolation(flow, images, cell=args.cell or CELL, caption=caption)
    saved = flow.config.augment  # settings that hold where flags do not say
    strengths = args.strengths or usual_strengths(saved.get("strength", 0.5))
    settings: dict[str, Any] = {k: saved[k] for k in ("modes", "kind", "labels") if k in saved}
    given = {"modes": args.modes, "kind": args.kind, "seed": args.seed, "cell": args.cell}
    settings |= {k: v for k, v in given.items() if v is not None}
    folders = [_folder(p, args.images) for p, _ in found]
    return preview_augmentation(flow, images, strengths, folders=folders, **settings)


def _folder(path: Path, root: Path) -> str:
    return "" if path.parent == root else path.parent.name


def _fitted(args: argparse.Namespace) -> ConditionalFlow:
    """The eigen-images of a folder, as a training on these images would fit them."""
    find_images(args.images, 1, 0, [])  # refuses a folder without images
    modes = 32 if args.modes is None else args.modes
    augment = NFAugment.to_fit(create_flow(LINEAR), modes=modes)
    return fit_to(augment, training_set(args.images)).flow


def _shown(path: Path, channels: int) -> Image.Image:
    return shrink(read_image(path, channels))


def main(argv: list[str] | None = None) -> None:
    """Draws the picture that command-line arguments ask for."""
    what = "Draws what NFA does to your images; the picture says what its cells are."
    parser = argparse.ArgumentParser("timm-nfaug preview", description=what)
    add, usual = parser.add_argument, "(default: %(default)s)"
    flows = "linear: the modes of --images; or a bundled name, a directory, a Hub id"
    add("--flow", default=LINEAR, help=f"{flows} {usual}")
    add("--images", type=Path, help="folder of images; a class folder's name gives the label")
    add("--out", type=Path, default=Path("preview.png"), help=f"{', '.join(FORMATS)} {usual}")
    add("--count", type=int, default=8, help=f"images {usual}")
    add("--cell", type=int, help=f"pixels of a cell (default: {CELL}, of photographs {PHOTO_CELL})")
    own = "default: as saved with --flow, else"
    add("--strengths", type=float, nargs="+", help=f"({own} 0.25 0.5 1)")
    add("--modes", type=int, help=f"modes moved along ({own} 32, or all that the flow stores)")
    add("--kind", choices=list_moves(), help=f"of move ({own} pca)")
    add("--samples", action="store_true", help="draw samples of each class over temperatures")
    add("--temperatures", type=float, nargs="+", default=[1.0, 0.7, 0.5, 0.3])
    add("--mean-scale", type=float, default=1.0, help="factor of the class means in --samples")
    add("--interpolate", action="store_true", help="draw the way from each image to the next")
    add("--seed", type=int, default=0)
    args = parser.parse_args(argv)
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
    except (ValueError, OSError, Warning) as e:  # Warning: python -W error
        parser.exit(2, f"error: {e}\n")
    print(f"{args.out}: {sheet.width} x {sheet.height}")


if __name__ == "__main__":
    main()
