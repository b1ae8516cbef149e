"""TangentChange: what moves change, from pictures of each image that a cache holds; no flow needed.

An image of code z changes by ``f^-1(z + move) - f^-1(z)``, about a weighted sum of pictures: one for
each mode, linear in the noise, and four for the bend of the flow. How far off that is, is measured
in benchmarks/analysis/tangents.py.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ..flows.model import ConditionalFlow
from ..moves import create_move
from .base import Change, Images

BENDS = 4


class TangentChange(Change):
    """Weighted sums of packed pictures; the images are never looked at.

    Args:
        pictures: (N * (stored + 4), c * h * w + 8) uint8, the `packed` pictures of N images.
        rows: (B,) which of the N images these are.
        size: (c, h, w).
        stored: number of modes that each image has pictures of.
        modes: number of modes moved along, at most `stored`.
        strength: as of `NFAugment`.
    """

    num_classes = 1  # the pictures are those of each image's own class

    def __init__(
        self,
        pictures: Tensor,
        rows: list[int],
        size: tuple[int, int, int],
        stored: int,
        modes: int,
        strength: float,
    ):
        self.pictures, self.rows, self.size = pictures, rows, size
        self.stored, self.noise_size, self.strength = stored, modes, strength

    def change(self, images: Images, y: Tensor | None, noise: Tensor) -> Tensor:
        used = np.array([*range(self.noise_size), *range(self.stored, self.stored + BENDS)])
        own = np.array(self.rows)[:, None] * (self.stored + BENDS) + used  # (B, modes + 4)
        w = weights(noise.numpy(), self.strength, self.stored)
        found = summed(self.pictures, torch.from_numpy(own), torch.from_numpy(w))
        return found.view(-1, *self.size)


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

    A move by noise e (modes,) at strength s changes an image by about the sum of these pictures with
    the `weights` of e and s. They are a fit to moves of strength `step` by all modes together, one
    way and the opposite: what the two have in opposite is linear in e, what they have in common is
    the bend, made of the squares and the product of the first two modes and the mean square of the
    others. A fit at the strength used later is better than derivatives, which know no bend.

    Args:
        step: strength of those moves.
        kind: pca or axes.
    """
    at_rest, move = flow.inverse(z), create_move(kind, modes, step)
    found = at_rest.new_zeros(len(z), modes + BENDS, *at_rest.shape[1:])
    directions = _directions(modes)
    bends = torch.from_numpy(weights(directions.numpy(), 1.0, modes)[:, modes:])
    straight = (directions / len(directions)).to(z)
    bend = torch.linalg.pinv(bends).T.to(z)
    for e, s, b in zip(directions.to(z), straight, bend, strict=True):
        delta = move.displacement(flow, y, e.expand(len(z), -1))
        there, back = flow.inverse(z + delta), flow.inverse(z - delta)
        odd, even = (there - back) / (2 * step), ((there + back) / 2 - at_rest) / step**2
        found[:, :modes] += s.view(-1, 1, 1, 1) * odd.unsqueeze(1)
        found[:, modes:] += b.view(-1, 1, 1, 1) * even.unsqueeze(1)
    return found


def _directions(modes: int) -> Tensor:
    """(2 modes, modes): the axes of two random frames, each as long as noise is on average.

    For a linear map the least squares fit to an orthogonal frame is exact, with nothing to invert.
    """
    g = torch.Generator().manual_seed(0)
    frames = torch.empty(2, modes, modes, dtype=torch.float64)
    for frame in frames:
        torch.nn.init.orthogonal_(frame, gain=math.sqrt(modes), generator=g)
    return frames.flatten(0, 1)


def weights(noise: np.ndarray, strength: float, modes: int) -> np.ndarray:
    """Weights (B, n + 4) of the pictures of `tangents` for noise (B, n), those of the bend last.

    Args:
        modes: number of modes that there are pictures of, at least n.

    >>> weights(np.array([[1.0, 2.0, 3.0]]), 1.0, 3)[0].tolist()
    [1.0, 2.0, 3.0, 1.0, 2.0, 4.0, 9.0]
    """
    b, n = noise.shape
    found = np.empty((b, n + BENDS), noise.dtype)
    straight, bend = found[:, :n], found[:, n:]
    np.multiply(noise, strength, out=straight)
    first, second = straight[:, 0], straight[:, 1] if n > 1 else 0.0
    bend[:, 0], bend[:, 1], bend[:, 2] = first**2, first * second, second**2
    bend[:, 3] = (straight[:, 2:] ** 2).sum(1) / max(1, modes - 2)
    return found


def packed(pictures: Tensor) -> Tensor:
    """Packs pictures (B, k, C, H, W) into 8 bits: (B, k, C * H * W + 8), uint8.

    Each has its own scale and offset in its last 8 bytes, the format of torch's 8-bit embedding
    bags, which add such rows up several times faster than they could be converted.

    >>> packed(torch.rand(2, 5, 3, 4, 4)).shape
    torch.Size([2, 5, 56])
    """
    rows = pictures.float().cpu().flatten(0, 1).flatten(1)
    prepack = torch.ops.quantized.embedding_bag_byte_prepack
    return prepack(rows).unflatten(0, pictures.shape[:2])


def summed(pictures: Tensor, rows: Tensor, w: Tensor) -> Tensor:
    """Weighted sums (b, C * H * W) of packed pictures (N, C * H * W + 8).

    Args:
        rows: (b, n) indices of pictures.
        w: (b, n) float32, what each of them is multiplied by.

    >>> pictures = packed(torch.ones(1, 2, 1, 2, 2))[0]
    >>> summed(pictures, torch.tensor([[0, 1]]), torch.tensor([[1.0, 2.0]]))
    tensor([[3., 3., 3., 3.]])
    """
    bag = torch.ops.quantized.embedding_bag_byte_rowwise_offsets
    return bag(pictures, rows.contiguous(), per_sample_weights=w.contiguous())
