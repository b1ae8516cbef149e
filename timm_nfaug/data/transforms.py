"""Transforms in datasets: replaced on a copy, as the user's dataset stays as it is."""

import copy
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from torch.utils.data import ConcatDataset, Dataset, Subset
from torchvision.datasets.vision import StandardTransform

from ..augment import NFAugment


def for_workers(augment: NFAugment) -> NFAugment:
    """The augmentation itself, which from now on counts together with the worker processes.

    >>> for_workers("nfa-s0.5")
    Traceback (most recent call last):
    TypeError: expected an NFAugment, got str; NFAugment.from_data makes one
    """
    if not isinstance(augment, NFAugment):
        kind = type(augment).__name__
        raise TypeError(f"expected an NFAugment, got {kind}; NFAugment.from_data makes one")
    augment.notices.share()
    return augment


def set_transform(dataset: Any, transform: Any) -> None:
    """Sets the transform of the images, also in the pair with that of the labels in torchvision's.

    >>> from torchvision.datasets import FakeData
    >>> data = FakeData(1, transform=len)
    >>> set_transform(data, str)
    >>> data.transform is data.transforms.transform is str
    True
    """
    dataset.transform = transform
    if getattr(dataset, "transforms", None) is not None:
        target = getattr(dataset, "target_transform", None)
        dataset.transforms = StandardTransform(transform, target)


def as_stored(*given: Any, **named: Any) -> Any:
    """The transform that changes nothing; one called by keyword gets and gives a dict.

    >>> as_stored(3), as_stored(image=3)
    (3, {'image': 3})
    """
    return named or (given[0] if len(given) == 1 else given)


def without_transform(dataset: Any) -> Any:
    """A shallow copy of a dataset whose images come as they are stored.

    A transform is replaced by `as_stored`, as a dataset may call its own without asking for one.

    >>> from torchvision.datasets import FakeData
    >>> data = FakeData(1, transform=str)
    >>> without_transform(data).transform("image"), data.transform
    ('image', <class 'str'>)
    """
    dataset = _copied(dataset)
    if getattr(dataset, "transform", None) is not None:
        set_transform(dataset, as_stored)
    return dataset


class Later(NamedTuple):
    """An image as it is stored, and the transform that its dataset has for it.

    >>> Later(len, "image").image
    'image'
    """

    transform: Callable
    image: Any


def transform_later(dataset: Any) -> Any:
    """A shallow copy of a dataset whose transform waits: its images come as `Later`.

    >>> from torchvision.datasets import FakeData
    >>> transform_later(FakeData(1, transform=str)).transform("image")
    Later(transform=<class 'str'>, image='image')
    """
    transform, dataset = getattr(dataset, "transform", None), without_transform(dataset)
    if transform is not None and transform is not as_stored:
        set_transform(dataset, functools.partial(Later, transform))
    return dataset


def is_view(dataset: Any) -> bool:
    """Whether it only chooses among the samples of others: Subset, random_split, ConcatDataset.

    >>> is_view(Subset([3, 4], [0])), is_view([3, 4])
    (True, False)
    """
    return type(dataset) in (Subset, ConcatDataset)


def map_inside(change: Callable, dataset: Any) -> Any:
    """A dataset as `change` makes it, on copies of those that only choose among its samples.

    >>> map_inside(len, Subset([3, 4], [0])).dataset
    2
    """
    if not is_view(dataset):
        return change(dataset)
    view = copy.copy(dataset)
    if isinstance(view, Subset):
        view.dataset = map_inside(change, view.dataset)
    else:
        view.datasets = [map_inside(change, part) for part in view.datasets]
    return view


def _copied(dataset: Any) -> Any:
    """A shallow copy, of the datasets inside, too, where `transform` is a property of theirs."""
    dataset = copy.copy(dataset)
    if isinstance(getattr(type(dataset), "transform", None), property):
        inner = {k: _copied(v) for k, v in vars(dataset).items() if isinstance(v, Dataset)}
        vars(dataset).update(inner)
    return dataset
