"""Pictures of what a flow does: ``python -m timm_nfaug.preview --flow NAME --images DIR --out preview.png``.

Rows of original and augmented images over strengths; with ``--samples`` images drawn from each class over
temperatures; with ``--interpolate`` the way from one image to the next through the code space.
"""

from __future__ import annotations

import argparse
import itertools
import math
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont, UnidentifiedImageError
from timm.data import create_dataset
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from . import lift, pixels
from ._utils.files import write_atomically
from .augment import DEFAULT_FLOW, NFAugment
from .flows.model import ConditionalFlow
from .flows.registry import create_flow
from .integration.fit import fit_to_dataset
from .moves import list_moves

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}  # of the picture
EXTENSIONS = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff"}


def draw_grid(
    rows: list[list[Image.Image]], columns: list[str], names: list[str], cell: int = 96
) -> Image.Image:
    """A captioned grid: one name a row on the left, one title a column on top."""
    font = ImageFont.load_default(size=14)
    left = 12 + max((math.ceil(font.getlength(n)) for n in names), default=0)
    top, gap = 26, 4
    width, height = left + len(columns) * (cell + gap), top + len(rows) * (cell + gap)
    sheet = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(sheet)
    for j, title in enumerate(columns):
        pen.text(
            (left + j * (cell + gap) + cell / 2, top / 2),
            title,
            fill="black",
            font=font,
            anchor="mm",
        )
    for i, (row, name) in enumerate(zip(rows, names, strict=True)):
        y = top + i * (cell + gap)
        pen.text((left - 6, y + cell / 2), name, fill="black", font=font, anchor="rm")
        for j, image in enumerate(row):
            scale = cell / max(image.size)
            size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
            resample = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
            sheet.paste(image.convert("RGB").resize(size, resample), (left + j * (cell + gap), y))
    return sheet


