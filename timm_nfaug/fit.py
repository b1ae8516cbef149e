"""Fits the class Gaussians and modes of a flow to another dataset: one pass, no training."""

import itertools
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from . import lift
from ._utils.checks import check_modes
from ._utils.notices import NFAError
from ._utils.progress import progress
from .autoencoder import Autoencoder
from .change import LatentChange, to_model
from .flows.basis import ROWS, SharedBasis
from .flows.model import ConditionalFlow
from .flows.moments import ClassMoments
from .flows.prior import ClassGaussians
from .flows.registry import create_flow
from .hub import LINEAR
from .inputs import RangeError, channel_ends, check_image, check_range
from .labels import labels_of
from .pixels import PLAIN, Scale, batch_of, widened
from .reading import count_images, naming

_logger = logging.getLogger(__name__)

Fitted = TypeVar("Fitted")

EMPTY = "the loader gave no images: it is empty, or an iterator that has ended"
# least and greatest side of latents where none is given, in pixels; modes at 112 spread images of 224
# as those at 224 do, at a quarter of the price (benchmarks/results/latent.md)
SIDES = (64, 112)
SHRINKAGE = 100.0  # images; about the best for 20 to 500 images per class, 2% of 5,000


def latent_flow(autoencoder: Autoencoder, size: int) -> ConditionalFlow:
    """A linear flow over the latents of images of `size` pixels, without modes yet.

    >>> class Identity:
    ...     def encode(self, x): return x
    ...     decode = encode
    >>> latent_flow(Autoencoder(Identity(), "mine"), 64).config.input_size
    (3, 64, 64)
    """
    latent = {
        "autoencoder": autoencoder.name, "revision": autoencoder.revision,
        "sha256": autoencoder.digest(), "size": size,
    }  # fmt: skip
    shape, small = autoencoder.latent_size(size), {"num_modes": 1}  # room for none, as yet
    return create_flow(LINEAR, input_size=shape, num_classes=1, prior=small, latent=latent)


