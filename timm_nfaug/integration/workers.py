"""NFA on the single images of a timm data set, in the loader's workers, with the batch's order of operations."""

from __future__ import annotations

import zlib
from typing import Any

import torch
from PIL import Image
from timm.data import AugMixDataset
from torch.utils.data import Dataset, IterableDataset
from torchvision.transforms import Compose

from .._utils.random import keyed_generator
from ..augment import NFAugment
from ..data.transforms import set_transform
from .fit import NFAError

TO_TENSOR = {
    "ToNumpy",
    "ToTensor",
    "MaybeToTensor",
    "PILToTensor",
    "MaybePILToTensor",
}  # of timm and torchvision


def check_map_style(dataset, flag: str) -> None:
    """Refuses a data set whose images cannot be augmented one by one, in the name of the flag that asks for it."""
    if isinstance(dataset, AugMixDataset):
        raise NFAError(f"{flag} does not work with --aug-splits; take --nfa-place batch")
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        raise NFAError(
            f"{flag} needs a map-style data set, got {type(dataset).__name__}; take --nfa-place batch"
        )


class WorkerDataset(Dataset):
    """A data set of (PIL image, label) pairs whose images are augmented after crop, flip and RandAugment.

    timm's `create_loader` sets `transform`. What of it comes before the conversion to a tensor stays with the data set, the
    rest runs after NFA. The random numbers of a sample follow from seed, rank, epoch, index and the image itself, so that
    two crops of one image in an epoch (``--aug-repeats``) are moved differently.

    Args:
        dataset: map-style.
        augment: works on the CPU, with a flow of 1 or 3 channels; its own `seed` plays no part.
    """

    def __init__(self, dataset: Dataset, augment: NFAugment, seed: int = 0, rank: int = 0):
        check_map_style(dataset, "--nfa-place dataset")
        if (channels := augment.flow.config.input_size[0]) not in (1, 3):
            raise NFAError(
                f"--nfa-place dataset augments PIL images of mode L or RGB, the flow takes images of {channels} channels; take "
                "--nfa-place batch"
            )
        self.dataset, self.augment, self.seed, self.rank = dataset, augment.to("cpu"), seed, rank
        self.after: Compose | None = None
        # shared memory: workers that live on through epochs see a new epoch without being started again
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    @property
    def transform(self):
        return self.dataset.transform

    @transform.setter
    def transform(self, transform) -> None:
        steps = list(getattr(transform, "transforms", ()))
        at = next((i for i, step in enumerate(steps) if type(step).__name__ in TO_TENSOR), None)
        if at is None:
            raise NFAError(
                "found no conversion to a tensor in the transform, before which NFA would run; take --nfa-place batch. "
                f"The transform: {transform}"
            )
        set_transform(self.dataset, Compose(steps[:at]))
        self.after = Compose(steps[at:])

    def set_epoch(self, epoch: int) -> None:
        self._epoch.fill_(epoch)
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        image, label, *rest = self.dataset[index]
        if not isinstance(image, Image.Image):
            kind = type(image).__name__
            raise NFAError(
                f"--nfa-place dataset augments PIL images, the data set gave {kind}; take --nfa-place batch"
            )
        g = keyed_generator(
            self.seed, self.rank, int(self._epoch), index, zlib.crc32(image.tobytes())
        )
        image, _ = self.augment(image, label, generator=g)
        return (image if self.after is None else self.after(image), label, *rest)

    def __getattr__(self, name: str):  # reader, filename, class_to_idx, ...
        # while unpickling there is no data set yet; and torch would fetch whole batches past NFA by __getitems__
        if name == "dataset" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.dataset, name)
