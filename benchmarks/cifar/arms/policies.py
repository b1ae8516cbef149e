"""Policies on single PIL images: RandAugment with RandomErasing (the paper's SA), and TrivialAugment."""

from timm.data.auto_augment import rand_augment_transform
from torchvision.transforms import v2

from timm_nfaug.integration.pillow import guard_posterize

from .base import Arm, Policy, register


def randaugment(config: str, side: int) -> Policy:
    """timm's RandAugment by its string, for images of a side in pixels, as timm's `create_transform` makes it."""
    guard_posterize()
    of_side = {"translate_const": int(0.45 * side), "img_mean": (128, 128, 128)}
    return rand_augment_transform(config, of_side)


@register("sa")
class SA(Arm):
    """timm's RandAugment and RandomErasing."""

    label = "RandAugment `rand-m9-mstd0.5-inc1` and RandomErasing 0.25 of timm"
    settings = ("randaugment", "reprob")

    @classmethod
    def make(cls, data, flow, s):
        side = min(data.levels.shape[2:])
        return cls(randaugment(s.randaugment, side), reprob=s.reprob)


@register("trivial")
class Trivial(Arm):
    """torchvision's TrivialAugmentWide (Müller & Hutter, ICCV 2021)."""

    label = "TrivialAugmentWide of torchvision"

    @classmethod
    def make(cls, data, flow, s):
        return cls(v2.TrivialAugmentWide())
