"""The transform of a map-style data set, which some of torchvision's hold a second time in a pair with that of the label."""

from __future__ import annotations

import copy

from torch.utils.data import Dataset
from torchvision.datasets.vision import StandardTransform


def set_transform(dataset, transform) -> None:
    """Sets the transform of the images; that of the labels stays."""
    dataset.transform = transform
    if getattr(dataset, "transforms", None) is not None:
        dataset.transforms = StandardTransform(
            transform, getattr(dataset, "target_transform", None)
        )


def without_transform(dataset):
    """A shallow copy whose images come as they are stored; the caller's data set stays as it is."""
    dataset = _copied(dataset)
    if getattr(dataset, "transform", None) is not None:
        set_transform(dataset, None)
    return dataset


def _copied(dataset):
    """A shallow copy; where `transform` is a property, which may be that of a data set within, of those within too."""
    dataset = copy.copy(dataset)
    if isinstance(getattr(type(dataset), "transform", None), property):
        own = vars(dataset)
        own.update({k: _copied(v) for k, v in own.items() if isinstance(v, Dataset)})
    return dataset
