"""Fine-tuning of a pretrained timm model on images in memory, for `benchmarks.cifar.training.train`.

The parts are timm's: optimizer factory, cosine schedule with warm-up, mean and standard deviation of
the model. What makes it fit for one CPU core: batch norm keeps the statistics of the pretraining and
is folded into the convolutions, and the first stages are frozen.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from timm.optim import create_optimizer_v2, param_groups_weight_decay
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as v2

from benchmarks.cifar.resnet import Steps, start_from
from benchmarks.cifar.training import CROP, Batches, crop_and_flip
from benchmarks.finetuning.fold import fold_batch_norms
from benchmarks.finetuning.network import FineTuned, first_stages, freeze, head_names
from timm_nfaug._utils.checks import check_choice
from train_flow.data import Images
from train_flow.schedule import generator

# batch norm in training: with its own statistics of each batch; with those of the pretraining; with
# these, its scale and shift as part of the kernel before it
NORMS = ("trained", "fixed", "folded")
BORDERS = ("reflect", "constant")
TEST_BATCH = 500  # images that are resized at a time


@dataclass
class FinetuneRecipe:
    """How a pretrained timm model is fine-tuned; images come at `side` pixels, see `at_side`."""

    model: str = "mobilenetv2_100"
    weights: str = ""  # safetensors file of the model, with or without a head
    pretrained: bool = False  # weights of the Hub instead; without either from scratch
    side: int = 96  # pixels
    epochs: int = 20
    batch_size: int = 32
    optim: str = "adamw"  # a name for timm.optim.create_optimizer_v2; its sgd has Nesterov momentum
    lr: float = 2.5e-4
    head_lr: float = 4.0  # times the learning rate
    momentum: float = 0.9  # of the optimizers that have one
    weight_decay: float = 0.05  # not of biases, scales and what the model names
    warmup: float = 0.1  # share of the steps
    norm: str = "folded"  # of NORMS
    frozen: bool = False  # train the head alone
    frozen_stages: int = 4  # the first ones, of which the stem is one
    crop: float = 0.125  # pixels of a random shift, or a share of the side below 1
    border: str = "reflect"  # what comes in at an edge, of BORDERS
    flip: bool = True  # False where left and right differ, as on traffic signs
    smoothing: float = 0.1  # of labels
    views: int = 1  # of an image in a test: see `testing.logits_of`
    bf16: bool = False  # autocast; on a CPU float32 trains faster unless all is frozen
    test_bf16: bool = False  # autocast in tests alone: twice as fast on a CPU, a few answers change
    compile: bool = False

    def __post_init__(self):
        check_choice("norm", self.norm, NORMS)
        check_choice("border", self.border, BORDERS)
        if self.weights and self.pretrained:
            raise ValueError("give weights=FILE or pretrained=True (the Hub), not both")
        if not (self.weights or self.pretrained) and (self.norm != "trained" or self.frozen_stages):
            raise ValueError(
                "fixed batch norms and stages start from weights=FILE or from pretrained=True (the "
                "Hub): give one; from scratch norm='trained' and frozen_stages=0"
            )
        if self.frozen and self.norm == "trained":
            raise ValueError("a frozen backbone has fixed batch norms: norm='fixed' or 'folded'")

    @property
    def shift(self) -> int:
        """Pixels of the random shift."""
        return round(self.crop * self.side if self.crop < 1 else self.crop)

    def build(self, data: Images) -> FineTuned:
        """Creates the classifier of the classes of `data`, on the CPU; its head from the global generator."""
        model = pretrained_model(self, len(data.class_names))
        if self.norm == "folded":
            g = generator(0, CROP)
            images = torch.randn(2, 3, self.side, self.side, generator=g)
            fold_batch_norms(model, images)
        if self.frozen:
            head = head_names(model)
            freeze(model, [name for name, _ in model.named_parameters() if name not in head])
        freeze(model, first_stages(model, self.frozen_stages))
        network = FineTuned(model, self.norm != "trained", self.frozen, self.test_bf16)
        return network.to(memory_format=torch.channels_last)

    def batches(self, data: Images, seed: int) -> Batches:
        """Batches of images of the model's side, cropped and flipped.

        Raises:
            ValueError: the images have another side.
        """
        if tuple(data.levels.shape[1:]) != (3, self.side, self.side):
            raise ValueError(
                f"expected images of shape {(3, self.side, self.side)}, got "
                f"{tuple(data.levels.shape[1:])}; bring them there: at_side(data, {self.side})"
            )
        return FinetuneBatches(data, self, seed)

    def optimizer(self, model: nn.Module, steps: int) -> FinetuneSteps:
        optimizer = create_optimizer_v2(
            parameter_groups(model.model, self), opt=self.optim, lr=self.lr, momentum=self.momentum
        )
        # the first step is not at 0, and the last is not, either
        schedule = CosineLRScheduler(
            optimizer, steps + 1, warmup_t=int(self.warmup * steps), t_in_epochs=False
        )
        return FinetuneSteps(optimizer, schedule)


class FinetuneSteps(Steps):
    """An optimizer and a schedule of timm, stepped together."""

    def __init__(self, optimizer: torch.optim.Optimizer, schedule: CosineLRScheduler):
        super().__init__(optimizer, schedule)
        self.done = 0
        schedule.step_update(1)

    def step(self) -> None:
        """Updates the parameters by their gradients."""
        self.optimizer.step()
        self.done += 1
        self.schedule.step_update(self.done + 1)


class FinetuneBatches(Batches):
    """Crops and flips as the recipe says."""

    def crop_and_flip(self, levels: Tensor, step: int) -> Tensor:
        recipe, g = self.recipe, generator(self.seed, CROP, step)
        return crop_and_flip(levels, recipe.shift, g, recipe.border, recipe.flip)


def pretrained_model(recipe: FinetuneRecipe, num_classes: int) -> nn.Module:
    """A timm model with a new head, and pretrained weights where the recipe names any.

    Raises:
        ValueError: the file of weights is of another model, or there is none.
    """
    if recipe.weights and not Path(recipe.weights).is_file():
        raise ValueError(f"no file of weights {recipe.weights}")
    extra = {}
    config = timm.models.get_pretrained_cfg(recipe.model)
    if config is not None and config.fixed_input_size:
        extra["img_size"] = recipe.side
    model = timm.create_model(
        recipe.model, pretrained=recipe.pretrained, num_classes=num_classes, **extra
    )
    head = head_names(model)
    if recipe.weights:
        start_from(model, recipe.weights, head)
    for (
        name
    ) in head:  # timm's own start has logits of 10 and more in MobileNet, and gradients as large
        parameter = model.get_parameter(name)
        (nn.init.zeros_ if parameter.ndim < 2 else small_normal)(parameter)
    return model


def small_normal(weight: Tensor) -> Tensor:
    """Draws weights of standard deviation 0.01, in place, from the global generator."""
    return nn.init.normal_(weight, std=0.01)


def parameter_groups(model: nn.Module, recipe: FinetuneRecipe) -> list[dict]:
    """The trained parameters of a timm model by weight decay and learning rate."""
    head = {id(p) for p in model.get_classifier().parameters()}
    groups = []
    kept = getattr(model, "no_weight_decay", set)()  # position embeddings and class tokens
    decay = param_groups_weight_decay(model, recipe.weight_decay, no_weight_decay_list=kept)
    for group in decay:
        for factor, in_head in ((1.0, False), (recipe.head_lr, True)):
            own = [p for p in group["params"] if (id(p) in head) == in_head]
            if own:
                groups.append({**group, "params": own, "lr": recipe.lr * factor})
    return groups


def at_side(data: Images, side: int) -> Images:
    """The images at `side` x `side` pixels, bicubic with antialiasing; those of this side unchanged."""
    if tuple(data.levels.shape[2:]) == (side, side):
        return data
    size, mode = [side, side], InterpolationMode.BICUBIC
    parts = [v2.resize(part, size, mode, antialias=True) for part in data.levels.split(TEST_BATCH)]
    return dataclasses.replace(data, levels=torch.cat(parts))
