"""What a sample of a dataset holds: an image, and its label among what comes with it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch.utils import _pytree as pytree

from ..labels import find_labels, is_row
from .transforms import Later


def parts(sample: Any) -> tuple[Any, ...]:
    """The image of a dataset's sample, and all that comes with it, where anything does.

    >>> parts(("image", 3)), parts("image")
    (('image', 3), ('image',))
    >>> parts({"label": 3, "image": PIL.Image.new("L", (8, 8))})[1]
    {'label': 3}
    """
    if (key := _image_key(sample)) is not None:
        return sample[key], {k: v for k, v in sample.items() if k != key}
    return tuple(sample) if _is_row(sample) else (sample,)


def with_image(sample: Any, image: Any) -> Any:
    """A sample with another image in the place of its own.

    >>> with_image(("image", 3), "other")
    ('other', 3)
    """
    if (key := _image_key(sample)) is not None:
        return {**sample, key: image}
    return (image, *sample[1:]) if _is_row(sample) else image


def _is_row(sample: Any) -> bool:
    return isinstance(sample, (tuple, list)) and not isinstance(sample, Later)


def _image_key(sample: Any) -> Any:
    """The key of the image in a sample that is a dict: "image", or its first; None for all else."""
    items = sample.items() if isinstance(sample, dict) else ()
    found = [k for k, v in items if _is_image(v)]
    return "image" if "image" in found else next(iter(found), None)


def _is_image(value: Any) -> bool:
    return isinstance(value, (PIL.Image.Image, Later)) or (
        isinstance(value, (torch.Tensor, np.ndarray)) and value.ndim == 3
    )


def label_of(rest: Sequence[Any], num_classes: int) -> int | None:
    """The class in what comes with an image, as `find_labels` finds it; None where there is none.

    >>> label_of(["cat.png", 3], num_classes=10)
    3
    """
    if len(rest) == 1 and type(rest[0]) is int and 0 <= rest[0] < num_classes:
        return rest[0]
    leaves, _ = pytree.tree_flatten_with_path((None, *rest), is_leaf=is_row)
    found = find_labels(leaves, [0], 1, num_classes)
    return None if found is None else int(found)
