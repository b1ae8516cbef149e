"""WorkerDataset: NFA on the single images of a dataset, in the loader's workers."""

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
from ..data.transforms import set_transform, without_transform
from .fit import NFAError, on_device

# of timm and torchvision
TO_TENSOR = {"ToNumpy", "ToTensor", "MaybeToTensor", "PILToTensor", "MaybePILToTensor"}
FLAG, INSTEAD = "--nfa-place dataset", "take --nfa-place batch"


def check_workers(dataset: Any, augment: NFAugment, flag: str = FLAG) -> None:
    """Raises NFAError where the images of a dataset cannot be augmented one by one.

    >>> import timm_nfaug as nfa
    >>> check_workers([1, 2, 3], nfa.NFAugment.to_fit(nfa.create_flow("linear")))
    """
    if isinstance(dataset, AugMixDataset):
        raise NFAError(f"{flag} does not work with --aug-splits; {INSTEAD}")
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        kind = type(dataset).__name__
        raise NFAError(f"{flag} needs a map-style dataset, got {kind}; {INSTEAD}")
    if flag == FLAG and (channels := augment.change.size[0]) not in (1, 3):
        own = f"the flow takes images of {channels} channels"
        raise NFAError(f"{flag} augments PIL images of mode L or RGB, {own}; {INSTEAD}")


class WorkerDataset(Dataset):
    """A dataset of (PIL image, label) whose images are augmented after crop, flip and RandAugment.

    Steps of `transform` before the conversion to a tensor go to a copy of the dataset, the rest runs
    after NFA. The random numbers of a sample follow from seed, rank, epoch, index and the image
    itself, so that two crops of one image in an epoch (``--aug-repeats``) are moved differently.

    Args:
        dataset: map-style; is left as it is. timm's `create_loader` sets the `transform` of this one.
        augment: of 1 or 3 channels; works on the CPU. Its own `seed` plays no part.

    >>> import timm_nfaug as nfa
    >>> augment = nfa.NFAugment.to_fit(nfa.create_flow("linear"), modes=2, labels="none")
    >>> data = WorkerDataset([(Image.new("RGB", (40, 40)), 0)], augment)
    >>> data[0][0].size
    (40, 40)
    """

    def __init__(self, dataset: Any, augment: NFAugment, seed: int = 0, rank: int = 0):
        check_workers(dataset, augment)
        self.dataset, self.augment = without_transform(dataset), on_device(augment, "cpu")
        self.seed, self.rank = seed, rank
        self.after: Compose | None = None
        # shared memory: workers that live on through epochs see a new epoch without a restart
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    @property
    def transform(self) -> Any:
        return self.dataset.transform

    @transform.setter
    def transform(self, transform: Any) -> None:
        steps = list(getattr(transform, "transforms", ()))
        at = next((i for i, step in enumerate(steps) if type(step).__name__ in TO_TENSOR), None)
        if at is None:
            lack = "found no conversion to a tensor in the transform, before which NFA would run"
            raise NFAError(f"{lack}; {INSTEAD}. The transform: {transform}")
        set_transform(self.dataset, Compose(steps[:at]))
        self.after = Compose(steps[at:])

    def set_epoch(self, epoch: int) -> None:
        """Chooses the random numbers of the next pass."""
        self._epoch.fill_(epoch)
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        image, label, *rest = self.dataset[index]
        if not isinstance(image, Image.Image):
            kind = type(image).__name__
            raise NFAError(f"{FLAG} augments PIL images, the dataset gave {kind}; {INSTEAD}")
        key = zlib.crc32(image.tobytes())
        g = keyed_generator(self.seed, self.rank, int(self._epoch), index, key)
        image, _ = self.augment(image, label, generator=g)
        return (image if self.after is None else self.after(image), label, *rest)

    def __getattr__(self, name: str) -> Any:  # reader, filename, class_to_idx, ...
        # no dataset while unpickling; and torch would fetch batches past NFA by __getitems__
        if name == "dataset" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.dataset, name)
