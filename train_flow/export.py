"""A trained flow on disk: its principal modes, its files, its report and its model card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from timm_nfaug.flows.model import ConditionalFlow

from .checkpoint import not_finite
from .config import TrainConfig
from .data import stratified_split
from .evaluate import E, code_moments, evaluate
from .images import Examples


@torch.no_grad()
def export_flow(
    flow: ConditionalFlow,
    folder: Path,
    config: TrainConfig,
    train: Examples,
    val: Examples | None,
    seconds: float,
    training: str,
) -> dict[str, float]:
    """Estimates the modes of a flow, stores it in `folder` and evaluates what was stored.

    Args:
        flow: is changed: it gets its modes, computes in full precision and is in eval mode.
        folder: OUT/flow or OUT/flow-STEP.
        train, val: images for the modes and for the report; without `val` the report is empty.
        seconds: duration of the training, for the card.
        training: how the flow was trained, for the card (`describe`).

    Raises:
        FloatingPointError: weights or modes are not finite; nothing is written.
    """
    flow.eval().set_net_dtype(None)
    if problem := _modes_problem(flow, train, config):
        remedy = f"train again with a lower lr (it was {config.lr:g}) and another --out"
        raise FloatingPointError(f"{problem}, so {folder} is not written; {remedy}")
    name = folder.parent.name + folder.name.removeprefix("flow").replace("-", "_")
    info: dict[str, Any] = {
        "data": config.data_name or train.name or config.data,
        "training_seconds": round(seconds, 1),
    }
    flow.config.info = info
    flow.save_pretrained(folder, config.half, name=name)
    report: dict[str, float] = {}
    if val is not None:
        report = evaluate(ConditionalFlow.from_pretrained(folder).to(flow.device), val)
        info["metrics"] = _card_metrics(report, flow.num_classes, config)
    info["training"] = training
    flow.save_pretrained(folder, config.half, name=name)
    return report


def _modes_problem(flow: ConditionalFlow, train: Examples, config: TrainConfig) -> str:
    """Sets the modes of a flow; says what is not finite then, or ""."""
    try:
        set_modes(flow, mode_images(train, config), config)
    except torch.linalg.LinAlgError as e:  # as NaN among the codes gives
        return f"the codes have no modes ({e})"
    return next((f"{k} is not finite" for k in not_finite({"flow": flow.state_dict()})), "")


def mode_images(data: E, config: TrainConfig) -> E:
    """The images that the modes are estimated from: all, or about `mode_images` of every class.

    >>> from train_flow.images import Images
    >>> data = Images(torch.zeros(8, 1, 2, 2, dtype=torch.uint8), torch.arange(8) % 2, ["a", "b"])
    >>> mode_images(data, TrainConfig(image_size=2, mode_images=4)).labels.bincount().tolist()
    [2, 2]
    """
    if not 0 < config.mode_images < len(data):
        return data
    labels = data.labels.cpu()
    _, pick = stratified_split(labels, config.mode_images / len(data), config.seed)
    single = torch.nonzero(labels.bincount()[labels] == 1).flatten()  # a split leaves them out
    return data.subset(torch.cat([pick, single]).sort().values)


def set_modes(flow: ConditionalFlow, data: Examples, config: TrainConfig) -> None:
    """Sets the modes from the codes of `data`; the whole Gaussians, where those are closed-form."""
    moments = code_moments(flow, data)
    if config.objective == "moments" or config.modes_every:
        flow.prior.set_moments(moments)
    elif flow.prior.num_modes:
        _, _, modes, std = moments.finish()
        flow.prior.set_modes(modes, std)


def describe(config: TrainConfig, steps: int, seconds: float, hardware: str, origin: str) -> str:
    """How a flow was trained, in a few sentences for its card.

    Args:
        hardware: e.g. "1 x cuda".
        origin: what it started from, "" for a training from scratch.
    """
    c = config
    if c.objective == "moments":
        return (
            "Class Gaussians and modes in closed form, one pass over the data; "
            f"no gradient step.{origin}"
        )
    shifts = f"half of each batch shifted by up to {c.shift} pixels" if c.shift else "no shifts"
    unlabelled = "" if c.labels else ", labels not looked at"
    fits = f" Means, modes and variances were fitted anew every {c.modes_every} steps."
    return (
        f"Objective `{c.objective}` (discriminative weight {c.discriminative:g}, "
        f"temperature {c.temperature:g}, {shifts}), {steps} steps of batch {c.batch_size} "
        f"({steps * c.batch_size:,} images{unlabelled}), {c.optimizer} with learning rate {c.lr:g} "
        f"({c.schedule}), average {c.average}, {seconds:.0f} s on {hardware}. "
        f"Kernels and modes are stored in {'float16' if c.half else 'float32'}."
        f"{fits if c.modes_every else ''}{origin}"
    )


def _card_metrics(
    report: dict[str, float], num_classes: int, config: TrainConfig
) -> dict[str, float | str]:
    """The report as the card has it; a flow of one class has no accuracy and no separation."""
    dropped = {"images"} | ({"class_accuracy", "mean_pairwise_kl"} if num_classes == 1 else set())
    split = "held out of training" if config.val_fraction else "validation"
    metrics: dict[str, float | str] = {k: v for k, v in report.items() if k not in dropped}
    return metrics | {"measured_on": f"{report['images']} {split} images"}
