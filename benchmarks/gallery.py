"""The pictures of docs/gallery.md that show images: what moves, lines and samples look like.

`augment`, `interpolate` and `temperatures` follow the figures of the supplementary of Enescu & Sahbi
(ACCV 2024). `benchmarks.figures` is their command.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from timm_nfaug import ConditionalFlow, NFAugment
from timm_nfaug.grid import draw_grid
from timm_nfaug.pictures import class_name, preview_interpolation, to_pil

TEMPERATURES = (1.0, 0.7, 0.5, 0.3, 0.1)
CLASSES = 10  # shown at most
CELL = 64  # pixels: CIFAR's images doubled
LARGE = 120  # of photographs: a sheet of 900 pixels
MOVES = 3  # of each image in each block

LabelledImage = tuple[Image.Image, int]


def moves(
    augment: NFAugment, images: list[Image.Image], strengths: Sequence[float], seed: int
) -> Image.Image:
    """Draws a row for each image: the original, then three moves at each strength, in the same directions."""
    space, at = augment.flow.config.title, {}
    for strength in strengths:
        default = " (default)" if strength == augment.strength else ""
        at[f"{space}, strength {strength:g}{default}"] = augment.replace(strength=strength)
    return in_spaces(at, images, seed)


def in_spaces(
    augments: dict[str, NFAugment],
    images: list[Image.Image],
    seed: int,
    cell: int = LARGE,
    caption: str = "",
    count: int = MOVES,
) -> Image.Image:
    """Draws a row for each image: the original, then `count` moves by each augmentation, by its title."""
    blocks, titles = [[[image] for image in images]], [["original"]]
    unlabelled = [(image, None) for image in images]
    for title, augment in augments.items():
        blank = [""] * (count // 2)
        titles.append([*blank, title, *blank])
        blocks.append(moved(augment.replace(p=1.0), unlabelled, seed, count))
    sheet = beside(blocks, titles, [""] * len(images), cell)
    return captioned(sheet, caption) if caption else sheet


def captioned(sheet: Image.Image, caption: str) -> Image.Image:
    """The sheet with a caption of its width below."""
    narrow = draw_grid([], [""], [], 0)  # a title without rows
    below = draw_grid([], [""], [], sheet.width - narrow.width, caption)
    return Image.fromarray(np.concatenate([sheet, np.asarray(below)[narrow.height :]]))


def augment(
    flow: ConditionalFlow,
    control: ConditionalFlow,
    images: list[LabelledImage],
    strength: float,
    labels: str,
    seed: int,
) -> Image.Image:
    """Draws a row for each image: the original, three augmented by `flow`, three by `control`."""
    own, other = flow.config.class_names, control.config.class_names
    if own != other:
        raise ValueError(f"--flow and --control know other classes: {own}, {other}")
    blocks, titles = [[[image] for image, _ in images]], [["original"]]
    for f in (flow, control):
        modes = min(32, f.prior.num_modes)
        blocks.append(moved(NFAugment(f, strength, modes, p=1.0, labels=labels), images, seed))
        titles.append(["", f"{f.config.architecture}, strength {strength:g}", ""])
    return beside(blocks, titles, [class_name(flow, label) for _, label in images], CELL)


def moved(
    augment: NFAugment,
    images: Sequence[tuple[Image.Image, int | None]],
    seed: int,
    count: int = MOVES,
) -> list[list[Image.Image]]:
    """Moves each image `count` times; the draws depend on the seed and the places alone."""
    rows = []
    for i, (image, label) in enumerate(images):
        generators = [torch.Generator().manual_seed(seed + 1000 * i + j) for j in range(count)]
        given = [image] if label is None else [image, label]
        out = [augment(*given, generator=g) for g in generators]
        rows.append(out if label is None else [pair[0] for pair in out])
    return rows


def beside(
    blocks: list[list[list[Image.Image]]], titles: list[list[str]], names: list[str], cell: int
) -> Image.Image:
    """Puts grids with the same rows side by side, a gap between them; the names stand before the first."""
    blank = [""] * len(names)
    grids = [
        draw_grid(b, t, blank if i else names, cell)
        for i, (b, t) in enumerate(zip(blocks, titles, strict=True))
    ]
    return Image.fromarray(np.concatenate([np.asarray(grid) for grid in grids], axis=1))


def interpolate(flow: ConditionalFlow, images: list[LabelledImage]) -> Image.Image:
    """Draws rows from image to image through two images of each of two classes: within a class, to the next, within."""
    picked = (0, flow.num_classes // 2)
    return preview_interpolation(flow, [pair for pair in images if pair[1] in picked])


@torch.no_grad()
def temperatures(flow: ConditionalFlow, mean_scale: float, seed: int) -> Image.Image:
    """Draws a row for each temperature, a column for each class; in a column the noise is the same."""
    if flow.config.code_rows:
        raise ValueError(
            "a flow with conditional encoding draws until its labels fit: no noise is the same; use class Gaussians"
        )
    y = torch.arange(min(CLASSES, flow.num_classes))
    rows = []
    for t in TEMPERATURES:
        x = check_finite(flow.sample(y, t, mean_scale, torch.Generator().manual_seed(seed)))
        rows.append([to_pil(image) for image in x])
    names = [class_name(flow, int(k)) for k in y]
    return draw_grid(rows, names, [f"{t:g}" for t in TEMPERATURES], CELL)


def check_finite(x: Tensor) -> Tensor:
    """Returns samples (B, ...); raises ValueError where the inverse left the range of floats."""
    broken = int((~x.flatten(1).isfinite().all(1)).sum())
    if broken:
        raise ValueError(f"{broken} of {len(x)} samples are not finite; lower --mean-scale")
    return x