def latent_batches(
    batches: Iterable[tuple[Tensor, Tensor]], change: LatentChange, raw: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields latents (B, c, h, w) and labels (B,) of images in [-1, 1] at the size of a change.

    Args:
        raw: as the autoencoder gives them; else as the flow of the change knows them.

    >>> class Identity:
    ...     def encode(self, x): return x
    ...     decode = encode
    >>> from timm_nfaug import NFAugment
    >>> autoencoder = Autoencoder(Identity())
    >>> change = NFAugment.to_fit(latent_flow(autoencoder, 64), autoencoder=autoencoder).change
    >>> next(latent_batches([(torch.zeros(2, 3, 64, 64), None)], change, raw=True))[0].shape
    torch.Size([2, 3, 64, 64])

    Raises:
        NFAError: there are latents that are not finite.
    """
    for x, y in batches:
        z = change.autoencoder.encode(x)
        if not z.isfinite().all():
            raise NFAError(
                f"{change.autoencoder} gives latents that are not finite: its weights are damaged, "
                "or overflow; load it anew, or set its in_bfloat16 = False"
            )
        yield z if raw else change.standardized(z), y


def latent_side(side: int, factor: int) -> int:
    """Side at which latents of images are made where none is given, of their shorter one.

    >>> latent_side(32, factor=8), latent_side(100, factor=8), latent_side(500, factor=8)
    (64, 96, 112)
    """
    return max(factor, min(max(side, SIDES[0]), SIDES[1]) // factor * factor)


def empty_flow(flow: ConditionalFlow, modes: int, num_classes: int = 1) -> ConditionalFlow:
    """A flow that shares the network of `flow` and has room for other modes, all zero.

    >>> import timm_nfaug as nfa
    >>> empty_flow(nfa.create_flow("linear"), modes=8).prior.num_modes
    8
    """
    check_modes(modes)
    prior = ClassGaussians(num_classes, flow.dim, None, 0.25, modes, flow.prior.low_rank)
    empty = flow.with_prior(prior.requires_grad_(False))
    empty.config.info, empty.config.augment = _info_of_network(flow), {}
    return empty


def _info_of_network(flow: ConditionalFlow) -> dict[str, Any]:
    """What the card of a flow may say once it has other modes: nothing of those it had."""
    info = {} if flow.is_linear else flow.config.info
    known = {"license": info.get("license"), "network": info.get("network") or info.get("data")}
    return {k: v for k, v in known.items() if v}


@torch.no_grad()
def fit_flow(
    flow: ConditionalFlow,
    batches: Iterator[tuple[Tensor, Tensor]],
    num_classes: int,
    modes: int,
    allow_empty: bool = False,
    shrinkage: float = SHRINKAGE,
) -> ConditionalFlow:
    """A flow that shares the network of `flow` and has Gaussians and modes of other images.

    Args:
        batches: images (B, C, h, w) at the flow's size, in [-1, 1], and labels (B,).
        modes: number of modes per class; images too few for them leave the rest unused.
        allow_empty: classes without images get no modes and are never guessed; else they raise.
        shrinkage: the spread within all classes counts for each as if it had been seen in so many
            more images of it (see `ClassMoments`).

    >>> import timm_nfaug as nfa
    >>> x, y = torch.rand(8, 3, 4, 4) * 2 - 1, torch.arange(8) % 2
    >>> flow = fit_flow(nfa.create_flow("linear", input_size=(3, 4, 4)), iter([(x, y)]), 2, 4)
    >>> flow.prior.modes.shape
    torch.Size([2, 4, 48])
    """
    if flow.is_linear and flow.config.latent and num_classes > 1:
        flow, moments = _in_shared_basis(flow, batches, num_classes, modes, allow_empty, shrinkage)
    else:
        moments = flow.moments(batches, num_classes, modes, allow_empty, shrinkage)
    if (empty := moments.empty) and not allow_empty:
        if len(empty) == num_classes:
            raise NFAError(EMPTY)
        raise NFAError(
            f"saw no image of class {empty[0]} (of {len(empty)} such, of {num_classes}): give the "
            'whole dataset, not a sorted part; or leave out the class by labels="none", or leave it '
            "unmoved by allow_empty=True"
        )
    fitted = empty_flow(flow, modes, num_classes)
    fitted.prior.set_moments(moments)
    fitted.log_prior[moments.empty] = -torch.inf
    return fitted


def _in_shared_basis(
    flow: ConditionalFlow,
    batches,
    num_classes: int,
    modes: int,
    allow_empty: bool,
    shrinkage: float,
) -> tuple[ConditionalFlow, ClassMoments]:
    """A linear flow in a basis that the classes share, and the moments of its coordinates."""
    shared = SharedBasis(max(ROWS, 4 * modes))
    for x, y in batches:
        shared.update(x.flatten(1), y)
    if shared.empty:
        raise NFAError(EMPTY)
    basis, moments = shared.moments(num_classes, modes, allow_empty, shrinkage)
    config, device = flow.config, flow.device
    flow = create_flow(
        LINEAR, input_size=config.input_size, num_classes=num_classes, latent=config.latent,
        prior=config.prior, basis=len(basis),
    )  # fmt: skip
    flow.network.get_buffer("basis").copy_(basis)
    return flow.to(device), moments


def fitting_batches(
    loader: Any, size: tuple[int, int, int], num_classes: int, scale: Scale = PLAIN
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields images (B, C, h, w) of size (C, h, w) in [-1, 1], and labels (B,), from a loader.

    Args:
        loader: batches (images, labels, ...) of images as `NFAugment` takes them, else a TypeError.
        num_classes: K that labels must be below; 0: all images are one class, labels are not looked
            at and may be missing.

    >>> x, y = next(fitting_batches([(torch.rand(2, 3, 8, 8), [0, 1])], (3, 4, 4), num_classes=2))
    >>> x.shape, y.tolist()
    (torch.Size([2, 3, 4, 4]), [0, 1])
    """
    with progress(count_images(loader), "NFA fit", "images") as bar:
        for batch in naming(loader):
            x, y = _images_and_labels(batch, pooled=not num_classes)
            check_image(x, size[0], scale)
            check_range(x, scale)
            x = lift.down(to_model(x, scale), size[1:])
            none = torch.zeros(len(x), dtype=torch.int64)
            yield x, labels_of(y, len(x), num_classes) if num_classes else none
            bar.update(len(x))


class Opened:
    """A loader whose first batch has been read; the first pass over it does not read that again.

    >>> Opened([(torch.rand(2, 13, 64, 20), torch.tensor([0, 1]))]).input_size
    (13, 32, 20)
    """

    def __init__(self, loader: Any):
        check_loader(loader)
        self.loader, self.dataset = loader, getattr(loader, "dataset", None)
        self._started: Any = naming(loader)
        self._first = list(itertools.islice(self._started, 1))

    def __iter__(self) -> Iterator[Any]:
        started, self._started = self._started, None
        if started is not None:
            return itertools.chain(self._first, started)
        if isinstance(self.loader, Iterator):
            raise NFAError(
                f"a {type(self.loader).__name__} gives its images once, and their range has to be "
                "found first: pass value_range=(low, high), or give a DataLoader or a list"
            )
        return naming(self.loader)

    @property
    def input_size(self) -> tuple[int, int, int]:
        """(C, H, W) of modes for its images: their channels, and up to 32 x 32."""
        if not self._first:
            raise NFAError(EMPTY)
        c, h, w = _images_and_labels(self._first[0], pooled=True)[0].shape[1:]
        if c > w and (c == h or w <= 4):  # as default_collate joins arrays (H, W, C)
            raise NFAError(
                f"batches of shape (B, {c}, {h}, {w}) look like (B, H, W, C): bring the channels "
                f"forward, images.permute(0, 3, 1, 2); or say input_size=({c}, {h}, {w})"
            )
        return c, min(32, h), min(32, w)

    def side(self, factor: int) -> int:
        """Side at which latents of its images are made: theirs, 64 to 112, a multiple of `factor`."""
        if not self._first:
            raise NFAError(EMPTY)
        return latent_side(
            min(_images_and_labels(self._first[0], pooled=True)[0].shape[2:]), factor
        )

    def in_range(self, fitted: Callable[[Any], Fitted], value_range: Any, mean: Any) -> Fitted:
        """What `fitted` makes of a value_range: the given one, or the images' own if it needs one."""
        try:
            return fitted(value_range)
        except RangeError:
            if value_range is not None or mean is not None:
                raise
        return fitted(self.find_range())

    def find_range(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """The least and greatest value of each channel in all images; another pass over them."""
        ends = []
        for i, batch in enumerate(self):
            x = widened(_images_and_labels(batch, pooled=True)[0])
            if not x.numel():
                continue
            if not x.isfinite().all():
                c = int((~x.isfinite()).any((0, 2, 3)).nonzero()[0])
                what = f"batch {i} of the loader holds NaN or infinite values in channel {c}"
                raise NFAError(f"{what}; fill them: torch.nan_to_num(images)")
            ends.append(torch.stack(channel_ends(x)).cpu())
        if not ends:
            raise NFAError(EMPTY)
        found = torch.stack(ends)  # (batches, 2, C)
        low, high = (tuple(v.tolist()) for v in (found[:, 0].amin(0), found[:, 1].amax(0)))
        if low == high:
            raise NFAError(
                f"all images hold the same values, {low} in their channels: there is nothing to "
                "find modes in; give images that differ"
            )
        _logger.info("NFA: value_range found in the images: (%s, %s)", low, high)
        return low, high


def count_classes(
    loader: Any, num_classes: int | None, pooled: bool = False
) -> tuple[int, list[str]]:
    """K, given or counted, and the names of the classes where ``loader.dataset.classes`` has them.

    Raises TypeError for what is no loader (see `check_loader`).

    >>> count_classes([], 3), count_classes([], None, pooled=True)
    ((3, []), (1, []))
    """
    check_loader(loader)
    dataset = getattr(loader, "dataset", None)
    names = None if pooled else _class_names(dataset)
    if num_classes is None and not pooled and names is None:
        kind = "loader.dataset" if dataset is None else f"loader.dataset, {type(dataset).__name__},"
        raise ValueError(f"{kind} has no `classes` to count; pass num_classes=")
    count = 1 if pooled else num_classes or len(names or ())
    return count, [str(k) for k in names] if names and len(names) == count else []


def check_loader(loader: Any) -> None:
    """Raises TypeError for what stands where a loader of batches belongs: data, a path, one batch.

    >>> check_loader([(torch.rand(2, 3, 8, 8), torch.tensor([0, 1]))])
    """
    first = loader[0] if isinstance(loader, tuple) and loader else loader
    if isinstance(first, (Tensor, np.ndarray)):
        got = f"{type(first).__name__}, of which a list makes one batch: [(images, labels)]"
    elif isinstance(loader, (str, os.PathLike)):
        got = f"a path, {str(loader)!r}: DataLoader(ImageFolder(path, transform), 256)"
    elif isinstance(loader, Dataset) and not isinstance(loader, IterableDataset):
        got = f"a dataset, {type(loader).__name__}: DataLoader(dataset, 256)"
    else:
        return
    raise TypeError(f"expected a loader of batches, got {got}")


def _class_names(dataset: Any) -> list | None:
    """The `classes` of a dataset, or those that all datasets inside it share."""
    own = getattr(dataset, "classes", None)
    if isinstance(own, (list, tuple)):
        return list(own)
    parts = [dataset.dataset] if hasattr(dataset, "dataset") else getattr(dataset, "datasets", [])
    found = [_class_names(part) for part in parts]  # of a Subset, a ConcatDataset
    return found[0] if found and all(names == found[0] for names in found) else None


def _images_and_labels(batch: Any, pooled: bool) -> tuple[Tensor, Any]:
    """Splits a batch into images (B, C, H, W) and labels, or None where they are not needed."""
    x, *rest = batch if isinstance(batch, (tuple, list)) else (batch,)
    if isinstance(x, np.ndarray) and x.ndim == 4:  # (B, H, W, C)
        x = batch_of(x)
    if not (isinstance(x, Tensor) and x.ndim == 4 and (rest or pooled)):
        got = f"a tensor {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(
            f"expected batches (images (B, C, H, W), labels (B,)), got {got}; "
            "take a collate_fn that makes them"
        )
    return x, rest[0] if rest else None
