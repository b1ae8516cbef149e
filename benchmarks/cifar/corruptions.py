"""Ten corruptions in the manner of CIFAR-10-C (Hendrycks & Dietterich 2019), by torchvision's operations.

One middle severity each; not the published set, whose images cannot be made without its own code.
Each takes and gives uint8 images (B, C, H, W); the noise draws from torch's global generator.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.transforms import v2


def _noise(levels: Tensor) -> Tensor:
    return v2.functional.to_dtype(
        v2.GaussianNoise(sigma=0.08)(levels.float() / 255), torch.uint8, scale=True
    )


def _pixelate(levels: Tensor) -> Tensor:
    small = v2.functional.resize(levels, [levels.shape[2] * 5 // 8, levels.shape[3] * 5 // 8])
    return v2.functional.resize(small, list(levels.shape[2:]), v2.InterpolationMode.NEAREST)


CORRUPTIONS = {
    "gaussian noise": _noise,
    "gaussian blur": lambda x: v2.functional.gaussian_blur(x, [5, 5], [1.0, 1.0]),
    "brightness": lambda x: v2.functional.adjust_brightness(x, 1.5),
    "darkness": lambda x: v2.functional.adjust_brightness(x, 0.5),
    "contrast": lambda x: v2.functional.adjust_contrast(x, 0.4),
    "saturation": lambda x: v2.functional.adjust_saturation(x, 0.2),
    "hue": lambda x: v2.functional.adjust_hue(x, 0.15),
    "posterize": lambda x: v2.functional.posterize(x, 3),
    "pixelate": _pixelate,
    "rotation": lambda x: v2.functional.rotate(x, 15, v2.InterpolationMode.BILINEAR),
}
