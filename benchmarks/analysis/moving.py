"""Moves of codes and changes of images, as the analyses ask for them: the one place here that uses the package's inner parts."""

from __future__ import annotations

import torch
from torch import Tensor

from timm_nfaug import ConditionalFlow
from timm_nfaug.change.tangents import packed, summed, tangents, weights
from timm_nfaug.moves import create_move, draw_noise, perturb

BATCH = 64  # images whose tangents are computed at once


def draw(count: int, modes: int, g: torch.Generator) -> Tensor:
    """Draws (count, modes) standard normal numbers, cut as NFA cuts them."""
    return draw_noise(count, modes, g)


def move(flow: ConditionalFlow, y: Tensor, noise: Tensor) -> Tensor:
    """Returns the move (B, D) of codes at strength 1 along as many modes of labels y (B,) as noise (B, r) has columns."""
    return create_move("pca", noise.shape[1]).displacement(flow, y, noise)


def moved_codes(
    flow: ConditionalFlow,
    z: Tensor,
    y: Tensor,
    strength: float,
    modes: int,
    kind: str,
    g: torch.Generator,
) -> Tensor:
    """Moves codes z (B, D) of labels y (B,) at random, by any kind of move."""
    return perturb(flow, z, y, strength=strength, modes=modes, kind=kind, generator=g)


def tangent_pictures(
    flow: ConditionalFlow, z: Tensor, y: Tensor, modes: int, step: float
) -> Tensor:
    """Returns the pictures that a cache of tangents keeps of codes z (B, D), in its 8 bits; the first index is the image."""
    parts = zip(z.split(BATCH), y.split(BATCH), strict=True)
    return packed(torch.cat([tangents(flow, own, labels, modes, step) for own, labels in parts]))


def change_of_tangents(
    pictures: Tensor, noise: Tensor, strength: float, bend: bool = True
) -> Tensor:
    """Adds up the pictures of each image for noise (B, r), as a cache does, to a change (B, D).

    Without the bend the pictures of second order, which are no tangents, are left out.
    """
    images, modes = noise.shape
    w = torch.from_numpy(weights(noise.numpy(), strength, modes))
    rows = torch.arange(pictures[..., 0].numel()).view(images, -1)
    n = w.shape[1] if bend else modes
    return summed(pictures.flatten(0, 1), rows[:, :n], w[:, :n]).view(images, -1)
