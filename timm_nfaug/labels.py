"""Labels: what counts as the class of an image, and where it is looked for (docs/labels.md)."""

from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torchvision import tv_tensors

from ._utils.checks import check_labels

LABELS = ("given", "posterior", "none")  # who supplies the class of an image
LABEL_KEYS = ("label", "labels", "target", "targets", "cls")  # in dicts, in this order
INSTEAD = 'labels="posterior" lets the flow choose the class, labels="none" does without'
GUESSED = (
    "no label came with the images, so that the flow guesses their class, which it may get wrong: "
    "put nfa.NFADataset(dataset, aug) around the dataset instead of aug into its transform, call "
    'aug(image, label), or put it into the dict as "label" (docs/labels.md); or take modes of all '
    'images by NFAugment.from_data(loader, labels="none"); labels="posterior" asks for a guess'
)

Leaves = list[tuple[Any, Any]]  # (path, value), as `pytree.tree_flatten_with_path` gives them


def class_of(label: Any) -> int:
    """The class that the label of one image names: an int, or an array or tensor of one integer.

    >>> class_of(torch.tensor(3))
    3

    Raises:
        TypeError: no label, text, a truth value, a float, or a label that is mixed or soft.
    """
    y = None if isinstance(label, (list, tuple)) else _integers(label)
    if y is None or len(y) != 1:
        wanted = f"expected one integer label an image, got {label!r}"
        raise TypeError(
            f"{wanted}; text, truth values, and mixed or soft labels name no class: {INSTEAD}"
        )
    return int(y)


def labels_of(value: Any, count: int, num_classes: int) -> Tensor:
    """Labels (B,), integers in 0..num_classes - 1, of `count` images.

    Args:
        value: integers, as a tensor or array of shape (), (B,) or (B, 1), or as a list of them.

    >>> labels_of([0, 2], 2, num_classes=3), labels_of(np.array([[1]], np.uint16), 1, 3)
    (tensor([0, 2]), tensor([1]))

    Raises:
        TypeError: text, truth values or floats.
        ValueError: probabilities, labels out of range, or not one for each image.
    """
    y = _integers(value)
    if y is None:
        _refuse(value, count)
    if len(y) != count:
        found = f"{count} images came with {len(y)} labels"
        raise ValueError(f"{found}; give one label per image; {INSTEAD}")
    return check_labels(y, num_classes, y.device)


def check_pooled(labels: str, num_classes: int) -> None:
    """Refuses labels="none" for a change of several classes.

    >>> check_pooled("given", num_classes=10)
    """
    if labels == "none" and num_classes > 1:
        raise ValueError(
            f'labels="none" takes one set of modes for all images, this change has {num_classes} '
            'classes; take labels="given"'
        )


def is_row(value: Any) -> bool:
    """Tells whether a list is one value, such as the labels of a batch, not a nesting.

    >>> is_row([0, 2, 1]), is_row([0, "dog.jpg"]), is_row([])
    (True, False, False)
    """
    kinds = {_kind(v) for v in value} if isinstance(value, (list, tuple)) else set()
    return len(kinds) == 1 and kinds != {""}


def find_labels(leaves: Leaves, where: list[int], count: int, num_classes: int) -> Tensor | None:
    """Labels (B,) of `count` images among leaves, or None; docs/labels.md says where it looks.

    Args:
        where: positions of the images among the leaves.

    >>> leaves, _ = pytree.tree_flatten_with_path(({"label": 2, "index": 7}, "an image"))
    >>> find_labels(leaves, [2], 1, num_classes=3)
    tensor([2])

    Raises:
        TypeError, ValueError: what stands where a label belongs names no class, or several may.
    """
    keyed, after = _places(leaves, where)
    integers = [(place, y) for place, v in keyed if (y := _integers(v)) is not None]
    found = [y for place, y in integers if place == integers[0][0]]
    if not found:
        found = [y for v in after if (y := _integers(v)) is not None]
        found = found[:1] if len(where) == 1 else found
    several = sum(map(len, found))
    if len(found) > 1 or (len(where) > 1 and several > count):
        raise ValueError(
            f"{len(where)} images came with {several} integers, any of which may be the label: put "
            "it into a dict as label, or give one image, or batch, and its labels"
        )
    if found:
        return labels_of(found[0], count, num_classes)
    for value in [v for _, v in keyed] + after if num_classes > 1 else ():
        if _meant_as_label(value, count):
            _refuse(value, count)
    return None


