"""The paper's classifier of images of 32 px: ResNet18, and smaller ones of its shape for a CPU.

The recipe is that of Enescu & Sahbi (ACCV 2024): ResNet18 with a 3x3 stem and no pooling, random
crop and flip, SGD with momentum 0.9 and weight decay 5e-4, one cycle of the learning rate up to
0.1. torch's OneCycleLR takes the momentum along, from 0.95 down to 0.85 and back, unless told not
to; the paper does not say that it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import timm
import torch
from safetensors.torch import load_file
from torch import nn

from benchmarks.cifar.training import Batches
from train_flow.data import Images

# The small ones are ResNet18's shape with one block a stage and fewer channels, for comparisons on a CPU.
MODELS = {
    "resnet18": {},
    "resnet10_half": {"layers": (1, 1, 1, 1), "channels": (32, 64, 128, 256)},
    "resnet10_quarter": {"layers": (1, 1, 1, 1), "channels": (16, 32, 64, 128)},
}


@dataclass
class Recipe:
    model: str = "resnet18"
    epochs: int = 30
    batch_size: int = 128
    max_lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    crop: int = 4  # pixels of zeros around the image that a crop may take in
    bf16: bool = True  # autocast
    compile: bool = False
    init: str = ""  # safetensors file of weights to start from, all but the head

    smoothing: ClassVar[float] = 0.0  # of labels
    views: ClassVar[int] = 1  # of an image in a test, see `testing.logits_of`

    def build(self, data: Images) -> nn.Module:
        """Creates the classifier of the classes of `data`, on the CPU, from the global generator."""
        model = make_classifier(self.model, len(data.class_names))
        if self.init:
            start_from(model, self.init, ["fc.weight", "fc.bias"])
        return model

    def batches(self, data: Images, seed: int) -> Batches:
        return Batches(data, self, seed)

    def optimizer(self, model: nn.Module, steps: int) -> Steps:
        decay = {"momentum": self.momentum, "weight_decay": self.weight_decay}
        sgd = torch.optim.SGD(model.parameters(), self.max_lr, **decay)
        return Steps(sgd, torch.optim.lr_scheduler.OneCycleLR(sgd, self.max_lr, total_steps=steps))


@dataclass
class Steps:
    """An optimizer and its schedule, stepped together."""

    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler

    def zero_grad(self) -> None:
        self.optimizer.zero_grad()

    def step(self) -> None:
        """Updates the parameters by their gradients."""
        self.optimizer.step()
        self.schedule.step()


def make_classifier(name: str, num_classes: int) -> nn.Module:
    """A timm ResNet with the stem that small images need: 3x3, stride 1, no pooling."""
    model = timm.create_model("resnet18", num_classes=num_classes, **MODELS[name])
    model.conv1 = nn.Conv2d(3, model.conv1.out_channels, 3, padding=1, bias=False)
    # as timm initialises the others
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()
    return model.to(memory_format=torch.channels_last)


def start_from(model: nn.Module, path: str, head: Sequence[str]) -> None:
    """Loads all but the head from a safetensors file of the same model, with or without a head.

    Args:
        head: names of the head's parameters.
    """
    weights = load_file(path)
    try:
        found = model.load_state_dict(
            {k: v for k, v in weights.items() if k not in head}, strict=False
        )
        lacking = set(found.missing_keys).difference(head) | set(found.unexpected_keys)
    except RuntimeError as e:  # other shapes
        lacking = {str(e).splitlines()[-1].strip()}
    if lacking:
        raise ValueError(
            f"{Path(path).name} holds another model than this one: {min(lacking)}; take weights of this one"
        )
