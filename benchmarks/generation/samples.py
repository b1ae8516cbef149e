"""Samples of a flow, how long they take, and one row of the result: their scores, or why there are none."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from benchmarks.core.common import disturbed, timed
from benchmarks.generation.metrics import score
from timm_nfaug import ConditionalFlow, pixels
from train_flow.data import Images
from train_flow.schedule import generator

BATCH = 500
LABELS, SAMPLES = range(300, 302)  # purposes of random numbers


def encodes_labels(flow: ConditionalFlow) -> bool:
    """Whether the label of a sample is read from a band of it: then a batch is drawn until all labels are in it."""
    return bool(flow.config.code_rows)


def asked_labels(images: Images, count: int, seed: int) -> Tensor:
    """Returns `count` labels in the shares of `images`, shuffled.

    A flow that encodes labels fills a batch fastest where all labels are in it.
    """
    labels = images.labels.cpu()[torch.arange(count) * len(images) // count]
    return labels[torch.randperm(count, generator=generator(seed, LABELS))]


class Deadline(TorchFunctionMode):
    """Raises TimeoutError from the first call of torch in its body that comes after so many seconds.

    An alarm's exception may fall into `torch.autocast` itself, which then stays on for good: later
    trainings of the process compute with weights of before their steps.
    """

    def __init__(self, seconds: float):
        super().__init__()
        self.seconds, self.end = seconds, time.monotonic() + seconds

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if time.monotonic() > self.end:
            late = f"no end after {self.seconds:g} seconds; raise --limit-seconds"
            raise TimeoutError(late)
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def sample_levels(
    flow: ConditionalFlow, y: Tensor, temperature: float, mean_scale: float, seed: int, limit: float
) -> tuple[Tensor, Tensor, float]:
    """Samples images of labels y (N,).

    Returns:
        uint8 (M, C, H, W), which of the N are finite (N,) bool, and the seconds of sampling.

    Raises:
        RuntimeError, TimeoutError: a flow that encodes labels never makes some label, or not within
        `limit` seconds.
    """
    g = generator(seed, SAMPLES)
    levels, finite, seconds = [], [], 0.0
    whole = encodes_labels(flow)  # such a flow makes its batches itself
    with Deadline(limit) if whole else contextlib.nullcontext():
        for part in [y] if whole else y.split(BATCH):
            start = time.perf_counter()
            x = flow.sample(part, temperature, mean_scale, g)
            good = x.flatten(1).isfinite().all(1).cpu()  # which waits for a GPU
            seconds += time.perf_counter() - start
            finite.append(good)
            levels.append(pixels.model_to_levels(x.cpu()[good].clamp(-1, 1)))
    return torch.cat(levels), torch.cat(finite), seconds


def row_of(
    flow: ConditionalFlow,
    y: Tensor,
    temperature: float,
    mean_scale: float,
    seed: int,
    limit: float,
    real: Tensor,
    model: nn.Module,
    bf16: bool = False,
) -> dict[str, Any]:
    """Returns one row of the result: what `score` says of samples, or under `error` why there are none."""
    row: dict[str, Any] = {"temperature": temperature, "mean_scale": mean_scale}
    nothing = dict.fromkeys(("fid", "coverage", "class_accuracy"))
    try:
        levels, finite, seconds = sample_levels(flow, y, temperature, mean_scale, seed, limit)
    except (RuntimeError, TimeoutError) as e:
        if not encodes_labels(flow):
            raise
        none = {"images": 0, "non_finite": 0, "sampling_seconds": None, "error": str(e)}
        return row | none | nothing
    left_out = len(y) - len(levels)
    row |= {"images": len(levels), "non_finite": left_out, "sampling_seconds": seconds}
    if len(levels) < 2:
        return row | {"error": f"{len(levels)} of {len(y)} samples are finite"} | nothing
    return row | {"error": None} | score(real, model, levels, y[finite], bf16)


def settings_of(
    flow: ConditionalFlow, temperatures: list[float], mean_scales: list[float]
) -> list[tuple[float, float]]:
    """Returns (temperature, mean scale) pairs; class means that are all zero are scaled by 1 only."""
    scales = mean_scales if flow.prior.mu.any() else [1.0]
    return [(t, m) for m in scales for t in temperatures]


@torch.no_grad()
def speed(flow: ConditionalFlow, y: Tensor, threads: int) -> dict[str, Any]:
    """Returns images a second of warm batches at temperature 1; None for a flow that encodes labels.

    A batch of that may have no end.
    """
    if encodes_labels(flow):
        return {"images_per_s": None}
    g = torch.Generator().manual_seed(0)

    def sample() -> None:
        flow.sample(y, generator=g).sum().item()  # which waits for a GPU

    timing = timed({"sample": sample}, repeats=5)["sample"]
    return {
        "images_per_s": len(y) / timing["median"],
        "batch": len(y),
        "batch_seconds": timing["seconds"],
        "cpu_per_wall": timing["cpu_per_wall"],
        "disturbed": flow.device.type == "cpu" and disturbed(timing, threads),
    }


def training_set_time(rate: float | None, rows: list[dict[str, Any]], count: int) -> dict[str, Any]:
    """Returns the seconds that `count` samples take.

    Measured by the row at temperature 1 where it made so many; else from images a second; without
    those in proportion to the row's; None where that has none either.
    """
    rows = [r for r in rows if r["temperature"] == r["mean_scale"] == 1 and not r["error"]]
    made = rows[0]["images"] + rows[0]["non_finite"] if rows else 0
    if rows and (rate is None or made == count):
        seconds = rows[0]["sampling_seconds"] * count / made
        return {"training_set_seconds": seconds, "extrapolated": made != count}
    return {"training_set_seconds": rate and count / rate, "extrapolated": True}
