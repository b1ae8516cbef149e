"""Policies on single PIL images: RandAugment with RandomErasing (the paper's SA), and TrivialAugment."""

from timm.data.auto_augment import rand_augment_transform
from torchvision.transforms import v2

from timm_nfaug.integration.pillow import guard_posterize

from .base import Arm, Policy, register


def randaugment(config: str) -> Policy:
    """timm's RandAugment by its string."""
    guard_posterize()
    return rand_augment_transform(config, {"translate_const": 10, "img_mean": (128, 128, 128)})


@register("sa")
class SA(Arm):
    """timm's RandAugment and RandomErasing."""

    label = "RandAugment `rand-m9-mstd0.5-inc1` and RandomErasing 0.25 of timm"
    settings = ("randaugment", "reprob")

    @classmethod
    def make(cls, data, flow, s):
        return cls(randaugment(s.randaugment), reprob=s.reprob)


@register("trivial")
class Trivial(Arm):
    """torchvision's TrivialAugmentWide (Müller & Hutter, ICCV 2021)."""

    label = "TrivialAugmentWide of torchvision"

    @classmethod
    def make(cls, data, flow, s):
        return cls(v2.TrivialAugmentWide())
