"""A timm model that takes images in the common normalisation, with its pretrained parts held fixed."""

from __future__ import annotations

from collections.abc import Iterator

import timm.data
import torch
from timm.models import group_parameters
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

LEVEL = 255 / 64  # levels of 0..1 to those of `training.normalize`, (level + 0.5) / 64 - 2
CENTRE = 0.5  # of 0..1: there the common normalisation is 0


class ModelNorm(nn.Module):
    """Brings images (B, 3, H, W) of `training.normalize` to a mean and standard deviation of [0, 1]."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]):
        super().__init__()
        mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (mean, std))
        self.register_buffer("scale", 1 / (LEVEL * std), persistent=False)
        self.register_buffer("shift", (CENTRE - mean) / std, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift


class FineTuned(nn.Module):
    """A timm model behind its own normalisation.

    Args:
        fixed_norms: batch norm keeps its running statistics in training, too. Those without a
            trained scale always do.
        fixed_backbone: all but the head is in evaluation mode in training, too.
        test_bf16: in evaluation without gradients the model runs in bfloat16 autocast, whatever
            surrounds it.
    """

    def __init__(
        self,
        model: nn.Module,
        fixed_norms: bool = True,
        fixed_backbone: bool = False,
        test_bf16: bool = False,
    ):
        super().__init__()
        config = timm.data.resolve_data_config({}, model=model)
        self.norm, self.model = ModelNorm(config["mean"], config["std"]), model
        self.fixed_norms, self.fixed_backbone = fixed_norms, fixed_backbone
        self.test_bf16 = test_bf16

    def train(self, mode: bool = True) -> FineTuned:
        """Sets the mode of all but the parts that stay in evaluation."""
        super().train(mode)
        if mode and self.fixed_backbone:
            self.model.eval()
            self.model.get_classifier().train()
        for module in self.modules():
            if isinstance(module, _BatchNorm) and (self.fixed_norms or not is_trained(module)):
                module.eval()
        return self

    def forward_features(self, x: Tensor) -> Tensor:
        with self.precision(x):
            return self.model.forward_features(self.norm(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        with self.precision(x):
            return self.model.forward_head(x, pre_logits=pre_logits)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def precision(self, x: Tensor) -> torch.autocast:
        """bfloat16 in a test, else what surrounds it."""
        kind = x.device.type
        if self.test_bf16 and not self.training and not torch.is_grad_enabled():
            return torch.autocast(kind, torch.bfloat16)
        dtype, enabled = torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)
        return torch.autocast(kind, dtype, enabled=enabled)


def is_trained(module: nn.Module) -> bool:
    """Whether any parameter of a module is trained."""
    return any(p.requires_grad for p in module.parameters())


def head_names(model: nn.Module) -> list[str]:
    """Names of the parameters of the head of a timm model, such as fc.weight."""
    head = {id(p) for p in model.get_classifier().parameters()}
    return [name for name, p in model.named_parameters() if id(p) in head]


def freeze(model: nn.Module, names: Iterator[str] | list[str]) -> None:
    """Takes parameters of these names out of the training."""
    for name in names:
        model.get_parameter(name).requires_grad_(False)


def first_stages(model: nn.Module, stages: int) -> list[str]:
    """Names of the parameters of the first stages of a timm model, of which the stem is one.

    Raises:
        ValueError: the model has not so many before its head.
    """
    groups = group_parameters(model, model.group_matcher(coarse=True))
    if not 0 <= stages < len(groups):
        raise ValueError(
            f"frozen_stages must be 0 to {len(groups) - 1} for {type(model).__name__}, which has "
            f"so many stages with its stem, got {stages}"
        )
    return [name for group in sorted(groups)[:stages] for name in groups[group]]
