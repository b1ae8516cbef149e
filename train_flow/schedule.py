"""What depends on the step alone: batches, random numbers, learning rates, averages of weights.

Every random choice of a training is a function of (seed, purpose, step), so a checkpoint holds no
generator state, and a resumed training is the uninterrupted one, bit for bit.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from timm.scheduler import CosineLRScheduler, MultiStepLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from .config import TrainConfig

ORDER, NOISE, GAUSSIANS, START = 0, 1, 3, 4  # purposes of random numbers


def generator(seed: int, *key: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator that follows from a seed and small integers.

    Another kind of device draws other numbers.

    >>> draw = lambda *key: torch.randperm(100, generator=generator(*key))
    >>> torch.equal(draw(0, NOISE, 7), draw(0, NOISE, 7))
    True
    >>> torch.equal(draw(0, NOISE, 7), draw(0, NOISE, 8))
    False
    """
    for k in key:
        seed = (seed * 6364136223846793005 + k + 1442695040888963407) % 2**63
    return torch.Generator(device).manual_seed(seed)


class BatchOrder:
    """Chooses the images of each step: a function of the step alone.

    Args:
        first: indices of the images that the epochs run over before `merge_step`.
        second: indices that join them there.

    >>> order = BatchOrder(torch.arange(6), torch.arange(6, 8), 2, merge_step=3, seed=0)
    >>> sorted(torch.cat([order(step) for step in range(3)]).tolist())
    [0, 1, 2, 3, 4, 5]
    >>> order.steps_per_epoch(step=0), order.steps_per_epoch(step=3)
    (3, 4)
    """

    def __init__(self, first: Tensor, second: Tensor, batch_size: int, merge_step: int, seed: int):
        self.batch_size, self.merge_step, self.seed = batch_size, merge_step, seed
        self.phases = [first, torch.cat([first, second]).sort().values]
        smallest = min(len(p) for p in self.phases)
        if smallest < batch_size:
            raise ValueError(
                f"batch_size {batch_size} exceeds the {smallest} training images; lower it"
            )
        self._epoch: tuple[int, int] | None = None
        self._shuffled = first

    def steps_per_epoch(self, step: int) -> int:
        """Number of whole batches in an epoch at `step`."""
        return len(self.phases[int(step >= self.merge_step)]) // self.batch_size

    def __call__(self, step: int) -> Tensor:
        """Returns the indices (batch_size,) of the images of `step`."""
        merged = step >= self.merge_step
        epoch, i = divmod(step - self.merge_step if merged else step, self.steps_per_epoch(step))
        key = (int(merged), epoch)
        if self._epoch != key:
            pool = self.phases[int(merged)]
            order = torch.randperm(len(pool), generator=generator(self.seed, ORDER, *key))
            self._epoch, self._shuffled = key, pool[order]
        return self._shuffled[i * self.batch_size : (i + 1) * self.batch_size]


def piecewise(points: list, t: float, geometric: bool) -> float:
    """Value at `t` of a schedule through [position, value] points, with lines or powers between.

    >>> piecewise([[0.0, 4.0], [1.0, 1.0]], 0.5, geometric=False)
    2.5
    >>> piecewise([[0.0, 4.0], [1.0, 1.0]], 0.5, geometric=True)
    2.0
    """
    if t <= points[0][0]:
        return float(points[0][1])
    for (t0, v0), (t1, v1) in itertools.pairwise(points):
        if t <= t1:
            w = (t - t0) / (t1 - t0)
            return float(v0 ** (1 - w) * v1**w if geometric else (1 - w) * v0 + w * v1)
    return float(points[-1][1])


def halving_steps(config: TrainConfig, steps_per_epoch: int) -> list[int]:
    """Steps at which schedule `halving` halves the learning rate, which ends at lr_floor or above.

    >>> config = TrainConfig(image_size=32, lr=0.8, lr_floor=0.1, halve_from=10, halve_every=5)
    >>> halving_steps(config, steps_per_epoch=100)
    [1000, 1500, 2000]
    """
    c = config
    # without a floor 64 halvings bring the rate to nothing; 1e-9 makes up for log2's rounding
    count = int(math.log2(c.lr / c.lr_floor) + 1e-9) if c.lr_floor else 64
    return [round((c.halve_from + i * c.halve_every) * steps_per_epoch) for i in range(count)]


def make_scheduler(
    optimizer: torch.optim.Optimizer, config: TrainConfig, steps: int, steps_per_epoch: int
) -> Scheduler:
    """The learning rate of each step: linear warm-up, then cosine or halving."""
    common: dict[str, Any] = {
        "t_in_epochs": False,
        "warmup_t": min(config.warmup_steps, steps - 1),
        "warmup_lr_init": 1e-6,
        "warmup_prefix": False,
    }
    if config.schedule == "cosine":
        return CosineLRScheduler(optimizer, t_initial=steps, lr_min=config.lr_floor, **common)
    decays = halving_steps(config, steps_per_epoch)
    return MultiStepLRScheduler(optimizer, decay_t=decays, decay_rate=0.5, **common)


def ema_rule(decay: float) -> Callable[[Any, Any, Any], None]:
    """Update rule of an exponential mean whose decay rises with the steps: (1 + n) / (10 + n).

    With a decay of 0.999 from the start, the first weights would still count 13% after 2,000 steps.
    """

    def update(averages: Any, current: Any, count: Any) -> None:
        n = int(count)  # updates before this one
        get_ema_multi_avg_fn(min(decay, (1 + n) / (10 + n)))(averages, current, count)

    return update
