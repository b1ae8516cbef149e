"""Looks at an image dataset as timm's train.py reads it: its classes, a sample of its images, faults."""

import functools
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps
from timm.data.readers.img_extensions import get_img_extensions
from torch.utils.data import IterableDataset

from ..integration.classes import class_names, evenly, stored_labels
from ..integration.folder import TRAIN, training_set
from ..preview import EXTENSIONS
from ..reading import name_of

LOOKED_AT = 512  # images that are opened, spread evenly over the dataset
SIDE = 32  # of the small copies that modes are found in
SPLITS = {*TRAIN, "val", "valid", "validation", "eval", "evaluation", "test", "testing"}
ORIENTATION = 0x0112  # EXIF's tag


@dataclass
class _Look:
    """What one image is."""

    size: tuple[int, int]  # (W, H)
    mode: str  # Pillow's
    deep: bool  # more than 8 bits a channel, which Pillow clips
    turned: bool  # EXIF says that it is to be shown turned or mirrored
    small: Image.Image | None  # SIDE x SIDE in colour; None where it is deep


@dataclass
class Survey:
    """A dataset and what was seen in it.

    >>> Survey([], Path(), labels=[0, 0, 2], names=["a", "b", "c"]).counts
    {'a': 2, 'c': 1}
    """

    dataset: Any
    root: Path  # the folder of the class folders
    labels: list[int]
    names: list[str]  # of the classes
    looks: dict[int, _Look] = field(default_factory=dict)  # by index
    broken: dict[int, str] = field(default_factory=dict)  # index to what is wrong

    @functools.cached_property
    def counts(self) -> dict[str, int]:
        """How many images each class has, of those that have any."""
        counted = Counter(self.labels)
        return {name: counted[k] for k, name in enumerate(self.names) if counted[k]}

    @property
    def per_class(self) -> float:
        """How many images a class has on average."""
        return sum(self.counts.values()) / max(1, len(self.counts))

    @property
    def usable(self) -> list[int]:
        """The indices of images that were looked at and can be augmented."""
        return [i for i, look in self.looks.items() if look.small is not None]

    @property
    def looked_at(self) -> int:
        return len(self.looks) + len(self.broken)

    @property
    def in_folders(self) -> bool:
        """Whether its labels are the names of folders."""
        return hasattr(getattr(self.dataset, "reader", None), "root")

    def class_of(self, i: int) -> str:
        return self.names[self.labels[i]]


def survey(data: Path, name: str = "") -> Survey:
    """Counts the images of a dataset's training split, and opens up to `LOOKED_AT` of them.

    Args:
        data: a folder of class folders, with or without train/; the root of a dataset by name.
        name: of a dataset, as timm's ``--dataset`` takes it; a folder of images without.

    >>> survey(Path("no folder"))
    Traceback (most recent call last):
    FileNotFoundError: no directory no folder

    Raises:
        ValueError, OSError: there is no such folder or dataset, or it holds no images.
    """
    if not data.is_dir():
        raise FileNotFoundError(f"no directory {data}")
    dataset = training_set(data, name)
    labels = None if isinstance(dataset, IterableDataset) else stored_labels(dataset)
    if labels is None:
        raise ValueError(f"{name} is a stream, or does not know its labels: the doctor needs both")
    names = class_names(dataset) or [str(k) for k in range(max(labels) + 1)]
    root = getattr(getattr(dataset, "reader", dataset), "root", data)
    found = Survey(dataset, Path(root), labels, names)
    for i in evenly(list(range(len(labels))), LOOKED_AT):
        try:
            found.looks[i] = _look(dataset, i)
        except Exception as e:  # decoders of damaged files raise anything
            found.broken[i] = str(e) or type(e).__name__
    return found


def file_of(dataset: Any, i: int) -> str:
    """The file of an image where there is one, else its index.

    >>> file_of(["a", "b"], 1)
    'image 1'
    """
    name = name_of(dataset, i)
    return name.partition(" (")[2].removesuffix(")") or name


