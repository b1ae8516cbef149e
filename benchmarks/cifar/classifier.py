"""Training and testing one image classifier on images that lie on the device as one uint8 tensor.

The recipe is that of Enescu & Sahbi (ACCV 2024): ResNet18 with a 3x3 stem and no pooling, random
crop and flip, SGD with momentum 0.9 and weight decay 5e-4, one cycle of the learning rate up to
0.1. torch's OneCycleLR takes the momentum along, from 0.95 down to 0.85 and back, unless told not
to; the paper does not say that it was.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from timm.utils import random_seed
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchmetrics.functional.classification import multiclass_calibration_error

from benchmarks.cifar.arms import Arm, Policy, apply_policy
from benchmarks.cifar.corruptions import CORRUPTIONS
from timm_nfaug import pixels
from train_flow.data import Images, random_shift
from train_flow.schedule import generator

# purposes of random numbers, apart from those of a flow's training
ORDER, CROP, AUGMENT, FLIP = range(100, 104)

TEST_PIXELS = 500 * 32 * 32  # of the images of a batch in a test

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
    views: ClassVar[int] = 1  # of an image in a test, see `logits_of`

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


def normalize(levels: Tensor) -> Tensor:
    """uint8 levels to floats of mean 0.5 and standard deviation 0.25 taken off, as the classifiers see them."""
    return (pixels.levels_to_model(levels) * 2).contiguous(memory_format=torch.channels_last)


class Batches:
    """What every arm sees at a step, a function of the seed and the step: the images and their crops and flips."""

    def __init__(self, data: Images, recipe: Recipe, seed: int):
        self.data, self.recipe, self.seed = data, recipe, seed
        self.per_epoch = len(data) // recipe.batch_size
        if not self.per_epoch:
            raise ValueError(
                f"{len(data)} training images do not fill a batch of {recipe.batch_size}; lower the batch size"
            )
        self._epoch, self._order = -1, None

    def indices(self, step: int) -> Tensor:
        """(batch_size,), on the CPU."""
        epoch, i = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = (
                epoch,
                torch.randperm(len(self.data), generator=generator(self.seed, ORDER, epoch)),
            )
        return self._order[i * self.recipe.batch_size : (i + 1) * self.recipe.batch_size]

    def crop_and_flip(self, levels: Tensor, step: int) -> Tensor:
        return crop_and_flip(levels, self.recipe.crop, generator(self.seed, CROP, step))

    def in_workers(self, policy: Policy, steps: int, workers: int) -> DataLoader:
        """The images of each step, cropped and under `policy`, made ahead by `workers` processes."""
        data = Images(self.data.levels.cpu(), self.data.labels.cpu(), self.data.class_names)
        made = _UnderPolicy(Batches(data, self.recipe, self.seed), policy)
        return DataLoader(
            made, None, sampler=range(steps), num_workers=workers, multiprocessing_context="fork", prefetch_factor=8,
            timeout=300,  # seconds: an error instead of waiting for a worker for ever
        )  # fmt: skip


class _UnderPolicy(Dataset):
    def __init__(self, batches: Batches, policy: Policy):
        self.batches, self.policy = batches, policy

    def __getitem__(self, step: int) -> Tensor:
        seed_globals(generator(self.batches.seed, AUGMENT, step))
        levels = self.batches.data.levels[self.batches.indices(step)]
        return apply_policy(self.policy, self.batches.crop_and_flip(levels, step))


def train(
    data: Images, arm: Arm, recipe: Recipe, seed: int, workers: int = 0
) -> tuple[nn.Module, dict]:
    """Trains one classifier on `data`, on the device where its images lie.

    Everything but the arm is a function of the seed and the step, so that arms of one seed see the
    same images in the same order with the same crops and flips; the arm's own is the same for any
    number of `workers`.

    Returns:
        The classifier, and images_seen, seconds, cpu_seconds (of this process and the workers).
    """
    device = data.levels.device
    torch.manual_seed(seed)
    model = recipe.build(data).to(device).train()
    run = torch.compile(model) if recipe.compile else model
    batches = recipe.batches(data, seed)
    steps = recipe.epochs * batches.per_epoch
    optimizer = recipe.optimizer(model, steps)
    arm.smoothing = recipe.smoothing
    arm.start(model, steps)
    # single images are PIL's: in processes of their own, which see the images in main memory
    ready = (
        iter(batches.in_workers(arm.policy, steps, workers))
        if arm.policy and not arm.before and workers
        else None
    )
    wall, cpu = time.perf_counter(), cpu_time()
    for step in range(steps):
        x, target = inputs(arm, batches, step, ready)
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe.bf16):
            loss = arm.loss(run, x, target, step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    del ready  # ends the workers, whose time then counts
    seconds, cpu = time.perf_counter() - wall, cpu_time() - cpu
    return model, {"images_seen": steps * recipe.batch_size, "seconds": seconds, "cpu_seconds": cpu}


def inputs(
    arm: Arm, batches: Batches, step: int, ready: Iterator[Tensor] | None
) -> tuple[Tensor, Tensor]:
    """What the classifier sees at a step: normalised images, and labels (B,) or probabilities (B, K).

    Args:
        ready: the images under the arm's policy, where workers made them.
    """
    data, device = batches.data, batches.data.levels.device
    index = batches.indices(step).to(device, non_blocking=True)
    y, g = data.labels[index], generator(batches.seed, AUGMENT, step)
    step_seed = seed_globals(g)
    if ready:
        levels = next(ready).to(device, non_blocking=True)
    else:
        levels = arm.take(data, index, g)
        if arm.before is not None:
            levels = arm.before(levels, y, g)
        levels = apply_policy(arm.policy, batches.crop_and_flip(levels, step))
    if arm.policy is not None:
        random_seed(step_seed + 1)  # what comes next is the same wherever the policy ran
    return arm.tensors(normalize(arm.images(levels, y, g)), y)


def seed_globals(g: torch.Generator) -> int:
    """Seeds the global generators, from which timm's and torchvision's augmentations draw, from `g`; returns the seed."""
    wide = int(torch.randint(0, 2**62, (), generator=g))  # torch < 2.7 draws 2**31 in another way
    seed = wide % 2**31
    random_seed(seed)
    return seed


def cpu_time() -> float:
    """Seconds of this process and of those it has started that have ended."""
    return sum(os.times()[:4])


def crop_and_flip(
    levels: Tensor, crop: int, g: torch.Generator, border: str = "constant", flip: bool = True
) -> Tensor:
    """Each image (B, C, H, W) shifted by up to `crop` pixels and, with `flip`, mirrored or not.

    Args:
        border: what comes in at an edge, black or as `F.pad` has it.
    """
    levels = random_shift(levels, crop, g, mode=border)
    if not flip:
        return levels
    flipped = torch.rand(len(levels), generator=g).to(levels.device, non_blocking=True) < 0.5
    return torch.where(flipped.view(-1, 1, 1, 1), levels.flip(3), levels)


def penultimate(model: nn.Module, x: Tensor) -> Tensor:
    """Normalised images (B, 3, H, W) to penultimate features (B, F)."""
    return model.forward_head(model.forward_features(x), pre_logits=True)


@torch.no_grad()
def logits_of(
    model: nn.Module, levels: Tensor, bf16: bool, batch_size: int = 0, views: int = 1
) -> Tensor:
    """Logits (N, K), float32, averaged over the views of each image.

    Args:
        batch_size: 0 for as many as have the pixels of 500 images of 32 px, which caches hold.
        views: 1 for the image, 2 with its mirror image, 6 for these and both shifted by a pixel to
            either side along the diagonal, at half the weight.
    """
    model.eval()
    out = []
    batch_size = batch_size or max(1, TEST_PIXELS // levels[0, 0].numel())
    for part in levels.split(batch_size):
        total = 0.0
        with torch.autocast(levels.device.type, torch.bfloat16, enabled=bf16):
            for weight, view in views_of(normalize(part), views):
                total = total + weight * model(view).float()
        out.append(total)
    return torch.cat(out)


def views_of(x: Tensor, views: int) -> list[tuple[float, Tensor]]:
    """Weights and views of images (B, C, H, W), see `logits_of`."""
    if views == 1:
        return [(1.0, x)]
    if views == 2:
        return [(0.5, x), (0.5, x.flip(3))]
    h, w = x.shape[2:]
    padded = F.pad(x, (1,) * 4, mode="reflect")
    shifted = (padded[:, :, :h, :w], padded[:, :, 2:, 2:])
    return [(0.25, v) for v in (x, x.flip(3))] + [
        (0.125, v) for s in shifted for v in (s, s.flip(3))
    ]


def test(
    model: nn.Module, data: Images, bf16: bool, corrupted: int = 0, views: int = 1
) -> dict[str, float]:
    """top1 and ece in percent, nll in nats; with `corrupted`, top1 on so many images under every corruption too."""
    logits = logits_of(model, data.levels, bf16, views=views)
    found = {
        "top1": 100 * (logits.argmax(1) == data.labels).float().mean().item(),
        "nll": F.cross_entropy(logits, data.labels).item(),
        "ece": 100
        * multiclass_calibration_error(
            logits.softmax(1), data.labels, logits.shape[1], n_bins=15
        ).item(),
    }
    if corrupted:
        pick = torch.arange(corrupted, device=data.levels.device) * len(data) // corrupted
        levels, labels = data.levels[pick], data.labels[pick]
        scores = []
        for i, corruption in enumerate(CORRUPTIONS.values()):
            torch.manual_seed(i)
            scores.append(
                (logits_of(model, corruption(levels), bf16).argmax(1) == labels)
                .float()
                .mean()
                .item()
            )
        found["corrupted_top1"] = 100 * sum(scores) / len(scores)
    return found
