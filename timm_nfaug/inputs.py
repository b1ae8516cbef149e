"""Finds the images and labels in what a transform is called with, and refuses what it cannot take."""

import functools
import operator
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torchvision import tv_tensors

from ._utils.checks import check_labels

LABELS = ("given", "posterior", "none")  # who supplies the class of an image


class Inputs(NamedTuple):
    """What was found in the arguments of a call.

    >>> Inputs([1, 2], None, [0], None).nested()
    (1, 2)
    """

    flat: list[Any]  # all leaves
    spec: Any  # how they were nested; None for plain arguments
    where: list[int]  # positions of the images among the leaves
    labels: Tensor | None  # (B,) integers

    def nested(self) -> Any:
        """The leaves in the nesting that came."""
        if self.spec is not None:
            return pytree.tree_unflatten(self.flat, self.spec)
        return self.flat[0] if len(self.flat) == 1 else tuple(self.flat)


def find_inputs(inputs: tuple[Any, ...], num_classes: int) -> Inputs:
    """Finds images and labels among the arguments of a call, at any depth of lists and dicts.

    Images are PIL images and `tv_tensors.Image`; where there is neither, the first tensor of 3 or 4
    dimensions is. Labels are what a dict calls label or labels, else the first integers. Raises
    where no image came, or which number is the label cannot be told.

    Args:
        num_classes: K that labels must be below; 0: labels are not looked for.

    >>> found = find_inputs((torch.zeros(2, 3, 8, 8), torch.tensor([4, 5])), num_classes=10)
    >>> found.where, found.labels.tolist()
    ([0], [4, 5])
    """
    if not inputs:
        raise TypeError("NFAugment takes at least one image")
    pair = len(inputs) == 2 and type(inputs[1]) is int
    if isinstance(inputs[0], PIL.Image.Image) and (len(inputs) == 1 or pair):
        # what a dataset gives: no nesting to look through, which would cost more than the change
        label = _one_label(inputs[1], num_classes) if pair and num_classes else None
        return Inputs(list(inputs), None, [0], label)
    paths, spec = pytree.tree_flatten_with_path(inputs if len(inputs) > 1 else inputs[0])
    flat = [leaf for _, leaf in paths]
    where = _image_positions(flat)
    if not where:
        kinds = ", ".join(sorted({type(leaf).__name__ for leaf in flat}))
        raise TypeError(
            "NFAugment found no image (PIL, tensor of 3 or 4 dimensions, tv_tensor) among: " + kinds
        )
    labels = _find_labels(paths, where, num_classes > 1) if num_classes else None
    if labels is not None:
        labels = check_labels(labels, num_classes, labels.device)
    return Inputs(flat, spec, where, labels)


def count_images(image: Any) -> int:
    """B of a batch (B, C, H, W), 1 of a single image.

    >>> count_images(torch.zeros(4, 3, 8, 8))
    4
    """
    return len(image) if isinstance(image, Tensor) and image.ndim == 4 else 1


def class_of(label: Any) -> int:
    """The class that the label of one image names: an int, or an array or tensor of one integer.

    >>> class_of(torch.tensor(3))
    3

    Raises:
        TypeError: no label, or one that is mixed or soft.
    """
    number: Any = label.item() if isinstance(label, Tensor) and label.numel() == 1 else label
    try:
        return operator.index(number)
    except (TypeError, RuntimeError, ValueError):
        raise TypeError(
            f"expected one integer label an image, got {label!r}; mixed or soft labels have no class"
        ) from None


def check_image(image: Any, channels: int) -> None:
    """Raises where a PIL image or tensor (..., C, H, W) has another mode, channels or dtype.

    >>> check_image(torch.zeros(1, 8, 8), channels=3)
    Traceback (most recent call last):
    ValueError: this flow takes images of 3 channels, got 1; convert the images, or train a flow
    """
    if isinstance(image, PIL.Image.Image):
        mode = {1: "L", 3: "RGB"}.get(channels)
        if image.mode != mode:
            deep = image.mode[0] in "IF"  # which convert() would clip to black and white
            remedy = f'convert first: image.convert("{mode}")'
            remedy = "bring them to 8 bits first" if deep else remedy
            raise ValueError(
                f"this flow takes PIL images of mode {mode}, got {image.mode}; {remedy}"
            )
    elif image.shape[-3] != channels:
        raise ValueError(
            f"this flow takes images of {channels} channels, got {image.shape[-3]}; "
            "convert the images, or train a flow"
        )
    elif image.dtype != torch.uint8 and not image.is_floating_point():
        raise TypeError(f"NFAugment takes uint8 or float images, got {image.dtype}")


