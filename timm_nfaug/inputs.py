"""Finds the images in what a transform is called with, and refuses what it cannot take."""

import functools
import math
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torchvision import tv_tensors

from .labels import find_labels, is_row, labels_of
from .pixels import PLAIN, Scale, batch_of, widened

ARRAYS = (Tensor, np.ndarray)


class RangeError(ValueError):
    """Says that the values of images lie outside of their range, or that nobody said their range.

    >>> issubclass(RangeError, ValueError)
    True
    """


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

    Images are PIL images and `tv_tensors.Image`; where there is neither, the first tensor or array
    of 3 or 4 dimensions is, or else the first array (H, W). Labels are found as
    `timm_nfaug.labels.find_labels` says. Raises where no image came, or what stands where a label
    belongs is none.

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
    nested = inputs if len(inputs) > 1 else inputs[0]
    leaves, spec = pytree.tree_flatten_with_path(nested, is_leaf=is_row)
    flat = [leaf for _, leaf in leaves]
    where = _image_positions(flat)
    if not where:
        shapes = [f" {tuple(v.shape)}" if isinstance(v, ARRAYS) else "" for v in flat]
        kinds = ", ".join(sorted({type(v).__name__ + s for v, s in zip(flat, shapes, strict=True)}))
        wanted = "PIL, tensor of 3 or 4 dimensions, tv_tensor, array (H, W, C)"
        raise TypeError(f"NFAugment found no image ({wanted}) among: {kinds}")
    count = count_images(flat[where[0]])
    labels = find_labels(leaves, where, count, num_classes) if num_classes else None
    return Inputs(flat, spec, where, labels)


def count_images(image: Any) -> int:
    """B of a batch (B, C, H, W) or array (B, H, W, C), 1 of a single image.

    >>> count_images(torch.zeros(4, 3, 8, 8))
    4
    """
    return len(image) if isinstance(image, ARRAYS) and image.ndim == 4 else 1


def check_image(image: Any, channels: int, scale: Scale = PLAIN) -> None:
    """Raises where an image or batch, of any kind, has another mode, channels or dtype.

    >>> check_image(torch.zeros(3, 8, 8), channels=3)

    Raises:
        RangeError: integers other than uint8, whose range `scale` does not say.
    """
    if isinstance(image, PIL.Image.Image):
        mode = {1: "L", 3: "RGB"}.get(channels)
        deep = scale.value_range is not None and channels == 1 and image.mode[0] in "IF"
        if image.mode != mode and not deep:
            raise ValueError(
                f"this flow takes PIL images of mode {mode}, got {image.mode}; "
                + _mode_remedy(image, mode)
            )
        return
    x = image if isinstance(image, Tensor) else batch_of(image)
    if (got := x.shape[-3]) != channels:
        raise ValueError(
            f"this flow takes images of {channels} channels, got {got}; convert them; "
            + _channels_remedy(image, x, channels)
        )
    if x.dtype == torch.bool or x.is_complex():
        raise TypeError(f"NFAugment takes integers or floats for images, got {x.dtype}")
    if not (scale.is_levels(x) or scale.value_range or x.is_floating_point()):
        raise RangeError(
            f"NFAugment takes uint8 or float images, got {x.dtype}; bring them to levels 0..255 "
            "as uint8, or pass value_range=(low, high), e.g. (0, 4095) for 12 bits"
        )


def _channels_remedy(image: Any, x: Tensor, channels: int) -> str:
    if isinstance(image, np.ndarray) and channels in image.shape[-3:-1]:
        return "an array has its channels last: transpose it to (H, W, C)"
    if isinstance(image, np.ndarray) and channels == 1 and image.ndim == 3:
        return "a stack of grey images needs an axis for the channel: array[..., None]"
    if x.shape[-1] == channels:
        return "its last dimension may be the channels: permute it to (C, H, W)"
    size = (x.shape[-3], *(min(32, n) for n in x.shape[-2:]))
    return f"NFAugment.from_data(loader, input_size={size}) makes a flow of such"


