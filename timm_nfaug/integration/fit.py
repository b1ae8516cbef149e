"""Fits the modes of an augmentation to a dataset, read without the training's transform."""

import copy
import functools
import inspect
import itertools
import logging
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from PIL import Image
from timm.data import AugMixDataset
from timm.data.loader import PrefetchLoader
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate
from torchvision.transforms.functional import pil_to_tensor

from .._utils.notices import NFAError
from .._utils.progress import say
from .._utils.random import process_rank
from ..augment import PARTS, NFAugment
from ..data.transforms import set_transform
from ..hub import COSINE, LINEAR
from ..reading import WorkerLoader, count_images, message_of, naming
from ..unchanged import say_fitted
from .classes import class_names, class_to_idx, evenly, spread, stored_labels

_logger = logging.getLogger(__name__)

# read to find the modes; all of ImageNet would take hours at every launch
FIT_IMAGES = 256  # per class, or 8 per mode where that is more
FIT_IMAGES_POOLED = 10_000  # in all, where the modes are of no class
LATENTS = 64  # per class, or 2 per mode: each costs an encode, and the classes share a basis
LATENTS_POOLED = 2_000  # in all, or 8 per mode
BATCH = 256
REMEDY = (
    "pass fit_dataset=, a dataset of (image, label) pairs without random augmentation, or take a "
    "pretrained flow, which needs no fit: --nfa-flow NAME"
)


def _check_channels(augment: NFAugment, given: int, source: str = "the loader gives") -> None:
    taken = augment.change.size[0]
    if given != taken and augment.size is not None:
        raise NFAError(
            f"an autoencoder takes images of {taken} channels, {source} {given}; convert them to "
            "RGB, or move their pixels, without an autoencoder"
        )
    if given != taken:
        raise NFAError(
            f"the flow takes images of {taken} channels, {source} {given}; convert the images, take "
            f"--nfa-flow {COSINE} or {LINEAR} with --in-chans {given}, or train a flow on such images"
        )


def _check_classes(dataset: Any, augment: NFAugment) -> None:
    own, flow = class_names(_unwrapped(dataset)), getattr(augment, "flow", None)
    names = [] if flow is None else flow.config.class_names
    if augment.labels == "given" and own and names and own != names:
        few, has = (", ".join(n[:4] + [f"... ({len(n)})"] * (len(n) > 4)) for n in (names, own))
        raise NFAError(
            f"the flow knows the classes {few}, the dataset has {has}; add --nfa-fit to take those "
            "of the dataset, train a flow for it, or let the flow choose with -lposterior"
        )


def _say_unread(fit_dataset: Any) -> None:
    if fit_dataset is not None:
        say("fit_dataset is not read, as nothing is fitted; --nfa-flow linear or --nfa-fit does")


def _on_device(augment: NFAugment, device: torch.device | str) -> NFAugment:
    """The augmentation, or a copy whose flow and autoencoder are copies on this device."""
    device = torch.device(device)
    parts = {name: getattr(augment, name) for name in PARTS if hasattr(augment, name)}
    away = {name: part for name, part in parts.items() if not _is_on(part, device)}
    if not away:
        return augment
    moved = augment.replace(**{k: copy.deepcopy(part).to(device) for k, part in away.items()})
    moved.notices = augment.notices
    return moved


def _is_on(part: torch.nn.Module, device: torch.device) -> bool:
    """Whether its tensors are on a device; a module without any works on all."""
    tensors = itertools.chain(part.parameters(), part.buffers())
    own = next((t.device for t in tensors), device)
    return device in (own, torch.device(own.type))


def _fit_to_dataset(
    augment: NFAugment, dataset: Any, num_classes: int | None = None, workers: int = 0,
    device: torch.device | str = "cpu", fit_dataset: Any = None, like: Any = None,
) -> NFAugment:  # fmt: skip
    """Fits a copy of the augmentation to a dataset that hands PIL images to its `transform`.

    Reads up to `FIT_IMAGES` images of each class, spread over the dataset; all where labels cannot
    be had without the images; of a stream as many in all, the first ones. A `fit_dataset` is read
    in place of the dataset, as it is; a loader of batches to its end. The workers that read are
    like those of the loader `like`.
    """
    start, plain, augment = time.monotonic(), fit_dataset is not None, _on_device(augment, device)
    base = _unwrapped(fit_dataset if plain else dataset)
    if plain and not _gives_images(base, like):
        base = DataLoader(base, None) if isinstance(base, IterableDataset) else base
        return _fit_to_batches(augment, _batches_of(base, whole=False), num_classes)
    classes = _count_classes(augment, base, num_classes)
    loader = _images(augment, base, classes, workers, plain, like)
    augment = _fit_to_batches(augment, loader, classes)
    if augment.labels != "none" and len(names := class_names(base)) == classes:
        augment.flow.config.class_names = names
    augment.flow.config.info["images"] = loader.read
    if process_rank() == 0:
        stream = isinstance(base, IterableDataset)
        which = f"the first {loader.read} images of a stream"
        which = which if stream else f"{loader.read} of {len(base)} images"
        seconds = time.monotonic() - start
        whose = "all images together" if augment.labels == "none" else f"{classes} classes"
        of = f"latents at {augment.size} px, of " if augment.size is not None else ""
        _logger.info("NFA: modes of %s%s from %s in %.1f s", of, whose, which, seconds)
    return augment


