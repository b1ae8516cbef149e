"""Datasets as one uint8 tensor in memory: an ImageFolder tree, CIFAR, the scikit-learn digits."""

from __future__ import annotations

import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS

from timm_nfaug._utils.progress import progress
from timm_nfaug.reading import read_image

from .images import Images, random_shift

__all__ = ["Images", "load_data", "load_folder", "random_shift", "stratified_split"]

_logger = logging.getLogger(__name__)

SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing", "dev", "eval"}


def load_data(
    data: str,
    data_dir: str | Path | None = None,
    image_size: int | None = None,
    in_chans: int = 3,
    val_fraction: float = 0.0,
    skip_unreadable: bool = False,
    seed: int = 0,
) -> tuple[Images, Images | None]:
    """Loads the training images and, where there are any, the validation images.

    Args:
        data: folder, cifar10, cifar100 (downloaded into data_dir where missing) or digits.
        data_dir: root of a folder, with train/ and val/ inside, or class folders directly.
        image_size, in_chans, skip_unreadable: for a folder, see `load_folder`.
        val_fraction: share of the training images held out, stratified by class. It replaces the
            validation split of the data, so that nothing is tuned on that. The digits have no
            split of their own: 20% are held out unless this says otherwise.

    >>> train, val = load_data("digits")
    >>> tuple(train.levels.shape), len(val)
    ((1438, 1, 8, 8), 359)
    """
    val: Images | None
    if data == "digits":
        train, val = _digits(), None
        val_fraction = val_fraction or 0.2
        seed = 0  # the split belongs to the dataset: every training has the same
    elif data_dir is None:
        raise ValueError(f"data {data!r} needs --data-dir")
    elif data in ("cifar10", "cifar100"):
        train, val = _cifar(data, data_dir, True), _cifar(data, data_dir, False)
    else:
        if image_size is None:
            raise ValueError("data 'folder' needs image_size, the side of the images, e.g. 32")
        train, val = _folder_splits(Path(data_dir), image_size, in_chans, skip_unreadable)
    if val_fraction:
        rest, held = held_out(train.labels, val_fraction, seed)
        train, val = train.subset(rest), train.subset(held)
    return train, val