def opened(dataset: Any, i: int) -> Image.Image:
    """Opens an image as it is stored.

    >>> opened([(Image.new("L", (8, 6)), 0)], 0).mode
    'L'
    """
    path = file_of(dataset, i)
    return Image.open(path) if os.path.isfile(path) else dataset[i][0]


def _look(dataset: Any, i: int) -> _Look:
    with opened(dataset, i) as image:
        deep = image.mode.startswith(("I", "F"))
        turned = image.getexif().get(ORIENTATION, 1) not in (0, 1)
        size, mode = image.size, image.mode
        image.draft(None, (2 * SIDE, 2 * SIDE))  # a JPEG decodes small: 20 times faster
        small = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        return _Look(size, mode, deep, turned, None if deep else small)


def square(dataset: Any, i: int, side: int) -> Image.Image:
    """Cuts the middle of an image, in colour, at the size of a training.

    >>> square([(Image.new("L", (8, 6)), 0)], 0, side=4).size
    (4, 4)
    """
    with opened(dataset, i) as image:
        return ImageOps.fit(image.convert("RGB"), (side, side), Image.Resampling.BICUBIC)


def problems_of_folders(found: Survey) -> list[str]:
    """What is odd about the folders of a dataset, each with its remedy; nothing of one by name.

    >>> problems_of_folders(Survey([], Path(), labels=[], names=[]))
    []
    """
    if not found.in_folders:
        return []
    root, problems = found.root, []
    read, others, empty = get_img_extensions(as_set=True), Counter[str](), []
    for folder, inner, files in os.walk(root, followlinks=True):
        suffixes = Counter(os.path.splitext(f)[1].lower() for f in files)
        others.update({k: n for k, n in suffixes.items() if k in EXTENSIONS - read})
        if not inner and not suffixes.keys() & EXTENSIONS and folder != str(root):
            empty.append(folder)
    if empty:
        problems.append(
            f"{len(empty)} class folder{'s' * (len(empty) > 1)} without images, {few(empty)}: "
            "remove, or add images"
        )
    if others:
        kinds = ", ".join(f"{n} {suffix}" for suffix, n in others.most_common())
        problems.append(f"timm skips the files {kinds}: convert them to .png or .jpg")
    if inside := sorted(SPLITS & {name.lower() for name in found.counts}):
        problems.append(
            f"{few(inside)} is taken for a class: put training images into DATA/train/CLASS/, "
            "others into DATA/val/CLASS/"
        )
    if set(found.counts) == {""}:
        problems.append(
            f"no class folders: images lie in {root} itself; sort them into {root}/CLASS/"
        )
    return problems + _problems_of_val(found)


def _problems_of_val(found: Survey) -> list[str]:
    """Classes of train and val by folder name; timm numbers those of each split by themselves."""
    root = found.root
    nested = {n.lower() for n in os.listdir(root) if (root / n).is_dir()} & SPLITS
    if nested and not nested & {name.lower() for name in found.counts}:
        return [
            f"{few(sorted(nested))} lies among the class folders, so that its images are trained "
            f"on: move it out of {root}"
        ]
    val = next((root.parent / n for n in ("val", "validation") if (root.parent / n).is_dir()), None)
    if val is None or root.name not in TRAIN:
        return []
    own, other = ({p.name for p in folder.iterdir() if p.is_dir()} for folder in (root, val))
    if own == other:
        return []
    return [
        f"{val.name} and {root.name} have other class folders ({few(sorted(own ^ other))} in one "
        "alone), so that labels do not agree: make them the same"
    ]


def few(names: list[str]) -> str:
    """The first names of a list, and how many there are.

    >>> few(["a", "b", "c", "d"])
    'a, b, c, ... (4)'
    """
    return ", ".join(names[:3]) + (f", ... ({len(names)})" if len(names) > 3 else "")
