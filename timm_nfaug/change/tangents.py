"""TangentChange: what moves change, from pictures of each image that a cache holds; no flow needed.

An image of code z changes by ``f^-1(z + move) - f^-1(z)``, about a weighted sum of pictures: one
for each mode, linear in the noise, and four for the bend of the flow. How far off that is, is
measured in benchmarks/analysis/tangents.py.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..flows.model import ConditionalFlow
from ..moves import create_move
from .base import Change, Images

BENDS = 4


@dataclass(eq=False)
class TangentChange(Change):
    """Weighted sums of packed pictures; never looks at the images.

    >>> pictures = packed(torch.ones(1, 6, 3, 2, 2))[0]  # one image, two modes
    >>> change = TangentChange(pictures, [0], (3, 2, 2), stored=2, noise_size=2, strength=0.5)
    >>> change.change(None, None, torch.tensor([[1.0, 1.0]])).unique()
    tensor([1.7500])
    """

    pictures: Tensor  # (N * (stored + 4), c * h * w + 8), `packed`, of N images
    rows: list[int]  # (B,) which of the N images these are
    size: tuple[int, int, int]  # (c, h, w)
    stored: int  # number of modes that each image has pictures of
    noise_size: int  # number of modes moved along, at most `stored`
    strength: float  # as for `NFAugment`
    num_classes = 1  # the pictures are those of each image's own class

    def change(self, images: Images, y: Tensor | None, noise: Tensor) -> Tensor:
        used = np.array([*range(self.noise_size), *range(self.stored, self.stored + BENDS)])
        own = np.array(self.rows, np.int64)[:, None] * (self.stored + BENDS) + used  # (B, n + 4)
        w = torch.from_numpy(weights(noise.numpy(), self.strength, self.stored))
        return summed(self.pictures, torch.from_numpy(own), w).view(-1, *self.size)


@torch.no_grad()
def tangents(
    flow: ConditionalFlow,
    z: Tensor,
    y: Tensor,
    modes: int = 32,
    step: float = 0.5,
    kind: str = "pca",
) -> Tensor:
    """Pictures (B, modes + 4, C, H, W) of how images of codes z (B, D) and labels y (B,) change.

    A move by noise e (modes,) at strength s changes an image by about the sum of these pictures
    with the `weights` of e and s. They are fitted to moves of strength `step` by all modes, one way
    and the opposite: the odd part is linear in e, the even part is the bend, made of the squares
    and the product of the first two modes and the mean square of the others.

    >>> from timm_nfaug import create_flow
    >>> flow = create_flow("conv_p4_tiny", input_size=(3, 8, 8), num_classes=2, depth=1)
    >>> tangents(flow, torch.zeros(1, flow.dim), torch.tensor([1]), modes=2).shape
    torch.Size([1, 6, 3, 8, 8])
    """
    at_rest, move = flow.inverse(z), create_move(kind, modes, step)
    found = at_rest.new_zeros(len(z), modes + BENDS, *at_rest.shape[1:])
    for e, share in zip(*(v.to(z) for v in _directions(modes)), strict=True):
        delta = move.displacement(flow, y, e.expand(len(z), -1))
        there, back = flow.inverse(z + delta), flow.inverse(z - delta)
        odd, even = (there - back) / (2 * step), ((there + back) / 2 - at_rest) / step**2
        share = share.view(-1, 1, 1, 1)  # (modes + 4, 1, 1, 1)
        found[:, :modes] += share[:modes] * odd.unsqueeze(1)
        found[:, modes:] += share[modes:] * even.unsqueeze(1)
    return found


def _directions(modes: int) -> tuple[Tensor, Tensor]:
    """Moves (2 modes, modes) to fit to, and the share (2 modes, modes + 4) of each in each picture.

    They are the axes of two random frames, as long as noise is on average: the least squares fit of
    a linear map to an orthogonal frame is exact, with nothing to invert.
    """
    g = torch.Generator().manual_seed(0)
    frames = torch.empty(2, modes, modes, dtype=torch.float64)
    for frame in frames:
        torch.nn.init.orthogonal_(frame, gain=math.sqrt(modes), generator=g)
    directions = frames.flatten(0, 1)
    bends = torch.from_numpy(weights(directions.numpy(), 1.0, modes)[:, modes:])
    straight = directions / len(directions)
    return directions, torch.cat([straight, torch.linalg.pinv(bends).T], dim=1)


def weights(noise: np.ndarray, strength: float, modes: int) -> np.ndarray:
    """Weights (B, n + 4) of pictures of `modes` modes for noise (B, n), those of the bend last.

    >>> weights(np.array([[1.0, 2.0, 3.0]]), 1.0, 3)[0].tolist()
    [1.0, 2.0, 3.0, 1.0, 2.0, 4.0, 9.0]
    """
    straight = np.multiply(noise, strength, dtype=noise.dtype)
    first = straight[:, :1]
    second = straight[:, 1:2] if noise.shape[1] > 1 else np.zeros_like(first)
    others = (straight[:, 2:] ** 2).sum(1, keepdims=True) / max(1, modes - 2)
    return np.concatenate([straight, first**2, first * second, second**2, others], axis=1)


def packed(pictures: Tensor) -> Tensor:
    """Packs pictures (B, k, C, H, W) into 8 bits: (B, k, C * H * W + 8), uint8.

    Each has its own scale and offset in its last 8 bytes, the format of torch's 8-bit embedding
    bags, which add such rows up several times faster than they could be converted.

    >>> packed(torch.rand(2, 5, 3, 4, 4)).shape
    torch.Size([2, 5, 56])
    """
    rows = pictures.float().cpu().flatten(0, 1).flatten(1)
    return torch.ops.quantized.embedding_bag_byte_prepack(rows).unflatten(0, pictures.shape[:2])


def summed(pictures: Tensor, rows: Tensor, w: Tensor) -> Tensor:
    """Sums (b, C * H * W) of rows (b, n) of packed pictures, times w (b, n) in float32.

    >>> summed(packed(torch.ones(1, 2, 1, 2, 2))[0], torch.tensor([[0, 1]]), torch.ones(1, 2))
    tensor([[2., 2., 2., 2.]])
    """
    bag = torch.ops.quantized.embedding_bag_byte_rowwise_offsets
    return bag(pictures, rows.contiguous(), per_sample_weights=w.contiguous())
