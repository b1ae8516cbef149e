"""cosine: modes without data, smooth shades in grey and two colours.

They are cosine images of the lowest frequencies along both axes, with standard deviations that fall as
1/f, as the amplitudes of natural images do (Field, JOSA A 1987).
"""

import math

import torch
from torch import Tensor

from .._utils.checks import check_modes
from ..hub import COSINE, LINEAR
from .model import ConditionalFlow
from .registry import create_flow

COLOURS = (
    (1.0, 1.0, 1.0),
    (1.0, 0.0, -1.0),
    (1.0, -2.0, 1.0),
)  # grey, blue to red, magenta to green
CHROMA = 0.24  # of each colour over grey: 94% of the energy of 32 is grey (93% in CIFAR-10)
# standard deviation of uniform brightness, in units of [-1, 1]. With it the standard deviations along
# 32 modes of 3 x 32 x 32 have a norm of 24.58, as those that `NFAugment.from_data` finds in the
# 50,000 training images of CIFAR-10; those of `linear.cifar10`, pooled, have 24.45
BRIGHTNESS = 0.181
FLOOR = 0.02  # of a pixel's variance: what the modes leave of it (see `ClassGaussians`)


def cosine_modes(input_size: tuple[int, int, int], modes: int) -> tuple[Tensor, Tensor]:
    """Makes cosine images (r, C * H * W), orthonormal, and standard deviations (r,), largest first.

    A pixel changes as much at every `input_size`. Fewer modes are the first of more.

    Args:
        input_size: (C, H, W); images of other than 3 channels are shaded in grey alone.
        modes: r, at most as many as there are pixels.

    >>> images, std = cosine_modes((3, 8, 8), modes=4)
    >>> images.shape, [f"{s / std[0]:.2f}" for s in std]
    (torch.Size([4, 192]), ['1.00', '1.00', '1.00', '0.71'])
    """
    c, h, w = input_size
    colours = COLOURS if c == 3 else ((1.0,) * c,)
    if modes > (most := h * w * len(colours)):
        raise ValueError(
            f"{modes} modes were asked for, there are {most} cosine images of {c} x {h} x {w}; "
            "lower modes, or take a larger input_size"
        )
    found = [
        ((CHROMA if i else 1.0) / max(1.0, math.hypot(u, v)), u, v, i)
        for u in range(min(h, modes))  # lower frequencies come first
        for v in range(min(w, modes))
        for i in range(len(colours))
    ]
    found = sorted(found, key=lambda mode: -mode[0])[:modes]
    std = torch.tensor([s for s, *_ in found]) * (BRIGHTNESS * math.sqrt(c * h * w))
    images = [_cosine_image((h, w), (u, v), colours[i]) for _, u, v, i in found]
    return torch.stack(images), std


def _cosine_image(
    size: tuple[int, int], waves: tuple[int, int], colour: tuple[float, ...]
) -> Tensor:
    """A cosine image (C * H * W,) of norm 1, of so many half waves along height and width."""
    lines = [torch.cos(k * (torch.arange(n) + 0.5) * torch.pi / n) for n, k in zip(size, waves)]
    image = torch.outer(*lines) * torch.tensor(colour).view(-1, 1, 1)  # (C, H, W)
    return image.flatten() / image.norm()


def cosine_flow(input_size: tuple[int, int, int] = (3, 32, 32), modes: int = 32) -> ConditionalFlow:
    """Makes the linear flow whose modes are cosine images; arguments as for `cosine_modes`.

    >>> cosine_flow(modes=8).prior.modes.shape
    torch.Size([1, 8, 3072])
    """
    known = {"fixed_modes": COSINE, "data": "none"}
    count = {"num_modes": check_modes(modes)}
    flow = create_flow(LINEAR, input_size=input_size, num_classes=1, prior=count, info=known)
    images, std = cosine_modes(flow.config.input_size, modes)
    flow.prior.set_modes(images.unsqueeze(0), std.unsqueeze(0))
    flow.prior.set_variance((FLOOR * std.square().sum() / flow.dim).expand_as(flow.prior.mu))
    return flow.eval().requires_grad_(False)
