"""An arm: all that a training does to its images and its loss beyond crop and flip.

An arm treats a batch by any of five parts: a policy on single PIL images, a change of uint8 batches
before the crop or after it, a step on normalised tensors (erasing, mixing), and a loss. Random
numbers come from the generator of the step or, in timm's and torchvision's parts, from the global
generators, which the training loop seeds from it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from PIL import Image
from timm.data import Mixup
from timm.data.random_erasing import RandomErasing
from torch import Tensor, nn
from torchvision.transforms import v2

from timm_nfaug.augment import NFAugment
from timm_nfaug.change import Change
from train_flow.data import Images

Policy = Callable[[Image.Image], Image.Image]
LevelsStep = Callable[[Tensor, Tensor, torch.Generator], Tensor]


class NFAStep:
    """An `NFAugment` as a step on uint8 images (B, C, H, W)."""

    def __init__(self, augment: NFAugment):
        self.augment = augment

    def __call__(self, levels: Tensor, y: Tensor, g: torch.Generator) -> Tensor:
        return self.augment(levels, y, generator=g)[0]


class ClassifierChange(Change):
    """A change that asks the classifier as it stands, which `Arm.start` gives to it."""

    model: nn.Module

    @contextmanager
    def evaluated(self) -> Iterator[nn.Module]:
        """The classifier in evaluation mode: the statistics of batch norm do not learn from this."""
        self.model.eval()
        yield self.model
        self.model.train()


class Arm:
    """No augmentation beyond crop and flip: the baseline, and what the other arms start from.

    Args:
        policy: PIL image to PIL image.
        levels: uint8 images (B, C, H, W), labels (B,), generator to uint8 images; runs after the
            policy.
        before: the same, before crop and flip.
        reprob: probability of timm's RandomErasing at the end.
        mix: timm's Mixup at the end.
    """

    def __init__(
        self,
        policy: Policy | None = None,
        levels: LevelsStep | None = None,
        before: LevelsStep | None = None,
        reprob: float = 0.0,
        mix: Mixup | None = None,
    ):
        self.policy, self.levels, self.before, self.mix = policy, levels, before, mix
        self.smoothing = 0.0  # of labels, as the recipe says
        self.erase = RandomErasing(reprob, mode="pixel", device="cpu") if reprob else None

    def start(self, model: nn.Module) -> None:
        """Is called once before the first step; the classifier goes to the changes that ask it."""
        for step in (self.before, self.levels):
            if isinstance(step, NFAStep) and isinstance(step.augment.change, ClassifierChange):
                step.augment.change.model = model

    def take(self, data: Images, index: Tensor, g: torch.Generator) -> Tensor:
        """The uint8 images (B, C, H, W) at `index` (B,), before anything is done to them."""
        return data.levels[index]

    def images(self, levels: Tensor, y: Tensor, g: torch.Generator) -> Tensor:
        """uint8 images (B, C, H, W), cropped and under `policy` where there is one, to uint8 images."""
        return levels if self.levels is None else self.levels(levels, y, g)

    def tensors(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised images (B, C, H, W) and labels (B,) to images and labels or, if mixed, probabilities (B, K)."""
        if self.mix is not None:
            x, y = self.mix(x, y)
        if self.erase is not None:
            self.erase.device = x.device
            x = self.erase(x)
        return x, y

    def loss(self, model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(model(x), target, label_smoothing=self.smoothing)


def apply_policy(policy: Policy | None, levels: Tensor) -> Tensor:
    """Each of the uint8 images (B, C, H, W) under `policy`, by way of PIL; without one as they are."""
    if policy is None:
        return levels
    moved = [
        v2.functional.pil_to_tensor(policy(v2.functional.to_pil_image(image)))
        for image in levels.cpu()
    ]
    return torch.stack(moved).to(levels.device)
