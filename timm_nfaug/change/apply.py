"""Draws which images change, and adds a change to images of any kind, size and range."""

import functools
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from .. import lift, pixels
from ..moves.base import draw_noise
from ..pixels import PLAIN, Scale

LEVELS = np.float32(128)  # uint8 levels in a unit of the range [-1, 1]


def draw(count: int, p: float, noise_size: int, g: torch.Generator) -> tuple[Tensor | None, Tensor]:
    """Chooses each of `count` images with probability p, and draws the noise of the chosen ones.

    Returns:
        rows (b,), the indices of the chosen images on the CPU, or None where all are chosen; and
        noise (b, noise_size), on the generator's device.

    >>> rows, noise = draw(4, 0.5, 32, torch.Generator().manual_seed(0))
    >>> rows.tolist(), noise.shape
    ([0, 2, 3], torch.Size([3, 32]))
    """
    rows = None
    if p < 1:
        hits = torch.rand(count, generator=g, device=g.device) < p
        number = int(hits.sum() if count != 1 else hits)
        if not number:
            return _nothing(noise_size)
        if number < count:
            rows, count = torch.nonzero(hits).flatten().cpu(), number
    return rows, draw_noise(count, noise_size, g)


@functools.lru_cache(maxsize=16)
def _nothing(noise_size: int) -> tuple[Tensor, Tensor]:
    """What `draw` gives if no image is chosen; cached, as that is half of the calls at p 0.5."""
    with torch.inference_mode(False):  # they may be used outside of it later
        return torch.empty(0, dtype=torch.int64), torch.empty(0, noise_size)


def to_model(x: Tensor, scale: Scale = PLAIN) -> Tensor:
    """Images (B, C, H, W), uint8 or as `scale` says, as float32 in [-1, 1].

    >>> to_model(torch.tensor([[[[0.0, 1.0]]]])).round(decimals=2).tolist()
    [[[[-1.0, 1.0]]]]
    """
    return (
        pixels.levels_to_model(x) if scale.is_levels(x) else pixels.unit_to_model(scale.to_unit(x))
    )


def add_change(image: Any, change: Tensor, rows: Tensor | None = None, scale: Scale = PLAIN) -> Any:
    """Adds a change (b, c, h, w) in units of [-1, 1]: a new image of the kind that came.

    Args:
        image: a PIL image of levels (b is 1), or images (B, C, H, W), uint8 or as `scale` says.
        rows: indices (b,) of the images that change; None: all of them.

    >>> levels = torch.full((2, 3, 4, 4), 100, dtype=torch.uint8)
    >>> add_change(levels, torch.full((2, 3, 1, 1), 0.5))[0, 0, 0].tolist()
    [164, 164, 164, 164]
    """
    if isinstance(image, PIL.Image.Image):
        own = change if change.is_cpu else change.cpu()
        return lift.add_to_image(image, own.numpy()[0] * LEVELS)
    unit = torch.tensor(LEVELS if scale.is_levels(image) else LEVELS / 255).to(change.device)
    if not scale.is_levels(image):
        low, high = scale.bounds(change)
        unit = unit * (high - low)
    ends = scale.limits(image)
    change = (change * unit).to(image.device)
    if scale.value_range is None:
        return lift.add(image, change, *ends, rows)
    return lift.add(pixels.widened(image), change, *ends, rows, keep=True).to(image.dtype)