def _places(leaves: Leaves, where: list[int]) -> tuple[list[tuple[tuple[int, int], Any]], list]:
    """What stands where a label belongs: in dicts, nearest first, and after the first image."""
    keyed, after = [], []
    for i, (path, value) in enumerate(leaves):
        keys = [k.key for k in path if isinstance(k, pytree.MappingKey)]
        if i in where or (keys and keys[-1] not in LABEL_KEYS):
            continue
        if keys:
            keyed.append(((len(keys), LABEL_KEYS.index(keys[-1])), value))
        elif i > where[0]:
            after.append(value)
    return sorted(keyed, key=lambda pair: pair[0]), after


def _kind(value: Any) -> str:
    """The kind of a single value as numpy's letter, such as "i"; "" for anything else."""
    if isinstance(value, (str, bytes)):
        return "U"
    if isinstance(value, Tensor) and not value.ndim:
        value = value.item()
    if isinstance(value, (bool, int, float, np.generic, np.ndarray)) and not np.ndim(value):
        return np.asarray(value).dtype.kind
    return ""


def _numbers(value: Any) -> Tensor | None:
    """A number, a list of numbers, an array or a plain tensor as a tensor; None for all else."""
    if isinstance(value, tv_tensors.TVTensor):
        return None
    if isinstance(value, Tensor):
        return value
    if not isinstance(value, np.ndarray) and not _kind(value) and not is_row(value):
        return None
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        return None
    return torch.from_numpy(array.astype(np.int64) if array.dtype.kind in "iu" else array)


def _integers(value: Any) -> Tensor | None:
    """Integers of shape (), (B,) or (B, 1) as a tensor (B,); None for all else."""
    y = _numbers(value)
    if y is None or y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        return None
    return y.reshape(-1) if y.ndim < 2 or (y.ndim == 2 and y.shape[1] == 1) else None


def _meant_as_label(value: Any, count: int) -> bool:
    """Whether what names no class, beside `count` images, must have been meant as their labels."""
    y = _numbers(value)
    if y is None:  # text, or integers too large, alone, in a list or in an array
        first = value[0] if is_row(value) else value
        return _kind(first) != "" or (isinstance(first, np.ndarray) and first.dtype.kind in "USO")
    fits = not y.ndim or count == 1 or len(y) == count
    return y.ndim < 3 and (fits or _are_probabilities(y, count))


def _refuse(value: Any, count: int) -> NoReturn:
    """Raises for what was meant as labels of `count` images and names no class."""
    y = _numbers(value)
    if y is not None and _are_probabilities(y, count):
        raise ValueError(
            f"expected integer labels ({count},), got probabilities {tuple(y.shape)}: run NFA "
            f"before mixup and one-hot encoding; {INSTEAD}"
        )
    got = f"{type(value).__name__} {value!r:.60}"
    if isinstance(value, (Tensor, np.ndarray)):
        got = f"{value.dtype} {tuple(value.shape)}"
    raise TypeError(
        f"expected integer labels ({count},), got {got}: give the number of the class; {INSTEAD}"
    )


def _are_probabilities(v: Tensor, count: int) -> bool:
    """Whether v is (B, K) or (K,) of rows that add up to 1, as mixup and one-hot encoding make."""
    if v.ndim not in (1, 2) or v.shape[-1] < 2:
        return False
    rows = v.reshape(-1, v.shape[-1]).double()
    positive = len(rows) == count > 0 and bool((rows >= 0).all())
    return positive and bool(((rows.sum(1) - 1).abs() < 1e-2).all())