def held_out(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """`stratified_split` for `val_fraction`; raises ValueError where it holds out nothing.

    >>> [len(part) for part in held_out(torch.tensor([0] * 8 + [1] * 4), 0.25, seed=0)]
    [9, 3]
    """
    rest, held = stratified_split(labels, fraction, seed)
    if not len(held):
        raise ValueError(
            f"val_fraction {fraction:g} holds out no image, as every class has one alone; "
            f"set val_fraction=0"
        )
    return rest, held


def stratified_split(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Splits indices into the rest and a random `fraction` of every class, both sorted.

    At least one image of a class is taken, but never all: a class of one image keeps it.

    >>> rest, held = stratified_split(torch.tensor([0] * 8 + [1] * 4), 0.25, seed=0)
    >>> len(rest), len(held), int((held < 8).sum())
    (9, 3, 2)
    """
    g = torch.Generator().manual_seed(seed)
    taken = []
    for k in labels.unique():
        own = torch.nonzero(labels == k).flatten()
        n = min(max(1, round(fraction * len(own))), len(own) - 1)
        taken.append(own[torch.randperm(len(own), generator=g)[:n]])
    held = torch.cat(taken).sort().values
    rest = torch.ones(len(labels), dtype=torch.bool)
    rest[held] = False
    return torch.nonzero(rest).flatten(), held


def _folder_splits(
    root: Path, size: int, in_chans: int, skip: bool
) -> tuple[Images, Images | None]:
    """Reads train/ and val/ of a directory, or its class folders as training images."""
    train_dir, val_dir, name = find_splits(root)
    train = load_folder(train_dir, size, in_chans, skip)
    train.name = name
    if val_dir is None:
        return train, None
    val = load_folder(val_dir, size, in_chans, skip)
    if val.class_names != train.class_names:
        raise ValueError(f"{val_dir} and {train_dir} hold different classes")
    return train, val


def find_splits(root: Path) -> tuple[Path, Path | None, str]:
    """The folders of training and of validation images in a directory, and the name of the data.

    >>> find_splits(Path("nowhere"))
    Traceback (most recent call last):
    FileNotFoundError: no directory nowhere
    """
    if not root.is_dir():
        raise FileNotFoundError(f"no directory {root}")
    val_dir = next((root / n for n in ("val", "validation", "test") if (root / n).is_dir()), None)
    train_dir = root / "train" if (root / "train").is_dir() else root
    splits = sorted(d.name for d in root.iterdir() if d.is_dir() and d.name.lower() in SPLITS)
    if splits and train_dir == root:
        raise ValueError(
            f"{root} must hold train/ (and val/), or class folders directly; it holds "
            f"{', '.join(splits)}, which would be taken for classes: rename the folder of the "
            f"training images to train, or name it itself as --data-dir"
        )
    whole = root.resolve()
    own = whole.parent.name if whole.name.lower() in SPLITS else whole.name
    name = os.fsencode(own).decode("utf-8", "replace")  # for a card in UTF-8
    return train_dir, None if train_dir == root else val_dir, name


def load_folder(root: Path, size: int, in_chans: int = 3, skip_unreadable: bool = False) -> Images:
    """Reads class folders of images, in sorted order.

    Args:
        size: side in pixels; images of another size are resized (bicubic) and centre-cropped to it.
        in_chans: 3 for RGB, 1 for greyscale.
        skip_unreadable: leave out images that cannot be read, with a warning, instead of raising.
    """
    names, files = list_files(root)
    levels = np.empty((len(files), in_chans, size, size), dtype=np.uint8)
    errors = []
    bar = progress(len(files), f"train_flow, reading {root}", "images")
    with ThreadPoolExecutor() as pool, bar:
        for error in pool.map(lambda i: read_into(files[i][0], levels[i]), range(len(files))):
            errors.append(error)
            bar.update()
    bad = [e for e in errors if e]
    for error in bad:
        _logger.warning(error)
    if bad and not skip_unreadable:
        raise ValueError(
            f"{len(bad)} of {len(files)} images cannot be read, first: {bad[0]}; "
            f"repair or remove them, or skip them with skip_unreadable=true"
        )
    good = torch.tensor([e is None for e in errors])
    labels = torch.tensor([k for _, k in files])
    check_classes(root, names, labels[good])
    return Images(torch.from_numpy(levels)[good], labels[good], names)


def check_classes(root: Path, names: list[str], labels: Tensor) -> None:
    """Raises ValueError where a class has no label among those of the images that could be read.

    >>> check_classes(Path("DATA"), ["a", "b"], torch.tensor([1, 1]))
    Traceback (most recent call last):
    ValueError: no image of class folder DATA/a can be read (1 such folders)
    """
    lost = set(range(len(names))) - set(labels.tolist())
    if lost:
        raise ValueError(
            f"no image of class folder {root / names[min(lost)]} can be read "
            f"({len(lost)} such folders)"
        )


def list_files(root: Path) -> tuple[list[str], list[tuple[Path, int]]]:
    """Names of the class folders, and their image files with labels, sorted; each class needs one.

    Raises:
        ValueError: there are none, or a class has none.
    """
    names = sorted(d.name for d in root.iterdir() if d.is_dir())
    files = [
        (path, k)
        for k, name in enumerate(names)
        for path in sorted((root / name).rglob("*"))
        if path.suffix.lower() in IMG_EXTENSIONS
    ]
    if not files:
        raise ValueError(
            f"{root} holds no images; expected class folders with files ending in "
            f"{' '.join(IMG_EXTENSIONS)}"
        )
    empty = set(range(len(names))) - {k for _, k in files}
    if empty:
        raise ValueError(
            f"class folder {root / names[min(empty)]} holds no images ({len(empty)} such folders)"
        )
    return names, files


def read_into(path: Path, out: np.ndarray) -> str | None:
    """Decodes one image into `out` (C, size, size); returns what went wrong, or None."""
    try:
        image = read_image(path, out.shape[0])
    except ValueError as e:
        return str(e)
    if image.size != (out.shape[2], out.shape[1]):
        image = ImageOps.fit(image, (out.shape[2], out.shape[1]), Image.Resampling.BICUBIC)
    out[:] = np.asarray(image).reshape(out.shape[1], out.shape[2], -1).transpose(2, 0, 1)
    return None


def _cifar(name: str, root: str | Path, train: bool) -> Images:
    from torchvision.datasets import CIFAR10, CIFAR100

    dataset, title = {"cifar10": (CIFAR10, "CIFAR-10"), "cifar100": (CIFAR100, "CIFAR-100")}[name]
    try:
        data = dataset(root, train=train, download=True)
    except (OSError, RuntimeError) as e:  # the latter of files whose checksum is wrong
        hint = "remove what is damaged there, and see to it that it can be downloaded"
        raise OSError(f"cannot read {title} in {root}: {e}; {hint}") from e
    levels = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()
    return Images(levels, torch.tensor(data.targets), data.classes, title)


def _digits() -> Images:
    from sklearn.datasets import load_digits

    data = load_digits()
    levels = torch.from_numpy((data.images * (255 / 16)).round().astype(np.uint8)).unsqueeze(1)
    labels = torch.from_numpy(data.target.astype(np.int64))
    return Images(levels, labels, [str(k) for k in range(10)], "scikit-learn digits")
