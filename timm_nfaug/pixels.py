"""Pixel ranges: uint8 levels, floats in [0, 1], normalised floats, and the flow's range [-1, 1].

A level u of ``2**bits`` is the interval [u, u + 1), mapped linearly onto [-1, 1]: a flow sees its
centre, and in training uniform noise inside it (Theis et al., 2016: dequantisation).
"""

import math

import numpy as np
import PIL.Image
import torch
from torch import Tensor


def levels_to_model(levels: Tensor) -> Tensor:
    """Maps uint8 levels of any shape to float32 in [-1, 1], at the centre of each level.

    >>> levels_to_model(torch.tensor([0, 255], dtype=torch.uint8)) * 256
    tensor([-255.,  255.])
    """
    if levels.dtype != torch.uint8:
        raise TypeError(f"expected uint8 levels, got {levels.dtype}; use unit_to_model for floats")
    return levels.to(torch.float32).add_(0.5).mul_(2 / 256).sub_(1)


def levels_of(image: PIL.Image.Image | Tensor) -> Tensor:
    """uint8 levels (C, H, W) of a PIL image of mode RGB or L (a copy), or such a tensor itself.

    >>> levels_of(PIL.Image.new("RGB", (6, 4))).shape
    torch.Size([3, 4, 6])
    """
    if isinstance(image, Tensor) and image.dtype == torch.uint8 and image.ndim == 3:
        return image
    if not isinstance(image, PIL.Image.Image) or image.mode not in ("L", "RGB"):
        what = getattr(image, "mode", type(image).__name__)
        what = f"{tuple(image.shape)} {image.dtype}" if isinstance(image, Tensor) else what
        wanted = "a PIL image of mode RGB or L, or a uint8 tensor (C, H, W)"
        raise TypeError(f"expected {wanted}, got {what}")
    array = np.asarray(image).reshape(image.height, image.width, -1).transpose(2, 0, 1)
    return torch.from_numpy(np.array(array, order="C"))  # plane by plane, as what is added to it


def model_to_levels(x: Tensor) -> Tensor:
    """Maps [-1, 1] to the nearest uint8 levels; values outside are clamped.

    >>> model_to_levels(torch.tensor([-2.0, 0.0, 1.0]))
    tensor([  0, 128, 255], dtype=torch.uint8)
    """
    return x.add(1).mul_(128).sub_(0.5).round_().clamp_(0, 255).to(torch.uint8)


def unit_to_model(x: Tensor) -> Tensor:
    """Maps floats in [0, 1] (level / 255, as ToTensor gives) to [-1, 1], float32.

    >>> unit_to_model(torch.tensor([0.5]))
    tensor([0.])
    """
    return x.to(torch.float32).mul(255).add_(0.5).mul_(2 / 256).sub_(1)


def channel_stats(mean, std, like: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and std, one or C numbers, as float32 (1 or C, 1, 1), for images as `like` (.., C, H, W).

    >>> channel_stats([0.5, 0.5, 0.5], 0.2, torch.zeros(3, 8, 8))[0].shape
    torch.Size([3, 1, 1])
    """
    found, channels = [], like.shape[-3]
    for name, values in (("mean", mean), ("std", std)):
        values = torch.as_tensor(values, dtype=torch.float32, device=like.device).reshape(-1, 1, 1)
        got = values.flatten().tolist()
        if len(got) not in (1, channels):
            wanted = f"one number or one for each of the {channels} channels"
            raise ValueError(f"{name} must be {wanted}, got {got}")
        if name == "mean" and not 0 <= min(got) <= max(got) <= 1:
            raise ValueError(
                f"mean and std are of images in [0, 1], got mean {got}; divide those of levels "
                "0..255 by 255"
            )
        if name == "std" and min(got) <= 0:
            raise ValueError(f"std must be positive in every channel, got {got}")
        found.append(values)
    return found[0], found[1]


def dequantize(levels: Tensor, bits: int = 8, generator: torch.Generator | None = None) -> Tensor:
    """Maps uint8 levels to float32 in [-1, 1] with uniform noise inside each of ``2**bits`` levels.

    Below 8 bits the lowest bits are dropped. `generator` is on the CPU or where the levels are.

    >>> dequantize(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), bits=5).max() < -1 + 2 / 32
    tensor(True)
    """
    if bits not in range(1, 9):
        raise ValueError(f"bits must be an integer from 1 to 8, got {bits!r}")
    if levels.dtype != torch.uint8:
        raise TypeError(f"dequantize expects uint8 levels, got {levels.dtype}")
    device = generator.device if generator is not None else levels.device
    noise = torch.rand(levels.shape, generator=generator, device=device).to(levels.device)
    kept = levels if bits == 8 else levels >> (8 - bits)
    return kept.to(torch.float32).add_(noise).mul_(2.0 / 2**bits).sub_(1)


def bits_per_dim(log_prob: Tensor, dim: int, bits: int = 8) -> Tensor:
    """Bits per dimension of log densities (B,) in nats over [-1, 1]^dim, for ``2**bits`` levels.

    >>> bits_per_dim(torch.tensor([-12 * math.log(2)]), dim=12)  # the uniform density
    tensor([8.])
    """
    return -log_prob / (dim * math.log(2)) + (bits - 1)  # a level is 2 / 2**bits wide
