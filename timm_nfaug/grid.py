"""A grid of images with titles, and the file that it goes to."""

import argparse
import itertools
import math
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont, ImageOps

from ._utils.files import write_atomically

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}  # of the picture
GAP, TOP = 4, 26  # pixels between cells, and above them
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