def _gives_images(data: Any, like: Any) -> bool:
    """Whether it gives single images, not batches; a worker looks where its kind does not say."""
    stream = isinstance(data, IterableDataset)
    if isinstance(data, Dataset) and not stream:
        return True
    if not (stream or (hasattr(data, "__getitem__") and hasattr(data, "__len__") and len(data))):
        return False
    how = {"batch_size": None, "collate_fn": None, "worker_init_fn": None, "num_workers": 1}
    first = next(iter(_Reader(WorkerLoader(data, like, **how))), None)
    image = first[0] if isinstance(first, (tuple, list)) and first else first
    return isinstance(image, Image.Image) or (isinstance(image, Tensor) and image.ndim == 3)


def _fit_to_batches(augment: NFAugment, loader: Any, num_classes: int | None) -> NFAugment:
    """Fits a copy of the augmentation to a loader's batches; all processes take those of rank 0."""
    try:
        flow = augment._fitted_flow(loader, num_classes, allow_empty=True)
    except NFAError:
        raise
    except (TypeError, ValueError) as e:
        raise NFAError(str(e)) from e
    if dist.is_available() and dist.is_initialized():  # of a stream each process reads its own part
        if flow.config.network.get("basis"):  # whose rows are as many as the images allow
            dist.broadcast_object_list(shared := [flow], 0)
            flow = shared[0]
        device = "cuda" if "nccl" in dist.get_backend() else "cpu"
        for tensor in (*flow.prior.state_dict().values(), flow.log_prior):
            dist.broadcast(shared := tensor.to(device), 0)
            tensor.copy_(shared)
    fitted = augment.replace(flow=flow)  # of the modes that all processes have now
    say_fitted(fitted.notices, fitted.change)
    return fitted


class _Reader:
    """The batches of a loader until `count` images have come; `read` says how many have."""

    def __init__(self, loader: Any, count: float = math.inf):
        self.loader, self.count, self.read = loader, count, 0
        most = min(count_images(loader) or count, count)
        self.expected = None if most == math.inf else int(most)
        self.dataset = getattr(loader, "dataset", None)  # which may know its classes

    def __iter__(self) -> Iterator[Any]:
        try:
            for batch in naming(self.loader):
                yield batch
                self.read += len(batch[0] if isinstance(batch, (tuple, list)) else batch)
                if self.read >= self.count:
                    return
        except NFAError:
            raise
        except Exception as e:  # of a dataset of the user's own, which may raise anything
            name = type(self.loader if self.dataset is None else self.dataset).__name__
            raise NFAError(f"{name} cannot be read to find modes: {message_of(e)}; {REMEDY}") from e


def _batches_of(
    loader: Any, count: float = math.inf, size: int | None = None, whole: bool = True,
    picked: list[int] | None = None,
) -> _Reader:  # fmt: skip
    """Reads a loader's batches in workers of its own kind; without `dataset` it is iterated.

    `whole`: the whole dataset in order, whatever a sampler gives this process, or the images
    `picked` of it; of torch's loaders.
    """
    inner = loader.loader if isinstance(loader, PrefetchLoader) else loader
    if not isinstance(inner, DataLoader):
        return _Reader(loader, count)
    data: Any = inner.dataset
    how: dict[str, Any] = {"num_workers": 1 if size else inner.num_workers}
    # None: the dataset gives batches
    how["batch_size"] = None if inner.batch_sampler is None else size or inner.batch_size or BATCH
    if _is_scheduled(data):  # whose indices name one of its transforms: its first
        how["sampler"] = [(i, 0) for i in range(len(data))]
    elif picked is not None and how["batch_size"] is not None:
        how["sampler"] = picked
    elif not whole and not isinstance(data, IterableDataset):
        how["sampler"] = sampler = copy.copy(inner.sampler)
        if hasattr(sampler, "generator"):
            sampler.generator = torch.Generator()  # the caller's is not drawn from
    return _Reader(WorkerLoader(data, inner, **how), count)


