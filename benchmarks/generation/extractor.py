"""The feature extractor of the metrics: a classifier trained on the training images at 5 bits, apart from all flows."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.cifar.arms import Arm
from benchmarks.cifar.resnet import Recipe, make_classifier
from benchmarks.cifar.testing import penultimate
from benchmarks.cifar.training import normalize, train
from timm_nfaug._utils.files import write_atomically
from train_flow.data import Images

BATCH = 500


def five_bits(levels: Tensor) -> Tensor:
    """Moves uint8 levels to the centre of the 5-bit level that they lie in."""
    return levels // 8 * 8 + 4


def digest(*parts: Any) -> str:
    """Returns a short hash of tensors, bytes and whatever has a repr."""
    h = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            part = part.cpu().contiguous().numpy().tobytes()
        h.update(part if isinstance(part, bytes) else repr(part).encode())
    return h.hexdigest()[:16]


def feature_extractor(images: Images, recipe: Recipe, path: Path) -> nn.Module:
    """Trains a classifier on `images` at 5 bits, on the device where they lie, or loads it from `path`."""
    settings, data = asdict(recipe), digest(images.levels, images.labels)
    if path.exists():
        kept = torch.load(path, map_location=images.levels.device, weights_only=True)
        if (kept["settings"], kept["data"]) != (settings, data):
            raise ValueError(
                f"{path} was made with other settings or data; choose another --runs, or remove it"
            )
        model = make_classifier(recipe.model, len(images.class_names)).to(images.levels.device)
        model.load_state_dict(kept["weights"])
    else:
        coarse = Images(five_bits(images.levels), images.labels, images.class_names)
        model, _ = train(coarse, Arm(), recipe, seed=0)
        kept = {"settings": settings, "data": data, "weights": model.state_dict()}
        write_atomically(path, lambda p: torch.save(kept, p))
    return model.eval().requires_grad_(False)


@torch.no_grad()
def features_of(model: nn.Module, levels: Tensor, bf16: bool = False) -> tuple[Tensor, Tensor]:
    """Turns uint8 images (N, 3, H, W) into penultimate features (N, F) and predicted labels (N,), on the CPU."""
    features, predicted = [], []
    device = next(model.parameters()).device
    for part in levels.split(BATCH):
        x = normalize(five_bits(part.to(device)))
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            f = penultimate(model, x).float()
        features.append(f.cpu())
        predicted.append(model.get_classifier()(f).argmax(1).cpu())
    return torch.cat(features), torch.cat(predicted)
