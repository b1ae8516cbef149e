"""The paper's ImageNet recipe: its constants, its optimizer, and what a run of it costs.

Source: Enescu & Sahbi, ACCV 2024, supplementary section 1 and table 1. What the paper leaves open
is marked "ours".
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import timm
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.core.common import markdown_table

MODEL = "eva02_base_patch14_448.mim_in22k_ft_in22k_in1k"
IMAGE_SIZE = 448
CROP_PCT = 1.0
INTERPOLATION = "bicubic"
EPOCHS = 3
COPIES = 3  # augmented copies of every image, beside the original
LEARNING_RATE = 1e-5
# T_0 of SGDR: with it three epochs run at [1.0, 0.75, 0.25] times the learning rate
RESTART_EPOCHS = 3
CLIP_NORM = 1.0  # of all gradients together
BATCH_SIZE = 32  # ours: of one optimizer step, over all devices

# ours: the paper names timm's RandAugment and RandomErasing without settings
RANDAUGMENT = "rand-m9-mstd0.5-inc1"
ERASING = {"re_prob": 0.25, "re_mode": "pixel"}
MODES = 32  # ours: of each class
# ours: training images of each class, and their side, for the arm linear
FIT_IMAGES, FIT_SIZE = 64, 32

CLASSES, TRAIN_IMAGES, VAL_IMAGES = 1000, 1_281_167, 50_000
# the untouched model in timm's results-imagenet-real.csv
PUBLISHED = {"real_top1": 90.911, "real_top5": 98.811}
# ReaL top-1 and top-5; its baseline is the untouched model: the row that timm's table had before
PAPER = {
    "baseline": (90.896, 98.802),
    "sa": (91.191, 98.836),
    "ce": (91.182, 98.845),
    "glem": (91.229, 98.854),
}


def make_optimizer(
    parameters: Iterable[nn.Parameter],
) -> tuple[torch.optim.SGD, CosineAnnealingWarmRestarts]:
    """Creates SGD and SGDR, stepped once an epoch.

    The paper says no more than that: all else is torch's default, so there is no momentum and no
    weight decay.
    """
    optimizer = torch.optim.SGD(parameters, lr=LEARNING_RATE)
    return optimizer, CosineAnnealingWarmRestarts(optimizer, T_0=RESTART_EPOCHS)


def optimizer_steps(train_images: int, batch_size: int) -> int:
    """Counts the steps of the whole run; images that fill no batch are left out, others in each epoch."""
    return EPOCHS * ((1 + COPIES) * train_images // batch_size)


# timm publishes 313.81 images/s for the inference of this model (107.11 GMACs) on an RTX 4090 under amp
# (results/benchmark-infer-amp-nhwc-pt240-cu124-rtx4090.csv): that share of the card's peak is assumed everywhere
SHARE_OF_PEAK = 313.81 * 2 * 107.11e9 / 165.2e12
MACHINES = {  # name: devices, GB of each, dense bf16 peak of each in FLOP/s, batch of each
    "one 24 GB (RTX 4090)": (1, 24, 165.2e12, 8),
    "one 80 GB (A100)": (1, 80, 312e12, 32),
    "eight 80 GB (A100)": (8, 80, 312e12, 4),
}
LOADED = 60  # images/s that one core decodes and augments in the arm glem: three copies at 20 ms, the original at 6 ms
DISK_GB = {"training images": 147.9, "validation images": 6.7}  # the official archives, decimal


def cost(model: str) -> dict[str, int]:
    """Counts parameters, FLOPs of one image forward, and the bytes that its backward pass keeps.

    On torch's meta device, so nothing is computed. The bytes are those of float32 without fused
    attention: more than a run under bfloat16 keeps.

    Args:
        model: a name in timm.
    """
    net = timm.create_model(model, pretrained=False).to("meta")
    x = torch.empty(1, *net.pretrained_cfg["input_size"], device="meta")
    weights = {p.untyped_storage()._cdata for p in net.parameters()}
    saved = {}

    def keep(t: torch.Tensor) -> torch.Tensor:
        # the tensor too: its storage must not make room for the next
        saved[t.untyped_storage()._cdata] = t
        return t

    with (
        FlopCounterMode(display=False) as counter,
        torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t),
    ):
        net(x)
    return {
        "parameters": sum(p.numel() for p in net.parameters()),
        "flops": counter.get_total_flops(),
        "kept_bytes": sum(
            t.untyped_storage().nbytes() for key, t in saved.items() if key not in weights
        ),
    }


def plan() -> str:
    """Estimates what the recipe costs on full ImageNet: a table and the assumptions behind it. Nothing is measured."""
    c = cost(MODEL)
    seen = EPOCHS * (1 + COPIES) * TRAIN_IMAGES
    evaluated = (1 + EPOCHS) * VAL_IMAGES
    total = c["flops"] * (3 * seen + evaluated)  # backward: twice the forward pass
    return "\n".join([
        f"{MODEL}, one arm on full ImageNet, with --amp bfloat16: an estimate.",
        "",
        f"images: {EPOCHS} epochs x {1 + COPIES} x {TRAIN_IMAGES:,} = {seen:,} seen, and {1 + EPOCHS} evaluations of "
        f"{VAL_IMAGES:,}",
        f"optimizer steps: {optimizer_steps(TRAIN_IMAGES, BATCH_SIZE):,} of {BATCH_SIZE} images",
        f"compute: {c['flops'] / 1e9:.1f} GFLOP an image forward, three times that in training; {total / 1e18:.2f} EFLOP",
        "",
        markdown_table(machines(c, seen + evaluated, total)),
        "",
        assumptions(c),
    ])  # fmt: skip


def machines(c: dict[str, int], images: int, flops: float) -> list[list[str]]:
    """Returns cells: a column for each of `MACHINES`."""
    labels = [
        "", "--batch-size", "--accum", "memory of a device, estimated", "hours", "GPU hours", "cores that load, all devices",
    ]  # fmt: skip
    columns = []
    for name, (devices, gigabytes, peak, batch) in MACHINES.items():
        hours = flops / (devices * peak * SHARE_OF_PEAK) / 3600
        memory = (batch * c["kept_bytes"] + 4 * 4 * c["parameters"]) / 1e9 + 1
        columns.append([
            name, f"{batch}", f"{max(1, BATCH_SIZE // (batch * devices))}", f"{memory:.1f} of {gigabytes} GB",
            f"{hours:.1f}", f"{hours * devices:.1f}", f"{math.ceil(images / hours / 3600 / LOADED)}",
        ])  # fmt: skip
    return [list(row) for row in zip(labels, *columns, strict=True)]


def assumptions(c: dict[str, int]) -> str:
    """Says where the figures of `machines` come from."""
    weights = 4 * c["parameters"]
    disk = ", ".join(f"{what} {size:g} GB" for what, size in DISK_GB.items())
    return "\n".join([
        f"hours: {100 * SHARE_OF_PEAK:.0f}% of the bf16 peak ({', '.join(f'{m[2] / 1e12:g}' for m in MACHINES.values())} "
        "TFLOP/s), which is what timm's published inference rate of",
        f"{MODEL.partition('.')[0]} on an RTX 4090 comes to; the same share in training and on the others is assumed, "
        "perfect scaling too",
        f"memory: {c['kept_bytes'] / 1e9:.2f} GB kept an image (counted in float32 without fused attention, so on the high "
        f"side), four times the weights ({weights / 1e9:.2f} GB), 1 GB",
        "of CUDA; --grad-checkpointing keeps the inputs of the blocks alone, for a third more time",
        f"loading: {LOADED} images/s a core in the arm glem with conv_p4_small (an AMD EPYC, photographs of short side 256; "
        "ImageNet's are larger)",
        f"disk: {disk}, checkpoint {math.ceil(weights / 1e7) / 100:g} GB, twice that while it is written; the copies are drawn "
        "on the fly and take none",
    ])  # fmt: skip
