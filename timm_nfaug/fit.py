"""Fits the class Gaussians and modes of a flow to another dataset: one pass, no training."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from . import lift
from ._utils.checks import check_modes
from .change import to_model
from .flows.model import ConditionalFlow
from .flows.prior import ClassGaussians
from .inputs import check_image, check_range

SHRINKAGE = 100.0  # images; about the best for 20 to 500 images per class, 2% of 5,000


def empty_flow(flow: ConditionalFlow, modes: int, num_classes: int = 1) -> ConditionalFlow:
    """A flow that shares the network of `flow` and has room for other modes, all zero.

    >>> import timm_nfaug as nfa
    >>> empty_flow(nfa.create_flow("linear"), modes=8).prior.num_modes
    8
    """
    check_modes(modes)
    return flow.with_prior(
        ClassGaussians(num_classes, flow.dim, None, 0.25, modes, flow.prior.low_rank)
    )


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
    moments = flow.moments(batches, num_classes, modes, allow_empty, shrinkage)
    fitted = empty_flow(flow, modes, num_classes)
    fitted.prior.set_moments(moments)
    fitted.log_prior[moments.empty] = -torch.inf
    return fitted


def fitting_batches(
    loader: Any, size: tuple[int, int, int], pooled: bool, mean: Any = None, std: Any = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields images (B, C, h, w) of size (C, h, w) in [-1, 1], and labels (B,), from a loader.

    Args:
        loader: batches (images, labels, ...) of images as `NFAugment` takes them, else a TypeError.
        pooled: all images are one class; labels are not looked at and may be missing.

    >>> x, y = next(fitting_batches([(torch.rand(2, 3, 8, 8), [0, 1])], (3, 4, 4), pooled=False))
    >>> x.shape, y.tolist()
    (torch.Size([2, 3, 4, 4]), [0, 1])
    """
    for batch in loader:
        x, y = _images_and_labels(batch, pooled)
        check_image(x, size[0])
        if mean is None:
            check_range(x)
        x = lift.down(to_model(x, mean, std), size[1:])
        y = torch.zeros(len(x), dtype=torch.int64) if pooled else torch.as_tensor(y)
        yield x, y.squeeze(1) if y.ndim == 2 and y.shape[1] == 1 else y


def count_classes(
    loader: Any, num_classes: int | None, pooled: bool = False
) -> tuple[int, list[str]]:
    """K, given or counted, and the names of the classes where ``loader.dataset.classes`` has them.

    Raises TypeError for a map-style dataset in place of a loader, as it gives single images.

    >>> count_classes([], 3), count_classes([], None, pooled=True)
    ((3, []), (1, []))
    """
    if isinstance(loader, Dataset) and not isinstance(loader, IterableDataset):
        kind = type(loader).__name__
        raise TypeError(
            f"expected a loader of batches, got a dataset, {kind}: DataLoader(dataset, 256)"
        )
    names = None if pooled else getattr(getattr(loader, "dataset", None), "classes", None)
    names = names if isinstance(names, (list, tuple)) else None
    if pooled or num_classes is None:
        if names is None and not pooled:
            raise ValueError("loader.dataset has no `classes` to count; pass num_classes=")
        num_classes = len(names) if names is not None else 1
    return num_classes, [str(n) for n in names] if names is not None and len(
        names
    ) == num_classes else []


def _images_and_labels(batch: Any, pooled: bool) -> tuple[Tensor, Any]:
    """Splits a batch into images (B, C, H, W) and labels, or None where they are not needed."""
    x, *rest = batch if isinstance(batch, (tuple, list)) else (batch,)
    if not (isinstance(x, Tensor) and x.ndim == 4 and (rest or pooled)):
        got = f"a tensor {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(
            f"expected batches (images (B, C, H, W), labels (B,)), got {got}; "
            "take a collate_fn that makes them"
        )
    return x, rest[0] if rest else None
