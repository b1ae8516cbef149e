"""Trains one image classifier, by any recipe, on images that lie on the device as one uint8 tensor.

A recipe says what is trained and how: `build(data)` makes the network, `batches(data, seed)` what
every arm sees at a step, `optimizer(model, steps)` how its parameters move; `epochs`, `batch_size`,
`bf16`, `compile` and `smoothing` are the loop's.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import torch
from timm.utils import random_seed
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from benchmarks.cifar.arms import Arm, Policy, apply_policy
from timm_nfaug import pixels
from train_flow.data import Images, random_shift
from train_flow.schedule import generator

# purposes of random numbers, apart from those of a flow's training
ORDER, CROP, AUGMENT, FLIP = range(100, 104)


def normalize(levels: Tensor) -> Tensor:
    """uint8 levels to floats of mean 0.5 and standard deviation 0.25 taken off, as the classifiers see them."""
    return (pixels.levels_to_model(levels) * 2).contiguous(memory_format=torch.channels_last)


class Batches:
    """What every arm sees at a step, a function of the seed and the step: the images and their crops and flips."""

    def __init__(self, data: Images, recipe: Any, seed: int):
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
        made = _UnderPolicy(type(self)(data, self.recipe, self.seed), policy)
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
    data: Images, arm: Arm, recipe: Any, seed: int, workers: int = 0
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
    arm.start(model)
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
            loss = arm.loss(run, x, target)
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
