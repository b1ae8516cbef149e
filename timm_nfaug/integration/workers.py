"""NFA on the single images of a dataset, in the loader's workers."""

import zlib
from typing import Any

import torch
from PIL import Image
from timm.data import AugMixDataset
from torch.utils.data import IterableDataset
from torchvision.transforms import Compose

from .._utils.notices import NFAError, Notices
from .._utils.random import keyed_generator, process_rank
from ..augment import NFAugment
from ..data.datasets import _Wrapped
from ..data.transforms import as_stored, set_transform, without_transform
from .fit import _on_device

POLICIES = {"RandAugment", "AutoAugment", "AugMixAugment", "AugMix", "TrivialAugmentWide"}
EXAMPLE = "rand-m5-mstd0.5-inc1"
TO_TENSOR = {"ToNumpy", "ToTensor", "MaybeToTensor", "PILToTensor", "MaybePILToTensor"}
FLAG, INSTEAD = "--nfa-place", "take --nfa-place batch"


def _check_workers(dataset: Any, augment: NFAugment, flag: str) -> None:
    """Refuses what NFA cannot run on in the workers, for the reason of `flag`."""
    if isinstance(dataset, AugMixDataset):
        raise NFAError(f"{flag} does not work with --aug-splits; {INSTEAD}")
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        raise NFAError(f"{flag} needs a map-style dataset, got {type(dataset).__name__}; {INSTEAD}")
    if flag.startswith(FLAG) and (channels := augment.change.size[0]) not in (1, 3):
        raise NFAError(f"{flag} takes L or RGB, the flow images of {channels} channels; {INSTEAD}")


class _WorkerDataset(_Wrapped):
    """A dataset of (PIL image, label) whose images are augmented after crop, flip and RandAugment.

    In the place "either" the policy of `transform`, RandAugment or another, is for those that NFA leaves.

    Steps of `transform` before the conversion to a tensor go to a copy of the dataset, the others
    run after NFA, on the CPU. The random numbers of a sample follow from seed, rank, epoch, index
    and image, so that crops of one image in an epoch (``--aug-repeats``) are moved differently.
    """

    def __init__(self, dataset: Any, augment: NFAugment, seed: int = 0, place: str = "dataset"):
        self.flag, self.either = f"{FLAG} {place}", place == "either"
        self.share = augment.p  # of images that are moved
        self.policy: Any = None  # of the images that NFA leaves
        super().__init__(without_transform(dataset), seed)
        augment = augment.replace(p=1.0) if self.either else augment
        self.augment, self.rank = _on_device(augment, "cpu"), process_rank()
        self.notices: Notices = self.augment.notices.share()  # with the workers

    @property
    def transform(self) -> Any:  # runs after NFA
        return self._after

    @transform.setter
    def transform(self, transform: Any) -> None:
        self._after = transform
        if transform is None or transform is as_stored:
            return
        steps = list(getattr(transform, "transforms", ()))
        at = next((i for i, step in enumerate(steps) if type(step).__name__ in TO_TENSOR), None)
        if at is None:
            raise NFAError(f"no conversion to a tensor, {INSTEAD}; the transform is {transform}")
        before, self._after = steps[:at], Compose(steps[at:])
        if self.either:
            self.policy = next((s for s in before if type(s).__name__ in POLICIES), None)
            if self.policy is None:
                raise NFAError(f"{self.flag} chooses between NFA and --aa: give --aa {EXAMPLE}")
            before.remove(self.policy)
        set_transform(self.base, Compose(before))

    def _label(self, rest: list[Any]) -> Any:
        try:
            return super()._label(rest)
        except (TypeError, ValueError) as e:
            raise NFAError(str(e)) from e

    def _changed(self, image: Any, label: Any, index: int) -> Any:
        if not isinstance(image, Image.Image):
            kind = type(image).__name__
            raise NFAError(f"{self.flag} augments PIL images, got {kind}; {INSTEAD}")
        key = (self.seed, self.rank, int(self._epoch), index, zlib.crc32(image.tobytes()))
        if self._is_left(key):
            return self.policy(image)
        try:
            return self.augment(image, label, generator=keyed_generator(*key))[0]
        except (TypeError, ValueError) as e:
            raise NFAError(str(e)) from e

    def _is_left(self, key: tuple[int, ...]) -> bool:
        """Whether the image of this key goes under the policy instead."""
        if self.policy is None:
            return False
        return bool(torch.rand((), generator=keyed_generator(*key, 1)) >= self.share)

    def __getattr__(self, name: str) -> Any:  # reader, filename, class_to_idx, ...
        # no dataset while unpickling; and torch would fetch batches past NFA by __getitems__
        if name == "base" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.base, name)
