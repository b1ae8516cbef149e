"""Finds the images in what a transform is called with, and refuses what it cannot take."""

import functools
from typing import Any, NamedTuple

import PIL.Image
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torchvision import tv_tensors

from .labels import find_labels, is_row, labels_of
from .pixels import channel_stats


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
    dimensions is. Labels are found as `timm_nfaug.labels.find_labels` says. Raises where no image
    came, or what stands where a label belongs is none.

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
        shapes = [f" {tuple(v.shape)}" if isinstance(v, Tensor) else "" for v in flat]
        kinds = ", ".join(sorted({type(v).__name__ + s for v, s in zip(flat, shapes, strict=True)}))
        if "ndarray" in kinds:
            kinds += "; an array (H, W, C) becomes one by PIL.Image.fromarray"
        raise TypeError(
            f"NFAugment found no image (PIL, tensor of 3 or 4 dimensions, tv_tensor) among: {kinds}"
        )
    count = count_images(flat[where[0]])
    labels = find_labels(leaves, where, count, num_classes) if num_classes else None
    return Inputs(flat, spec, where, labels)


def count_images(image: Any) -> int:
    """B of a batch (B, C, H, W), 1 of a single image.

    >>> count_images(torch.zeros(4, 3, 8, 8))
    4
    """
    return len(image) if isinstance(image, Tensor) and image.ndim == 4 else 1


def check_image(image: Any, channels: int) -> None:
    """Raises where a PIL image or tensor (..., C, H, W) has another mode, channels or dtype.

    >>> check_image(torch.zeros(3, 8, 8), channels=3)
    """
    if isinstance(image, PIL.Image.Image):
        if image.mode != (mode := {1: "L", 3: "RGB"}.get(channels)):
            raise ValueError(
                f"this flow takes PIL images of mode {mode}, got {image.mode}; "
                + _mode_remedy(image, mode)
            )
    elif image.shape[-3] != channels:
        got, size = image.shape[-3], tuple(min(32, n) for n in image.shape[-2:])
        remedy = f"NFAugment.from_data(loader, input_size={(got, *size)}) makes a flow of such"
        if image.shape[-1] == channels:
            remedy = "its last dimension may be the channels: permute it to (C, H, W)"
        raise ValueError(
            f"this flow takes images of {channels} channels, got {got}; convert them; {remedy}"
        )
    elif image.dtype != torch.uint8 and not image.is_floating_point():
        raise TypeError(
            f"NFAugment takes uint8 or float images, got {image.dtype}; "
            "bring them to levels 0..255 as uint8, or to floats in [0, 1], first"
        )


def _mode_remedy(image: PIL.Image.Image, mode: str | None) -> str:
    if mode is None:
        return "give tensors (C, H, W), or take a flow of 1 or 3 channels"
    if image.mode[0] in "IF":  # which convert() would clip to black and white
        return "bring them to 8 bits first"
    size = (min(32, image.height), min(32, image.width))
    grey = f"; NFAugment.from_data(loader, input_size={(1, *size)}) makes a flow of grey images"
    return f'convert first: image.convert("{mode}")' + grey * (image.mode == "L")


def check_range(x: Tensor, mean: Any = None, std: Any = None) -> None:
    """Raises ValueError where float images lie outside [0, 1], or far outside once un-normalised.

    >>> check_range(torch.zeros(1, 3, 8, 8))
    """
    if x.dtype == torch.uint8 or not len(x):
        return
    slack, undone = 0.01, ""
    if mean is not None:
        mean, std = channel_stats(mean, std, x)
        x, slack, undone = x * std + mean, 0.5, " once normalisation by mean and std is undone"
    low, high = (float(v) for v in x.aminmax())
    if not (low >= -slack and high <= 1 + slack):
        near = "resizing with antialiasing, or bicubic, may leave it: images.clamp(0, 1) after it; "
        raise ValueError(
            f"float images must be in [0, 1]{undone}, got {low:.3g} to {high:.3g}; "
            + near * (low > -0.5 and high < 1.5)
            + "for normalised images pass mean= and std=, for levels 0..255 use uint8"
        )


@functools.lru_cache(maxsize=4096)
def _one_label(label: int, num_classes: int) -> Tensor:
    """One label as a tensor (1,), not to be changed; kept, as the labels of a dataset recur."""
    with torch.inference_mode(False):  # it may be used outside of it later
        return labels_of(label, 1, num_classes)


def _image_positions(flat: list[Any]) -> list[int]:
    typed = [i for i, v in enumerate(flat) if isinstance(v, (PIL.Image.Image, tv_tensors.Image))]
    large = [i for i, v in enumerate(flat) if isinstance(v, Tensor) and v.ndim in (3, 4)]
    return typed or [i for i in large if not isinstance(flat[i], tv_tensors.TVTensor)][:1]
