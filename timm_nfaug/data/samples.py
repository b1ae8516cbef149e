"""What a sample of a dataset holds: an image, and its label among what comes with it."""

from collections.abc import Sequence
from typing import Any

from torch.utils import _pytree as pytree

from ..labels import find_labels, is_row


def parts(sample: Any) -> tuple[Any, ...]:
    """The image of a dataset's sample, and all that comes with it, where anything does.

    >>> parts(("image", 3)), parts("image")
    (('image', 3), ('image',))
    """
    return tuple(sample) if isinstance(sample, (tuple, list)) else (sample,)


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
