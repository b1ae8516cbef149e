"""ImageNet's folders as timm evaluates them, and the normalisation that comes last."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from timm.data import ImageNetInfo, create_transform
from torch import Tensor
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import default_loader
from torchvision.transforms import v2


class ImageNetFolder(ImageFolder):
    """Class folders named by wnid, with ImageNet's labels whichever of them are there.

    Images are uint8 (3, H, W), brought to the model's size as timm does for evaluation; an
    unreadable one raises.
    """

    def __init__(self, root: Path, data_config: dict[str, Any]):
        if not root.is_dir():
            raise FileNotFoundError(
                f"no directory {root}; --data-dir holds train/ and val/ with a folder for each wnid"
            )
        resize = create_transform(**data_config, is_training=False, normalize=False)
        super().__init__(root, loader=partial(_load, resize))

    def find_classes(self, directory: str | Path) -> tuple[list[str], dict[str, int]]:
        index = {wnid: k for k, wnid in enumerate(ImageNetInfo().label_names())}
        found = sorted(p.name for p in Path(directory).iterdir() if p.is_dir())
        strange = [name for name in found if name not in index]
        if strange or not found:
            raise ValueError(
                f"folders in {directory} must be named by ImageNet's wnids (n01440764, ...), got {strange[:4]}"
            )
        return found, {name: index[name] for name in found}


def _load(resize, path: str) -> Tensor:
    return resize(default_loader(path))


def normalized(data_config: dict[str, Any]) -> v2.Transform:
    """Returns the transform from uint8 (3, H, W) to what the model takes."""
    scale = v2.ToDtype(torch.float32, scale=True)
    return v2.Compose([scale, v2.Normalize(data_config["mean"], data_config["std"])])
