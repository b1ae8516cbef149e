"""Writes the files of today's format: flows, a cache, a training's checkpoint.

They are made once, where they are missing, and kept: the tests read what an older version wrote.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import yaml

import timm_nfaug as nfa

from .inputs import (
    CACHE,
    CLASSES,
    FLOWS,
    MODES,
    RUN,
    Pictures,
    flow,
    labels,
    levels,
    model_range,
    write_folder,
)

SIZE = (3, 8, 8)
SMALL = {"depth": 2, "hidden": 4, "patch": 2}
ARCHITECTURES = {
    "linear": {},
    "conv_p4_tiny": {"depth": 1, "hidden": 4},
    "conv_p4_small": {**SMALL, "whiten": False, "clamp": 0.4},
    "conv_p4_base": SMALL,
    "jet_p4": {"depth": 2, "hidden": 8, "blocks": 1, "heads": 2, "patch": 2},
    "resnet_ms3": {"levels": 2, "steps": 1, "blocks": [2, 1], "hidden": 4},
}
TRAINING = {
    "flow": "conv_p4_tiny", "network": {**SMALL, "whiten": False}, "prior": {"num_modes": 2},
    "image_size": 8, "batch_size": 6, "lr": 0.003, "warmup_steps": 2, "steps": 8,
    "gaussian_every": 2, "gaussian_fraction": 0.25, "discriminative": 0.05, "ema_decay": 0.9,
    "log_every": 1, "eval_every": 0, "checkpoint_seconds": 0,
}  # fmt: skip


def disturbed(network: torch.nn.Module) -> None:
    """Puts small numbers where couplings start with zeros, so that none is the identity."""
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for p in network.parameters():
            if not p.any():
                p.copy_(torch.from_numpy(rng.normal(0, 0.05, tuple(p.shape))).float())


def made(name: str, **network) -> nfa.ConditionalFlow:
    """A flow of three classes with random couplings, initialised from data, without modes."""
    torch.manual_seed(0)
    new = nfa.create_flow(
        name, input_size=SIZE, num_classes=3, prior={"num_modes": MODES}, **network
    )
    disturbed(new.network)
    x, y = levels(60), labels(60)
    new.initialize(model_range(x), y)
    return new.eval()


def with_moments(new: nfa.ConditionalFlow) -> nfa.ConditionalFlow:
    """The flow with its own kind of Gaussians set from data: bounded, or shared by all labels."""
    new.prior.set_moments(new.moments([(model_range(levels(60)), labels(60))], num_modes=MODES))
    new.config.class_names, new.config.info = (
        list(CLASSES),
        {"data": "toys", "metrics": {"bits": 1.5}},
    )
    return new


def fitted(new: nfa.ConditionalFlow, **settings) -> nfa.ConditionalFlow:
    loader = [(levels(60), labels(60))]
    return (
        nfa.NFAugment.to_fit(new, modes=MODES, **{"labels": "given"} | settings).fit(loader, 3).flow
    )


def write_flows() -> None:
    half = {"conv_p4_base"}
    for name, network in ARCHITECTURES.items():
        new = made(name, **network)
        new = with_moments(new) if name == "conv_p4_small" else fitted(new)
        new.save_pretrained(FLOWS / name, half=name in half)
    fitted(made("linear"), labels="none").save_pretrained(FLOWS / "pooled")
    with_moments(made("conv_p4_tiny", code_rows=4, **SMALL)).save_pretrained(FLOWS / "ce")
    for card in FLOWS.glob("*/README.md"):
        card.unlink()


def write_cache() -> None:
    augment = nfa.NFAugment(flow("conv_p4_tiny"), modes=MODES, labels="given")
    nfa.NFACache.build(augment, Pictures(levels(6, seed=3)), CACHE)
    (CACHE / ".lock").unlink()


def write_run() -> None:
    """A training that was stopped after three of its eight steps."""
    RUN.mkdir()
    (RUN / "config.yaml").write_text(yaml.safe_dump(TRAINING))
    with tempfile.TemporaryDirectory() as folder:
        data = write_folder(Path(folder) / "data", 8)
        command = [
            sys.executable,
            "-m",
            "train_flow",
            "--config",
            RUN / "config.yaml",
            "--data-dir",
            data,
        ]
        command += ["--out", RUN, "--device", "cpu", "--resume", "--time-limit", "0"]
        for _ in range(3):
            subprocess.run([str(c) for c in command], check=True)


def write_missing() -> None:
    for path, write in ((FLOWS, write_flows), (CACHE, write_cache), (RUN, write_run)):
        if not path.exists():
            write()


def copied_run(to: Path) -> Path:
    return Path(shutil.copytree(RUN, to))
