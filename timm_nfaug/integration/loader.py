"""NFALoader: NFA on a loader's batches with hard labels, then the mixup and erasing of timm."""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from timm.data import FastCollateMixup, Mixup
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.data.random_erasing import RandomErasing
from torch import Tensor

from .._utils.notices import FEW, INACTIVE, NFAError, Notices, warn
from .._utils.progress import say
from .._utils.random import keyed_generator, process_rank
from ..augment import NFAugment
from ..data.datasets import CachedNFADataset
from ..reading import message_of
from ..space import name_of
from .fit import _check_channels, _on_device
from .workers import _WorkerDataset

REMEDY = (
    "give each class more images or take the modes of all together by -lnone (no modes), take "
    "another flow (not finite); --nfa-strict makes it an error"
)


def _find_mixup(collate_fn: Any) -> FastCollateMixup | None:
    """The mixup that a collate function does, or None; raises NFAError if it cannot mix batches."""
    mixup = collate_fn if isinstance(collate_fn, FastCollateMixup) else None
    if mixup is not None and "half" in mixup.mode:
        raise NFAError("mixup mode 'half' needs timm's collate function; use batch, pair or elem")
    return mixup


class NFALoader:
    """Gives a loader's batches augmented, then mixed, then erased; has its other attributes.

    Args:
        loader: gives images normalised by mean and std (None: uint8, or floats in [0, 1]) and hard
            labels (B,), on any device.
        augment: None where the dataset does it, in the loader's workers.
        seed: key of the random numbers, with rank, batch and `epoch`, which counts the passes.
        splits: number of augmentation splits in a batch; the first stays clean.

    >>> import timm_nfaug as nfa
    >>> augment = nfa.NFAugment.to_fit(nfa.create_flow("linear"), modes=2, labels="none")
    >>> len(NFALoader([(torch.rand(4, 3, 32, 32), torch.zeros(4))], augment, None, None))
    1
    """

    def __init__(
        self, loader: Any, augment: NFAugment | None, mean: Any = IMAGENET_DEFAULT_MEAN,
        std: Any = IMAGENET_DEFAULT_STD, seed: int = 0, mixup: Mixup | None = None,
        erasing: RandomErasing | None = None, splits: int = 0,
    ):  # fmt: skip
        self.loader = loader
        self.augment = None if augment is None else augment.replace(mean=mean, std=std)
        if augment is not None and self.augment is not None:  # what was said is not said again
            self.augment.notices = copy.deepcopy(augment.notices)
        self.seed, self.splits, self.epoch = seed, splits, 0
        self.mixup, self.erasing = mixup, erasing

    def __iter__(self) -> Iterator[tuple]:
        epoch, self.epoch = self.epoch, self.epoch + 1
        dataset = getattr(self.loader, "dataset", None)
        if isinstance(dataset, (_WorkerDataset, CachedNFADataset)):
            dataset.set_epoch(epoch)
        notices = getattr(dataset if self.augment is None else self.augment, "notices", None)
        notices = notices if isinstance(notices, Notices) else Notices()
        before, seen = copy.deepcopy(notices), 0
        try:
            for i, batch in enumerate(self.loader):
                images, target, *rest = self._batch(batch, epoch, i)
                seen += len(images)
                yield (images, target, *rest)
        except NFAError as e:
            raise NFAError(message_of(e)) from e.__cause__  # without the traceback of a worker
        if notices.count(*INACTIVE) - before.count(*INACTIVE) > FEW * seen:
            warn(f"epoch {epoch}: {notices.summary(seen, before)}; {REMEDY}")

    def _batch(self, batch: Any, epoch: int, i: int) -> tuple:
        images, target, *rest = _checked(batch)
        if self.augment is not None:
            self.augment = _on_device(self.augment, images.device)
            images = self._augmented(self.augment, images, target, epoch, i)
        if self.mixup is not None:
            images, target = Mixup.__call__(self.mixup, images, torch.as_tensor(target))
        if self.erasing is not None:
            images = self.erasing(images)
        return (images, target, *rest)

    def _augmented(self, augment: NFAugment, images: Tensor, target: Any, *key: int) -> Tensor:
        if images.ndim == 4:
            _check_channels(augment, images.shape[1])
        clean = len(images) // self.splits if self.splits > 1 else 0
        g = keyed_generator(self.seed, process_rank(), *key)
        y = target[clean:] if clean else target
        try:
            new, _ = augment(images[clean:], y, generator=g)
        except (TypeError, ValueError) as e:
            raise NFAError(str(e)) from e
        return torch.cat([images[:clean], new]) if clean else new

    def __len__(self) -> int:
        return len(self.loader)

    @property
    def mixup_enabled(self) -> bool:
        return self.mixup is not None and self.mixup.mixup_enabled

    @mixup_enabled.setter
    def mixup_enabled(self, value: bool) -> None:
        if self.mixup is not None:
            self.mixup.mixup_enabled = value

    def __getattr__(self, name: str) -> Any:  # dataset, sampler, batch_sampler, ...
        if name == "loader":  # not set yet: while unpickling
            raise AttributeError(name)
        return getattr(self.loader, name)


def _say_on(augment: NFAugment, place: str) -> None:
    """Says that NFA is on, and how: in the first process, to stderr where nothing logs."""
    flow, kind = getattr(augment, "flow", None), type(augment.change).__name__
    size = " x ".join(map(str, augment.change.size))
    name = kind if flow is None else flow.config.title
    space = kind if flow is None else "linear" if flow.is_linear else "deep"
    if augment.size is not None:
        space = f"latent, autoencoder {name_of(augment.autoencoder)}, size {augment.size}"
    classes = augment.change.num_classes
    whose = "all images" if classes == 1 else f"{classes} classes"
    if flow is not None and "fixed_modes" in flow.config.info:
        whose, space = "no images", flow.config.title
    elif flow is not None and (data := flow.config.info.get("data")):  # not of this training set
        whose += f" of {' '.join(str(data).split()):.60}"
    say(
        f"NFA on: flow {name}, modes of {whose} at {size}, space {space}, "
        f"s {augment.strength:g}, k {augment.modes}, p {augment.p:g}, m {augment.kind}, "
        f"place {place}, labels {augment.labels}"
    )


def _checked(batch: Any) -> Any:
    """A batch (images, labels, ...); anything else would be taken apart image by image."""
    pair = isinstance(batch, (tuple, list)) and len(batch) > 1
    if pair and isinstance(batch[0], Tensor):
        return batch
    got = type(batch[0] if pair else batch).__name__
    raise NFAError(f"expected batches (images, labels, ...), got {got}; take a collate_fn for them")