def _images(
    augment: NFAugment, base: Any, classes: int, workers: int, plain: bool, like: Any
) -> _Reader:
    """The images that `_fit_to_dataset` reads, in batches at the flow's size."""
    wanted, to_levels = _images_wanted(augment), functools.partial(_levels, augment.change.size)
    how: dict[str, Any] = {"batch_size": BATCH, "num_workers": max(workers, 1)}
    how["collate_fn"], data = functools.partial(_collated, to_levels), base
    if plain:
        how["worker_init_fn"] = None  # of another dataset
    else:
        if isinstance(inspect.getattr_static(base, "transform", property()), property):
            own = f"{type(base).__name__} has no `transform` of its own that a copy could replace"
            raise NFAError(f"{own}, so that its images may be augmented at random; {REMEDY}")
        set_transform(data := copy.copy(base), to_levels)
    if isinstance(base, IterableDataset):
        if hasattr(data, "set_loader_cfg"):  # timm's readers share out a stream among workers
            data = copy.copy(data)
            data.reader = copy.copy(data.reader)
            data.set_loader_cfg(num_workers=how["num_workers"])
        return _Reader(WorkerLoader(data, like, **how), wanted * classes)
    how["sampler"] = _picked(augment, base, classes)
    return _Reader(WorkerLoader(data, like, **how))


def _picked(augment: NFAugment, data: Any, classes: int) -> list[int] | None:
    """Indices of the images that are read to find modes, spread over the classes; None: of all."""
    wanted = _images_wanted(augment)
    labels = [0] * len(data) if augment.labels == "none" else stored_labels(data)
    if (
        labels is None
    ):  # an image may have to be read for its label, and none that is not wanted be encoded
        return None if augment.size is None else evenly(list(range(len(data))), wanted * classes)
    return spread(labels, wanted)


def _images_wanted(augment: NFAugment) -> int:
    """How many images are read to find modes: of each class, or in all."""
    pooled, modes = augment.labels == "none", augment.modes
    if augment.size is not None:
        return max(LATENTS_POOLED, 8 * modes) if pooled else max(LATENTS, 2 * modes)
    return max(FIT_IMAGES_POOLED if pooled else FIT_IMAGES, 8 * modes)


def _levels(size: tuple[int, int, int], image: Any) -> Tensor:
    """A PIL image as levels (C, h, w), uint8, of this size: squashed, not cropped."""
    if not isinstance(image, Image.Image):
        raise TypeError(f"its transform is given {type(image).__name__}, not PIL images")
    if image.mode[0] not in "IF":  # which convert() would clip; the fit refuses them
        image = image.convert({1: "L", 3: "RGB"}.get(size[0], image.mode))
    return pil_to_tensor(image.resize((size[2], size[1]), Image.Resampling.BICUBIC))


def _collated(to_levels: Callable, samples: list[Any]) -> Any:
    """A batch (images, labels) of samples whose images are tensors, or PIL images of any size."""
    if not isinstance(samples[0], (tuple, list)) or len(samples[0]) < 2:
        raise TypeError(f"it gives {type(samples[0]).__name__}, not (image, label)")
    pil = isinstance(samples[0][0], Image.Image)
    return default_collate([(to_levels(x) if pil else x, k) for x, k, *_ in samples])


def _count_classes(augment: NFAugment, base: Any, num_classes: int | None) -> int:
    if augment.labels == "none":
        return 1
    if mapping := class_to_idx(base):  # names may share a label, and labels have gaps
        return max(mapping.values()) + 1
    names = getattr(base, "classes", None)
    if count := num_classes or (len(names) if isinstance(names, (list, tuple)) else 0):
        return count
    name = type(base).__name__
    raise NFAError(f"{name} does not know its classes; say how many there are with --num-classes")


def _unwrapped(dataset: Any) -> Any:
    """The dataset inside those that timm puts around one."""
    inside = isinstance(dataset, AugMixDataset) or _is_scheduled(dataset)
    return dataset.dataset if inside else dataset


def _is_scheduled(dataset: Any) -> bool:
    return type(dataset).__name__ == "ScheduledTransformDataset"  # which older timms lack
