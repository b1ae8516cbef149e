"""Moved copies of every image, made once before the training: what an expensive space costs then is charged once."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.cifar.arms import Arm
from timm_nfaug import pixels
from timm_nfaug.augment import NFAugment
from timm_nfaug.change import add_change
from timm_nfaug.moves import draw_noise
from train_flow.data import Images

COUNT = 8  # copies of each image
BATCH = 100


class CopiesArm(Arm):
    """Takes one of an image's moved copies with probability `p`, and the image itself otherwise.

    Args:
        copies: uint8 (N, COUNT, C, H, W), in the order of the training images.
    """

    def __init__(self, copies: Tensor, p: float):
        super().__init__()
        self.copies, self.p = copies, p

    def take(self, data: Images, index: Tensor, g: torch.Generator) -> Tensor:
        moved = (torch.rand(len(index), generator=g) < self.p).to(index.device)
        which = torch.randint(self.copies.shape[1], (len(index),), generator=g).to(index.device)
        copies = self.copies[index, which]  # (B, C, H, W)
        return torch.where(moved.view(-1, 1, 1, 1), copies, data.levels[index])


@torch.no_grad()
def copies_of(data: Images, augment: NFAugment) -> Tensor:
    """Moves every image COUNT times, encoding it once: uint8 (N, COUNT, C, H, W).

    The random numbers are the same in every run: other seeds have other images, in other order.

    Args:
        augment: with modes of all images together; its `p` is not used.
    """
    change, g = augment.change, torch.Generator().manual_seed(0)
    made = []
    for levels in data.levels.split(BATCH):
        x = pixels.levels_to_model(levels)
        noise = draw_noise(COUNT * len(x), change.noise_size, g)
        moves, _, _ = change.bounded(lambda x=x: x, torch.zeros(len(noise), dtype=int), noise)
        moved = add_change(levels.repeat(COUNT, 1, 1, 1), moves)
        made.append(moved.unflatten(0, (COUNT, len(x))).transpose(0, 1))
    return torch.cat(made)
