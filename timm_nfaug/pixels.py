"""Pixel ranges: uint8 levels, floats in [0, 1], timm-normalised floats, and the flow's own range [-1, 1].

A level ``u`` of ``2**bits`` stands for the interval ``[u, u + 1)``, mapped linearly onto [-1, 1]; its centre is the
value a flow sees at evaluation, and uniform noise inside it is the dequantisation of training
(Theis et al., "A note on the evaluation of generative models", 2016).
"""

from __future__ import annotations

import math

import numpy as np
import PIL.Image
import torch
from torch import Tensor


def check_bits(bits: int) -> int:
    if bits not in range(1, 9):
        raise ValueError(f"bits must be an integer from 1 to 8, got {bits!r}")
    return int(bits)


def levels_to_model(levels: Tensor) -> Tensor:
    """uint8 levels 0..255 of any shape to float32 in [-1, 1], at the centre of each level."""
    if levels.dtype != torch.uint8:
        raise TypeError(
            f"levels_to_model expects a uint8 tensor, got {levels.dtype}; use unit_to_model for floats"
        )
    return levels.to(torch.float32).add_(0.5).mul_(2 / 256).sub_(1)


def levels_of(image: PIL.Image.Image | Tensor) -> Tensor:
    """A PIL image of mode RGB or L, or a uint8 tensor (C, H, W), as uint8 levels (C, H, W), a new tensor if of PIL."""
    if isinstance(image, Tensor) and image.dtype == torch.uint8 and image.ndim == 3:
        return image
    if not isinstance(image, PIL.Image.Image) or image.mode not in ("L", "RGB"):
        what = getattr(image, "mode", type(image).__name__)
        what = f"{tuple(image.shape)} {image.dtype}" if isinstance(image, Tensor) else what
        raise TypeError(
            f"expected a PIL image of mode RGB or L, or a uint8 tensor (C, H, W), got {what}"
        )
    array = np.asarray(image).reshape(image.height, image.width, -1).transpose(2, 0, 1)
    return torch.from_numpy(np.array(array, order="C"))  # plane by plane, as what is added to it


def model_to_levels(x: Tensor) -> Tensor:
    """The nearest uint8 level of each value in [-1, 1]; values outside are clamped."""
    return x.add(1).mul_(128).sub_(0.5).round_().clamp_(0, 255).to(torch.uint8)


def unit_to_model(x: Tensor) -> Tensor:
    """Floats in [0, 1] (level / 255, as ToTensor and ToDtype(scale=True) give) to [-1, 1], float32."""
    return x.to(torch.float32).mul(255).add_(0.5).mul_(2 / 256).sub_(1)


def model_to_unit(x: Tensor) -> Tensor:
    """Inverse of `unit_to_model`, clamped to [0, 1]."""
    return x.add(1).mul_(128).sub_(0.5).div_(255).clamp_(0, 1)


def channel_stats(mean, std, like: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and std, one or C numbers, as (1 or C, 1, 1) float32 tensors on the device of `like` (..., C, H, W)."""
    mean, std = (
        torch.as_tensor(v, dtype=torch.float32, device=like.device).reshape(-1, 1, 1)
        for v in (mean, std)
    )
    for name, values in (("mean", mean), ("std", std)):
        if len(values) not in (1, like.shape[-3]):
            raise ValueError(
                f"{name} must be one number or one for each of the {like.shape[-3]} channels, got {values.flatten().tolist()}"
            )
    if bool((std <= 0).any()):
        raise ValueError(f"std must be positive in every channel, got {std.flatten().tolist()}")
    return mean, std


def dequantize(levels: Tensor, bits: int = 8, generator: torch.Generator | None = None) -> Tensor:
    """uint8 levels 0..255 to float32 in [-1, 1] with uniform noise inside each of the ``2**bits`` levels.

    Args:
        levels: (..., ) uint8.
        bits: depth; below 8 the lowest bits are dropped first (the paper's 5-bit models).
        generator: source of the noise, on the CPU or on the device of `levels`.
    """
    check_bits(bits)
    if levels.dtype != torch.uint8:
        raise TypeError(f"dequantize expects uint8 levels, got {levels.dtype}")
    device = generator.device if generator is not None else levels.device
    noise = torch.rand(levels.shape, generator=generator, device=device).to(levels.device)
    kept = levels if bits == 8 else levels >> (8 - bits)
    return kept.to(torch.float32).add_(noise).mul_(2.0 / 2**bits).sub_(1)


def bits_per_dim(log_prob: Tensor, dim: int, bits: int = 8) -> Tensor:
    """Bits per dimension of a density over [-1, 1] for data with ``2**bits`` levels.

    Args:
        log_prob: (B,) log density in nats.
        dim: number of dimensions of an image, C * H * W.
    """
    return -log_prob / (dim * math.log(2)) + (bits - 1)  # a level is 2 / 2**bits wide
