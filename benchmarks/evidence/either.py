"""Either-or: each image gets one of two augmentations, so that the amount of augmentation stays the same."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.cifar.arms import Arm, LevelsStep, Policy, apply_policy


class EitherOr(Arm):
    """Each image is moved before the crop or goes under a policy after it, with equal chances.

    Args:
        step: the move, of uint8 images (B, C, H, W).
        other: the policy, of a PIL image.
    """

    def __init__(self, step: LevelsStep, other: Policy):
        super().__init__(before=self.move, levels=self.rest)
        self.step, self.other = step, other

    def move(self, levels: Tensor, y: Tensor, g: torch.Generator) -> Tensor:
        """Moves a random share of the images, and keeps which for `rest`."""
        self.moved = (torch.rand(len(levels), generator=g) < 0.5).to(levels.device)
        where = self.moved.view(-1, 1, 1, 1)
        return torch.where(where, self.step(levels, y, g), levels)

    def rest(self, levels: Tensor, y: Tensor, g: torch.Generator) -> Tensor:
        """Puts the images that were not moved under the policy."""
        others = ~self.moved
        if not others.any():
            return levels
        result = levels.clone()
        result[others] = apply_policy(self.other, levels[others])
        return result
