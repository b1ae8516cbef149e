"""Accuracy on ImageNet's validation images by its own labels and by those of ImageNet-ReaL."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from timm.data import RealLabelsImagenet
from torch import Tensor

from benchmarks.imagenet import recipe

METRICS = ("top1", "top5", "real_top1", "real_top5")


def real_name(path: str) -> str:
    """Returns the official name of a validation image, by which the ReaL labels go.

    Args:
        path: ends in ILSVRC2012_val_%08d.JPEG, or _nXXXXXXXX.JPEG after the number, as copies on
        the Hub do.
    """
    match = re.fullmatch(r"(ILSVRC2012_val_(\d{8}))(_n\d{8})?\.JPEG", Path(path).name)
    if not match or not 1 <= int(match[2]) <= recipe.VAL_IMAGES:
        raise ValueError(
            f"validation images must be named ILSVRC2012_val_00000001.JPEG to ILSVRC2012_val_{recipe.VAL_IMAGES:08d}.JPEG "
            f"(or ..._nXXXXXXXX.JPEG), because the ReaL labels go by these names; got {Path(path).name}: unpack the "
            "official archive again"
        )
    return f"{match[1]}.JPEG"


def real_names(paths: list[str]) -> list[str]:
    """Returns the official names of all validation images; raises ValueError for one that is there twice."""
    names = [real_name(path) for path in paths]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(
            f"{twice} is there more than once; remove the copies from the validation folder"
        )
    return names


def accuracy(top5: Tensor, labels: Tensor, names: list[str]) -> dict[str, float]:
    """Returns the percentages `METRICS` of the five best classes (N, 5) of each image.

    Args:
        labels: (N,) of ImageNet.
        names: official names of the images; see `real_name`. Images without any ReaL label do not
        count there.
    """
    hit = top5 == labels.unsqueeze(1)
    # timm wants as many names as there are labels, and takes the images in the order of the names
    real = RealLabelsImagenet(names + [""] * (recipe.VAL_IMAGES - len(names)))
    for ranks in top5.split(1000):
        falling = torch.arange(5.0, 0.0, -1.0).expand(len(ranks), 5)
        real.add_result(torch.zeros(len(ranks), recipe.CLASSES).scatter_(1, ranks, falling))
    if not real.is_correct[1]:
        raise ValueError(
            f"none of the {len(names)} validation images has a ReaL label; give more of them"
        )
    return {
        "top1": 100 * hit[:, 0].double().mean().item(),
        "top5": 100 * hit.any(1).double().mean().item(),
        "real_top1": real.get_accuracy(1),
        "real_top5": real.get_accuracy(5),
    }


def describe(found: dict[str, float]) -> str:
    return ", ".join(f"{key} {found[key]:.3f}" for key in METRICS)


def check_untouched(
    found: dict[str, float], images: int, expected: dict[str, float], tolerance: float
) -> None:
    """Ends the program unless the untouched model reaches the published figures on all validation images."""
    off = [key for key, value in expected.items() if abs(found[key] - value) > tolerance]
    if off or images != recipe.VAL_IMAGES:
        each = (f"{key} {found[key]:.3f} (expected {v:.3f})" for key, v in expected.items())
        raise SystemExit(
            f"error: the untouched model gives {', '.join(each)} on {images:,} images, not within {tolerance:g} of that on "
            f"{recipe.VAL_IMAGES:,}: weights, images or preprocessing differ from timm's. Correct that; "
            "--skip-check is for smoke runs only"
        )
