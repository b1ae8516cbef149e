"""Change: what is added to a batch of images. Everything that augments goes through this seam."""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from ..moves.base import STILL

LIMIT = 2.0  # the width of the range [-1, 1]: no image can change by more

Images = Callable[[], Tensor]  # gives images (B, c, H, W), float32 in [-1, 1]


class Change(ABC):
    """What is added to images, at a size of its own; a subclass is one way to augment.

    `change` gets the images as a function, so that a change which does not depend on them costs
    nothing to look at them. A larger image takes the change enlarged (`timm_nfaug.lift`).

    Attributes:
        size: (c, h, w) of the change.
        num_classes: K of the labels it takes.
        noise_size: standard normal numbers it needs per image.
        still: whether some classes have no modes, so that their images are left as they were.

    >>> class Brightness(Change):
    ...     size, num_classes, noise_size = (3, 1, 1), 1, 1
    ...     def change(self, images, y, noise):
    ...         return (0.1 * noise).view(-1, 1, 1, 1).expand(-1, 3, 1, 1)
    >>> import timm_nfaug as nfa
    >>> augment = nfa.NFAugment.from_change(Brightness(), p=1.0, labels="none")
    >>> augment(torch.zeros(3, 8, 8, dtype=torch.uint8)).shape
    torch.Size([3, 8, 8])
    """

    size: tuple[int, int, int]
    num_classes: int
    noise_size: int
    still: bool = False

    @abstractmethod
    def change(self, images: Images, y: Tensor | None, noise: Tensor) -> Tensor:
        """The change (B, c, h, w), in units of the range [-1, 1].

        Args:
            images: gives the images (B, c, H, W) in [-1, 1], of any size; not to be written to.
            y: labels (B,), or None where the change finds the class itself.
            noise: standard normal (B, noise_size).
        """

    def bounded(self, images: Images, y: Tensor | None, noise: Tensor) -> tuple[Tensor, int, int]:
        """The change in float32 within +-2, zero where it is not finite.

        Also counts the images whose change is not finite, and those that do not move without modes.
        """
        if torch.is_autocast_enabled(noise.device.type):  # bfloat16 would break a flow's inverse
            with torch.autocast(noise.device.type, enabled=False):
                change = self.change(images, y, noise)
        else:
            change = self.change(images, y, noise)
        if change.shape != (wanted := (noise.shape[0], *self.size)):
            got = tuple(change.shape)
            raise ValueError(f"{type(self).__name__}.change must return {wanted}, got {got}")
        if change.requires_grad or change.dtype != torch.float32:
            change = change.detach().float()
        still = int((change.abs().amax((1, 2, 3)) < STILL).sum()) if self.still else 0
        low, high = change.aminmax() if wanted[0] else (0.0, 0.0)
        if -LIMIT <= float(low) and float(high) <= LIMIT:  # false for NaN
            return change, 0, still
        good = change.sum((1, 2, 3)).isfinite()
        change = torch.where(good.view(-1, 1, 1, 1), change, 0.0)
        return change.clamp_(-LIMIT, LIMIT), int((~good).sum()), still
