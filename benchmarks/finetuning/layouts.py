"""The layouts in which GTSRB is passed around, read as lists of annotated images.

| layout | training set | test set |
| --- | --- | --- |
| official | Final_Training/Images/000NN/ with GT-000NN.csv | Final_Test/Images/, GT-final_test.csv |
| torchvision | Training/000NN/ with GT-000NN.csv | Final_Test/Images/, GT-final_test.csv |
| Kaggle | Train.csv, which names Train/NN/*.png | Test.csv, which names Test/*.png |

They may lie in DIR itself or in its GTSRB/, gtsrb/ or gtsrb/GTSRB/; GT-final_test.csv beside the
test images, above them or in one of these. The right and lower edge of a box are the first pixels
outside it: so the margin is as wide as on the left and above.
"""

import csv
import re
from pathlib import Path
from typing import NamedTuple

ROOTS = ("", "GTSRB", "gtsrb", "gtsrb/GTSRB")
TEST = ("Final_Test/Images/", "Final_Test/", "")  # where GT-final_test.csv may lie
CLASSES = 43
CORNERS = ("Roi.X1", "Roi.Y1", "Roi.X2", "Roi.Y2")
TRAINING_NAME = re.compile(r"(?:\d+_)?(\d+_\d+)")  # [CLASS_]TRACK_FRAME


class Sign(NamedTuple):
    """An annotated image."""

    path: Path
    label: int
    name: str  # TRACK_FRAME in the training set
    size: tuple[int, int]  # width and height, as annotated
    box: tuple[int, int, int, int]  # left, top, right, bottom


def signs(source: Path, split: str) -> list[Sign]:
    """Lists the images of "train" or "val" (the official test set) in whichever layout is there."""
    if not source.is_dir():
        raise FileNotFoundError(f"no directory {source}; name the one that GTSRB was unpacked into")
    found = (_training if split == "train" else _test)(source)
    if split == "train":
        found = [sign._replace(name=_training_name(sign)) for sign in found]
    if len({(s.label, s.name) for s in found}) < len(found):
        raise ValueError(f"the {split} annotations in {source} name an image twice")
    return found


def _training(source: Path) -> list[Sign]:
    if table := _first(source, ["Train.csv"]):
        return _table(table, table.parent)
    if folder := _first(source, ["Final_Training/Images", "Training"]):
        tables = sorted(folder.glob("*/GT-*.csv"))
        bare = {p for p in folder.iterdir() if p.is_dir()} - {p.parent for p in tables}
        if bare or not tables:
            where = min(bare) if bare else folder
            raise FileNotFoundError(f"no GT-*.csv in {where}: it has the boxes; unpack it, too")
        return [sign for table in tables for sign in _table(table, table.parent)]
    raise FileNotFoundError(
        f"no training set of GTSRB in {source}; expected Final_Training/Images/ or Training/ with "
        "folders 00000 to 00042, or Train.csv"
    )


def _test(source: Path) -> list[Sign]:
    if table := _first(source, ["Test.csv"]):
        return _table(table, table.parent)
    images = _first(source, ["Final_Test/Images"])
    table = _first(source, [f"{folder}GT-final_test.csv" for folder in TEST])
    if images is None or table is None:
        raise FileNotFoundError(
            f"no test set of GTSRB in {source}; expected Final_Test/Images/ and GT-final_test.csv "
            "(of GTSRB_Final_Test_GT.zip), or Test.csv"
        )
    return _table(table, images)


def _first(source: Path, names: list[str]) -> Path | None:
    paths = (source / root / name for root in ROOTS for name in names)
    return next((p for p in paths if p.exists()), None)


def _table(table: Path, folder: Path) -> list[Sign]:
    """Reads a table; ``;`` separates in the official ones, ``,`` in Kaggle's."""
    with open(table, newline="", encoding="utf-8") as f:
        delimiter = ";" if ";" in f.readline() else ","
        f.seek(0)
        rows = list(csv.DictReader(f, delimiter=delimiter))
    if not rows:
        raise ValueError(f"{table} is empty; unpack it again")
    return [_sign(row, folder, f"{table}, line {i}") for i, row in enumerate(rows, 2)]


def _sign(row: dict[str, str], folder: Path, where: str) -> Sign:
    key = "Path" if "Path" in row else "Filename"
    try:
        path, label = folder / row[key], int(row["ClassId"])
        size = (int(row["Width"]), int(row["Height"]))
        box = tuple(int(row[corner]) for corner in CORNERS)
    except (KeyError, TypeError, ValueError) as e:
        raise ValueError(
            f"{where}: expected {key}, Width, Height, {', '.join(CORNERS)} and ClassId, got {row}"
        ) from e
    left, top, right, bottom = box
    if not (0 <= label < CLASSES and 0 <= left < right <= size[0] and 0 <= top < bottom <= size[1]):
        raise ValueError(
            f"{where}: expected a class from 0 to {CLASSES - 1} and a box within {size}, got {row}"
        )
    return Sign(path, label, path.stem, size, (left, top, right, bottom))


def _training_name(sign: Sign) -> str:
    if match := TRAINING_NAME.fullmatch(sign.name):
        return match[1]
    raise ValueError(f"expected a name TRACK_FRAME or CLASS_TRACK_FRAME, got {sign.path.name}")
