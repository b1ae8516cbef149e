"""Fits the modes of an augmentation to images on disk, as a training on them would."""

import os
from pathlib import Path
from typing import Any

from timm.data import ImageDataset, create_dataset

from .._utils.notices import NFAError
from ..augment import NFAugment
from ..autoencoder import Autoencoder
from ..fit import latent_flow, latent_side
from ..flows.registry import create_flow
from ..hub import LINEAR
from ..reading import message_of, read_image
from .classes import class_to_idx
from .fit import _fit_to_dataset

TRAIN = ("train", "training")  # folders of training images; the one above has the data's own name


class ImageFiles(ImageDataset):
    """timm's dataset of a folder, whose images are read by `read_image`: none is skipped.

    Args:
        reader: timm's, of image files.
        channels: 1 reads grey, 3 colour.

    >>> import tempfile
    >>> from PIL import Image
    >>> (folder := Path(tempfile.mkdtemp(), "a")).mkdir()
    >>> Image.new("RGB", (8, 6)).save(folder / "0.png")
    >>> training_set(folder.parent, channels=1)[0][0].mode
    'L'
    """

    def __init__(self, reader: Any, channels: int = 3):
        super().__init__(str(reader.root), reader)
        self.channels = channels

    def __getitem__(self, index: int) -> Any:
        path, label = self.reader.samples[index]
        image = read_image(path, self.channels)
        return (image if self.transform is None else self.transform(image)), label


def training_set(folder: str | os.PathLike, name: str = "", channels: int = 3) -> Any:
    """The training images of timm's dataset `name`, or without one of a folder or tar file.

    >>> training_set("no folder")
    Traceback (most recent call last):
    FileNotFoundError: no directory no folder

    Raises:
        ValueError, OSError: there is no such dataset, or it holds no images.
    """
    if not name and not Path(folder).exists():
        raise FileNotFoundError(f"no directory {folder}")
    try:
        dataset = create_dataset(name, root=str(folder), split="train")
    except (RuntimeError, AssertionError, ImportError) as e:  # of timm, torchvision and datasets
        raise ValueError(str(e) or f"timm has no dataset {name!r} in {folder}") from None
    files = not name and Path(folder).is_dir()
    return ImageFiles(dataset.reader, channels) if files else dataset


def linear_to_fit(
    dataset: Any, settings: dict[str, Any], size: int | None = None,
    autoencoder: Autoencoder | None = None,
) -> NFAugment:  # fmt: skip
    """A linear augmentation for a dataset's images, of pixels or latents, without modes yet.

    Args:
        size: side of the modes of pixels, by default 32, or of the images whose latents are made, by
            default that of the first one, 64 to 112.

    >>> class Identity:
    ...     def encode(self, x): return x
    ...     decode = encode
    >>> from torchvision.datasets import FakeData
    >>> images = FakeData(4, (3, 100, 80))
    >>> linear_to_fit(images, {}, autoencoder=Autoencoder(Identity())).flow.config.input_size
    (3, 80, 80)
    """
    if autoencoder is None:
        side = 32 if size is None else size
        return NFAugment.to_fit(create_flow(LINEAR, input_size=(3, side, side)), **settings)
    if size is None:
        image, *_ = next(iter(dataset))
        size = latent_side(min(image.size), autoencoder.factor)
    return NFAugment.to_fit(latent_flow(autoencoder, size), autoencoder=autoencoder, **settings)


def fit_to(
    augment: NFAugment, dataset: Any, num_classes: int | None = None, workers: int = 0
) -> NFAugment:
    """Fits a copy of the augmentation to a dataset of `training_set`.

    >>> import timm_nfaug as nfa
    >>> from torchvision.datasets import FakeData
    >>> augment = NFAugment.to_fit(nfa.create_flow("linear"), modes=2, labels="none")
    >>> fit_to(augment, FakeData(4, (3, 32, 32))).flow.config.info["images"]
    4

    Raises:
        ValueError: an image cannot be read, or the number of classes is not known; says which.
    """
    try:
        return _fit_to_dataset(augment, dataset, num_classes, workers)
    except NFAError as e:  # whose remedies are those of a training
        raise ValueError(message_of(e.__cause__ or e).removeprefix("ValueError: ")) from e


def describe(folder: str | os.PathLike, name: str, dataset: Any) -> dict[str, Any]:
    """What a card says of a dataset: its own name, and the number of its classes where known.

    >>> describe("flowers/train", "", dataset=None)
    {'data': 'flowers'}
    """
    path = Path(os.path.abspath(folder))
    own = path.parent.name if path.name.lower() in TRAIN else path.stem
    names = class_to_idx(dataset) or getattr(dataset, "classes", None) or ()
    return {"data": name or own} | ({"classes": len(names)} if names else {})