def find_images(
    root: Path, count: int, seed: int, class_names: list[str]
) -> list[tuple[Path, int | None]]:
    """`count` image files below `root`, spread over its folders, with the label their folder's name spells, if any."""
    if not root.is_dir():
        raise FileNotFoundError(f"no directory {root}")
    files = sorted(p for p in root.rglob("*") if p.suffix.lower() in EXTENSIONS)
    if not files:
        raise ValueError(f"{root} holds no images ({', '.join(sorted(EXTENSIONS))})")
    order = torch.randperm(len(files), generator=torch.Generator().manual_seed(seed)).tolist()
    by_folder: dict[Path, list[Path]] = {}
    for i in order:
        by_folder.setdefault(files[i].parent, []).append(files[i])
    folders = [by_folder[k] for k in sorted(by_folder)]
    if len(folders) > count:
        folders = [folders[i * len(folders) // count] for i in range(count)]
    picked: list[Path] = []
    for round_ in range(max(len(f) for f in folders)):
        picked += [f[round_] for f in folders if round_ < len(f)]
    labels = {name: k for k, name in enumerate(class_names)}
    return [(p, labels.get(p.parent.name)) for p in picked[:count]]


def load_image(path: Path, channels: int) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert("L" if channels == 1 else "RGB")
    except (OSError, UnidentifiedImageError) as e:
        raise ValueError(f"cannot read {path}: {e}") from e


def to_pil(x: Tensor) -> Image.Image:
    """One image (C, H, W) in [-1, 1]."""
    return TF.to_pil_image(pixels.model_to_levels(x).cpu())


def class_name(flow: ConditionalFlow, label: int) -> str:
    names = flow.config.class_names
    return names[label] if names else str(label)


def preview_augmentation(
    flow: ConditionalFlow,
    images: list[tuple[Image.Image, int | None]],
    strengths: list[float],
    per_strength: int = 2,
    modes: int | None = None,
    kind: str = "pca",
    seed: int = 0,
) -> Image.Image:
    """Rows of an original and `per_strength` augmented versions at each strength.

    A name in brackets is the flow's own guess, where the image came without a label.
    """
    modes = modes or min(32, flow.prior.num_modes)
    rows, names = [], []
    for i, (image, label) in enumerate(images):
        row = [image]
        for strength in strengths:
            for j in range(per_strength):
                augment = NFAugment(flow, strength=strength, modes=modes, p=1.0, kind=kind)
                g = torch.Generator().manual_seed(
                    seed + 1000 * i + j
                )  # the same direction at every strength
                row.append(
                    augment(image, generator=g)
                    if label is None
                    else augment(image, label, generator=g)[0]
                )
        rows.append(row)
        names.append(
            class_name(flow, label)
            if label is not None
            else f"({class_name(flow, guess(flow, image))})"
        )
    titles = ["original", *(f"{s:g}" for s in strengths for _ in range(per_strength))]
    return draw_grid(rows, titles, names)


@torch.no_grad()
def guess(flow: ConditionalFlow, image: Image.Image) -> int:
    x = lift.down(
        pixels.levels_to_model(TF.pil_to_tensor(image)).unsqueeze(0), flow.config.input_size[1:]
    )
    return int(flow.class_logits(x).argmax(1))


@torch.no_grad()
def preview_samples(
    flow: ConditionalFlow,
    temperatures: list[float],
    columns: int = 3,
    classes: int = 10,
    mean_scale: float = 1.0,
    seed: int = 0,
) -> Image.Image:
    """Rows of `columns` samples of one class at each temperature; the noise is the same at every temperature."""
    labels = list(range(min(classes, flow.num_classes)))
    y = torch.tensor(labels).repeat_interleave(columns)
    blocks = [
        flow.sample(y, t, mean_scale, torch.Generator().manual_seed(seed)).unflatten(
            0, (len(labels), columns)
        )
        for t in temperatures
    ]
    rows = [[to_pil(x) for block in blocks for x in block[i]] for i in range(len(labels))]
    titles = [f"T {t:g}" for t in temperatures for _ in range(columns)]
    return draw_grid(rows, titles, [class_name(flow, k) for k in labels])


@torch.no_grad()
def preview_interpolation(
    flow: ConditionalFlow, images: list[tuple[Image.Image, int | None]], steps: int = 8
) -> Image.Image:
    """Rows from each image to the next, at the flow's size."""
    size = flow.config.input_size[1:]
    x = torch.cat(
        [
            lift.down(pixels.levels_to_model(TF.pil_to_tensor(i)).unsqueeze(0), size)
            for i, _ in images
        ]
    )
    labels = [guess(flow, i) if k is None else k for i, k in images]
    y = torch.tensor(labels)
    frames = flow.interpolate(x[:-1], x[1:], steps, y[:-1], y[1:])
    names = [
        f"{class_name(flow, a)} - {class_name(flow, b)}" for a, b in itertools.pairwise(labels)
    ]
    return draw_grid(
        [[to_pil(f) for f in row] for row in frames],
        [f"{i / (steps - 1):.2f}" for i in range(steps)],
        names,
    )


def eigen_images(root: Path, modes: int) -> ConditionalFlow:
    """The linear flow of an ImageFolder tree, or of its ``train`` folder, as a training with ``--aug nfa`` takes it."""
    if not root.is_dir():
        raise FileNotFoundError(f"no directory {root}")
    augment = NFAugment.to_fit(create_flow("linear"), modes=modes)
    try:
        dataset = create_dataset("", root=str(root), split="train")
    except RuntimeError as e:  # of timm: no images
        raise ValueError(str(e)) from None
    fit_to_dataset(augment, dataset, {"num_workers": 0})
    return augment.flow


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m timm_nfaug.preview", description=__doc__.split("\n")[0]
    )
    parser.add_argument(
        "--flow", default=DEFAULT_FLOW,
        help="a bundled name, a directory, a Hub id, or linear: the eigen-images of the class folders in --images "
        "(default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--images", type=Path, help="folder of images; the name of a class folder gives the label"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("preview.png"),
        help=f"the picture: {', '.join(FORMATS)} (default: %(default)s)",
    )
    parser.add_argument("--count", type=int, default=8, help="images (default: %(default)s)")
    parser.add_argument("--strengths", type=float, nargs="+", default=[0.25, 0.5, 1.0])
    parser.add_argument(
        "--modes", type=int, help="modes moved along (default: 32, or all that the flow stores)"
    )
    parser.add_argument("--kind", choices=list_moves(), default="pca")
    parser.add_argument(
        "--samples",
        action="store_true",
        help="draw samples of each class over temperatures instead",
    )
    parser.add_argument("--temperatures", type=float, nargs="+", default=[1.0, 0.7, 0.5, 0.3])
    parser.add_argument(
        "--mean-scale", type=float, default=1.0, help="factor of the class means in --samples"
    )
    parser.add_argument(
        "--interpolate",
        action="store_true",
        help="draw the way from each image to the next instead",
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    if args.samples and args.interpolate:
        parser.error("--samples and --interpolate are two pictures: choose one")
    if args.out.suffix.lower() not in FORMATS:
        parser.error(f"--out takes a name that ends in {', '.join(FORMATS)}, got {args.out}")
    if args.count < 1:
        parser.error(f"--count takes at least 1 image, got {args.count}")
    linear = args.flow == "linear"
    if args.images is None and (linear or not args.samples):
        parser.error("--images is required (only --samples of a pretrained flow goes without)")
    try:
        flow = (
            eigen_images(args.images, args.modes or 32)
            if linear
            else ConditionalFlow.from_pretrained(args.flow)
        )
        if args.samples:
            sheet = preview_samples(
                flow, args.temperatures, mean_scale=args.mean_scale, seed=args.seed
            )
        else:
            found = find_images(args.images, args.count, args.seed, flow.config.class_names)
            images = [(load_image(p, flow.config.input_size[0]), label) for p, label in found]
            if args.interpolate:
                if len(images) < 2:
                    raise ValueError(
                        f"--interpolate needs at least 2 images, {args.images} gave {len(images)}"
                    )
                sheet = preview_interpolation(flow, images)
            else:
                sheet = preview_augmentation(
                    flow, images, args.strengths, modes=args.modes, kind=args.kind, seed=args.seed
                )
    except (ValueError, FileNotFoundError) as e:
        parser.exit(2, f"error: {e}\n")
    write_atomically(args.out, lambda p: sheet.save(p, format=FORMATS[args.out.suffix.lower()]))
    print(f"{args.out}: {sheet.width} x {sheet.height}")


if __name__ == "__main__":
    main()