def check_range(x: Tensor) -> None:
    """Raises ValueError where float images that are not normalised lie outside [0, 1].

    >>> check_range(torch.zeros(1, 3, 8, 8))
    """
    if x.dtype == torch.uint8 or not len(x):
        return
    low, high = (float(v) for v in x.aminmax())
    if not (low >= -0.01 and high <= 1.01):
        raise ValueError(
            f"float images must be in [0, 1], got {low:.3g} to {high:.3g}; "
            "for normalised images pass mean= and std=, for levels 0..255 use uint8"
        )


@functools.lru_cache(maxsize=4096)
def _one_label(label: int, num_classes: int) -> Tensor:
    """One label as a tensor (1,), not to be changed; kept, as the labels of a dataset recur."""
    with torch.inference_mode(False):  # it may be used outside of it later
        return check_labels(torch.tensor([label]), num_classes, torch.device("cpu"))


def _image_positions(flat: list[Any]) -> list[int]:
    typed = [i for i, v in enumerate(flat) if isinstance(v, (PIL.Image.Image, tv_tensors.Image))]
    if typed:
        return typed
    plain = [i for i, v in enumerate(flat) if _is_plain(v) and v.ndim in (3, 4)]
    return plain[:1]


def _is_plain(value: Any) -> bool:
    return isinstance(value, Tensor) and not isinstance(value, tv_tensors.TVTensor)


def _find_labels(paths: list[tuple[Any, Any]], where: list[int], needed: bool) -> Tensor | None:
    """Labels (B,) among (path, leaf) pairs."""
    found, others = [], []
    for i, (path, value) in enumerate(paths):
        own = None if i in where else _numbers(value)
        if own is None or own.ndim > 2:
            continue
        if _are_labels(own):
            keys = [k.key for k in path if isinstance(k, pytree.MappingKey)]
            found.append((keys[-1] if keys else None, own.reshape(-1)))
        else:
            others.append((own, value))
    for key, own in found:
        if key in ("label", "labels"):
            return own
    if len(found) > 1 and (
        len(where) > 1 or found[0][0] is not None
    ):  # a tuple's label comes first
        raise ValueError(
            f"{len(where)} images came with {len(found)} integers, any of which may be the label: "
            "call it label in a dict, or give one image, or batch, and its labels"
        )
    if found:
        return found[0][1]
    for own, value in others if needed else ():
        _refuse_numbers(own, value, count_images(paths[where[0]][1]))
    return None


def _are_labels(v: Tensor) -> bool:
    """Whether numbers are integers () , (B,) or (B, 1)."""
    integer = not v.is_floating_point() and v.dtype != torch.bool
    return integer and (v.ndim < 2 or v.shape[1] == 1)


def _numbers(value: Any) -> Tensor | None:
    """A number, an array or a plain tensor as a tensor; None for all else."""
    if isinstance(value, (int, float, np.number)) and not isinstance(value, bool):
        return torch.tensor(value if isinstance(value, (int, float)) else value.item())
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        integer = value.dtype.kind in "iu"
        return torch.from_numpy(value.astype(np.int64 if integer else np.float64))
    return value if _is_plain(value) else None


def _refuse_numbers(v: Tensor, value: Any, count: int) -> None:
    """Raises where numbers beside `count` images were meant as labels and name no class."""
    if v.ndim in (1, 2) and v.shape[-1] > 1 and _are_probabilities(v, count):
        raise ValueError(
            f"expected integer labels ({count},), got probabilities {tuple(v.shape)}: run NFA before "
            'mixup and one-hot encoding, or let the flow choose the class with labels="posterior"'
        )
    if v.ndim and count != 1 and len(v) != count:
        return
    array = isinstance(value, (Tensor, np.ndarray))
    kind = f"{value.dtype} {tuple(value.shape)}" if array else type(value).__name__
    raise TypeError(
        f"expected integer labels ({count},), got {kind}: convert them, or let the flow choose the "
        'class with labels="posterior"'
    )


def _are_probabilities(v: Tensor, count: int) -> bool:
    """Whether v is (B, K) or (K,) of rows that add up to 1, as mixup and one-hot encoding make."""
    rows = v.reshape(-1, v.shape[-1]).double()
    positive = len(rows) == count > 0 and bool((rows >= 0).all())
    return positive and bool(((rows.sum(1) - 1).abs() < 1e-2).all())