def _mode_remedy(image: PIL.Image.Image, mode: str | None) -> str:
    if mode is None:
        return "give tensors (C, H, W) or arrays (H, W, C), or take a flow of 1 or 3 channels"
    if image.mode[0] in "IF":  # which convert() would clip to black and white
        return (
            "bring them to 8 bits first, or take a flow of 1 channel with value_range=(low, high)"
        )
    size = (min(32, image.height), min(32, image.width))
    grey = f"; NFAugment.from_data(loader, input_size={(1, *size)}) makes a flow of grey images"
    return f'convert first: image.convert("{mode}")' + grey * (image.mode == "L")


def check_range(x: Tensor, scale: Scale = PLAIN) -> None:
    """Raises a RangeError where images (B, C, H, W) lie outside of the range that `scale` says.

    1% of the range is allowed for, and half of it once normalisation by mean and std is undone.

    >>> check_range(torch.zeros(1, 3, 8, 8))
    """
    if scale.is_levels(x) or not x.numel():
        return
    low, high = (float(v) for v in x.aminmax()) if scale.is_plain else _unit_ends(x, scale)
    slack = 0.01 if scale.mean is None else 0.5
    if low >= -slack and high <= 1 + slack:
        return
    if not math.isfinite(low + high):
        raise RangeError("images hold NaN or infinite values; fill them: torch.nan_to_num(images)")
    if scale.value_range:
        raise RangeError(_outside(x, scale))
    undone = "" if scale.mean is None else " once normalisation by mean and std is undone"
    near = "resizing with antialiasing, or bicubic, may leave it: images.clamp(0, 1) after it; "
    raise RangeError(
        f"float images must be in [0, 1]{undone}, got {low:.3g} to {high:.3g}; "
        + near * (low > -0.5 and high < 1.5)
        + "for normalised images pass mean= and std=, for levels 0..255 use uint8, for any other "
        "range pass value_range=(low, high)"
    )


def channel_ends(x: Tensor) -> tuple[Tensor, Tensor]:
    """The least and greatest value of each channel of images (B, C, H, W): (C,), float64.

    >>> channel_ends(torch.ones(2, 3, 8, 8))[0].tolist()
    [1.0, 1.0, 1.0]
    """
    x = widened(x)
    return x.amin((0, 2, 3)).double(), x.amax((0, 2, 3)).double()


def _unit_ends(x: Tensor, scale: Scale) -> tuple[float, float]:
    low, high = (scale.to_unit(v.view(-1, 1, 1)) for v in channel_ends(x))
    return float(low.min()), float(high.max())  # NaN where one is


def _outside(x: Tensor, scale: Scale) -> str:
    """Says which channel lies outside of the value_range, and its values."""
    low, high = (scale.to_unit(v.view(-1, 1, 1)).flatten() for v in channel_ends(x))
    c = int(torch.maximum(-low, high - 1).argmax())
    least, most = (v.flatten()[c % v.numel()] for v in scale.bounds(x))
    a, b = (v[c] for v in channel_ends(x))
    got = f"value_range is {least:g} to {most:g} in channel {c}, got {a:g} to {b:g}"
    if x.dtype == torch.uint8:
        return (
            f"{got}: the modes are of images on another scale, as Normalize makes them, and these "
            "are of 8 bits; make the augmentation of a loader without Normalize, or put it after it"
        )
    return f"{got}; give one that holds all of your images: value_range=(low, high)"


@functools.lru_cache(maxsize=4096)
def _one_label(label: int, num_classes: int) -> Tensor:
    """One label as a tensor (1,), not to be changed; kept, as the labels of a dataset recur."""
    with torch.inference_mode(False):  # it may be used outside of it later
        return labels_of(label, 1, num_classes)


def _image_positions(flat: list[Any]) -> list[int]:
    typed = [i for i, v in enumerate(flat) if isinstance(v, (PIL.Image.Image, tv_tensors.Image))]
    if typed:
        return typed
    plain = [i for i, v in enumerate(flat) if _is_plain(v)]
    large = [i for i in plain if flat[i].ndim in (3, 4)]
    grey = [i for i in plain if flat[i].ndim == 2 and isinstance(flat[i], np.ndarray)]
    return (large or grey)[:1]


def _is_plain(value: Any) -> bool:
    """Whether it is a tensor or array that says nothing of what it holds."""
    numbers = isinstance(value, np.ndarray) and value.dtype.kind in "uif"
    return numbers or (isinstance(value, Tensor) and not isinstance(value, tv_tensors.TVTensor))
