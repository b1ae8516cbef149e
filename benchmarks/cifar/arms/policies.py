"""timm's RandAugment on single PIL images."""

from timm.data.auto_augment import rand_augment_transform

from timm_nfaug.integration.pillow import guard_posterize

from .base import Policy

RANDAUGMENT = "rand-m9-mstd0.5-inc1"


def randaugment(config: str, side: int) -> Policy:
    """timm's RandAugment by its string, for images of a side in pixels, as timm's `create_transform` makes it."""
    guard_posterize()
    of_side = {"translate_const": int(0.45 * side), "img_mean": (128, 128, 128)}
    return rand_augment_transform(config, of_side)
