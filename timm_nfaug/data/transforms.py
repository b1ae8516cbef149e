"""Replaces the transform of a dataset on a copy: the user's dataset stays as it is."""

import copy
from typing import Any

from torch.utils.data import Dataset
from torchvision.datasets.vision import StandardTransform


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


def _copied(dataset: Any) -> Any:
    """A shallow copy, of the datasets inside, too, where `transform` is a property of theirs."""
    dataset = copy.copy(dataset)
    if isinstance(getattr(type(dataset), "transform", None), property):
        inner = {k: _copied(v) for k, v in vars(dataset).items() if isinstance(v, Dataset)}
        vars(dataset).update(inner)
    return dataset
