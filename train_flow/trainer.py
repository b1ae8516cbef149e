"""Trainer: sets up a training, takes the flow's steps, and runs to the end or to a time limit."""

from __future__ import annotations

import contextlib
import copy
import logging
import math
import signal
import time
from pathlib import Path
from typing import Any, cast

import torch
from timm.optim import create_optimizer_v2
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from timm_nfaug._utils.notices import warn
from timm_nfaug._utils.progress import progress
from timm_nfaug.flows.model import ConditionalFlow

from .alternation import Alternation, split_gaussian_images
from .checkpoint import Checkpoints, Log, hold, not_finite, try_step
from .config import TrainConfig
from .distributed import Processes
from .evaluate import evaluate
from .export import describe, export_flow
from .images import Examples, TrainingImages
from .objective import make_loss, unit_of
from .schedule import NOISE, BatchOrder, ema_rule, make_scheduler
from .signals import StopSignals
from .start import make_flow, start_flow

_logger = logging.getLogger(__name__)


class Trainer:
    """Trains a flow on images; see `TrainConfig` for every setting.

    It keeps other trainings out of `out` until `finish` or `close`, or until it is forgotten.

    Args:
        config: the settings.
        train, val: images or latents; val may be None.
        out: directory for checkpoint.pt, log.jsonl and, at the end, flow/.
        device: where to compute; the images stay on the CPU unless it is CUDA.
        resume: continue from out/checkpoint.pt, or start where there is none. Settings that change
            no step (`checkpoint.FREE`) may differ from those of the checkpoint.
        held: what keeps others out of `out` (`checkpoint.hold`), where the caller has it already.

    Raises:
        ValueError: settings, images and checkpoint do not go together, or no checkpoint is whole.
        InUseError: another process trains in `out`.

    >>> import tempfile
    >>> from train_flow.images import Images
    >>> data = Images(torch.zeros(8, 1, 8, 8, dtype=torch.uint8), torch.arange(8) % 2, ["a", "b"])
    >>> config = TrainConfig("linear", data="digits", objective="moments")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     trainer = Trainer(config, data, data, folder)
    ...     trainer.run(), trainer.finish()["images"]
    (True, 8)
    """

    def __init__(
        self,
        config: TrainConfig,
        train: Examples,
        val: Examples | None,
        out: str | Path,
        device: str | torch.device = "cpu",
        resume: bool = False,
        held: contextlib.ExitStack | None = None,
    ):
        self.config, self.train_data, self.val_data = config, train, val
        self.out, self.device, self.processes = Path(out), torch.device(device), Processes.current()
        self.checkpoints, self.log_file = Checkpoints(self.out), Log(self.out / "log.jsonl")
        self.step, self.seconds = 0, 0.0
        self._held = held or hold(self.out, self.processes, self.device)
        try:
            self._start(resume)
        except BaseException:
            self.close()
            raise

    def _start(self, resume: bool) -> None:
        _check(self.config, self.train_data, self.processes.world)
        if self.checkpoints.exist() and not resume:
            raise FileExistsError(
                f"{self.checkpoints.newest} exists; continue with --resume, or choose another --out"
            )
        self.data_hash = self.train_data.sha256()
        if self.device.type == "cuda":
            self.train_data = self.train_data.to(self.device)
        self._set_up()
        problem = self.checkpoints.restore(self.load_state_dict, self.config, self.data_hash)
        if self.processes.rank == 0:
            lost = self.log_file.drop_after(self.step) - self.step
            if problem:
                warn(f"{problem}: step {self.step} is next, and {lost} logged steps are repeated")

    def close(self) -> None:
        """Lets other trainings into `out`."""
        self._held.close()

    def _set_up(self) -> None:
        c = self.config
        own, kept = split_gaussian_images(self.train_data.labels.cpu(), c)
        self.steps = c.total_steps(len(own))
        self.images = TrainingImages(self.train_data, c, self.processes, self.device)
        self.flow = make_flow(c, self.train_data).to(self.device)
        self.origin = start_flow(self.flow, c, self.train_data)
        if c.net_dtype == "bfloat16":
            self.flow.set_net_dtype(torch.bfloat16)
            if emulates_bfloat16(self.device):
                _logger.warning(
                    "this CPU emulates bfloat16, far slower than float32; --set net_dtype=float32"
                )
        self.flow.train().set_reversible(c.reversible)
        pool, per_epoch = kept if len(kept) else own, len(own) // c.batch_size
        self.alternation = Alternation(self.flow, self.images, pool, self.steps, per_epoch)
        self.averaged: AveragedModel | None = None
        if self.steps:
            freeze_step = self.alternation.freeze_step
            self.order = BatchOrder(own, kept, c.batch_size, freeze_step, c.seed)
            self._set_up_steps()

    def _set_up_steps(self) -> None:
        c, network = self.config, self.flow.network
        if c.average != "none":
            rule = ema_rule(c.ema_decay) if c.average == "ema" else None  # None: the plain mean
            self.averaged = AveragedModel(self.flow, multi_avg_fn=rule)
        self.loss = make_loss(self.flow, c)
        if self.processes.world > 1:
            ids = [self.device.index] if self.device.type == "cuda" else None
            self.loss = DistributedDataParallel(self.loss, device_ids=ids, broadcast_buffers=False)
        self.optimizer = create_optimizer_v2(
            network, opt=c.optimizer, lr=c.lr, weight_decay=c.weight_decay
        )
        per_epoch = self.order.steps_per_epoch(0)
        self.scheduler = make_scheduler(self.optimizer, c, self.steps, per_epoch)

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed training needs, with the settings and data it belongs to."""
        state = {
            "config": self.config.to_dict(),
            "data": self.data_hash,
            "step": self.step,
            "gaussian_updates": self.alternation.updates,
            "seconds": self.seconds,
            "flow": self.flow.state_dict(),
            "gaussian_adam": self.alternation.adam.state_dict(),
        }
        if self.steps:
            state["optimizer"] = self.optimizer.state_dict()
        if self.averaged is not None:
            state["averaged"] = self.averaged.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Puts the training where it was when `state` was made."""
        if state["step"] > self.steps:
            raise ValueError(f"step {state['step']} of {self.steps}")
        self.step, self.seconds = state["step"], state["seconds"]
        self.flow.load_state_dict(state["flow"])
        self.alternation.updates = state["gaussian_updates"]
        self.alternation.adam.load_state_dict(state["gaussian_adam"])
        try_step(self.alternation.adam)
        if self.steps:
            self.optimizer.load_state_dict(state["optimizer"])
            try_step(self.optimizer)
        if self.averaged is not None:
            self.averaged.load_state_dict(state["averaged"])

    def save(self) -> None:
        """Writes the checkpoint; only the first process does.

        Raises:
            FloatingPointError: weights are not finite; the checkpoint before is kept.
            OSError: it cannot be written; the checkpoint before is kept.
        """
        if self.processes.rank == 0:
            state = self.state_dict()
            if bad := next(not_finite(state), None):
                raise self._diverged(f"{bad} is not finite")
            self.checkpoints.save(state)

    def best(self) -> ConditionalFlow:
        """The averaged flow where averaging has begun, else the flow itself."""
        if self.averaged is not None and int(self.averaged.n_averaged) > 0:
            return cast(ConditionalFlow, self.averaged.module)
        return self.flow

    def run(self, time_limit: float = math.inf) -> bool:
        """Trains to the end, or for `time_limit` seconds; returns whether the end was reached.

        Raises:
            SystemExit: after SIGTERM (143) or SIGINT (130), with the checkpoint written.
            FloatingPointError: loss or weights are not finite; the checkpoint before is kept.
            OSError: the disk is full; the checkpoint before is kept.
        """
        with StopSignals() as signals:
            number = self._train(time_limit, signals)
            self.save()
        if number := number or signals.received:
            if self.processes.rank == 0:
                name, at = signal.Signals(number).name, f"step {self.step} of {self.steps}"
                _logger.warning("stopped by %s at %s; continue with --resume", name, at)
            raise SystemExit(128 + number)
        return self.step == self.steps

    def _train(self, time_limit: float, signals: StopSignals) -> int:
        """Takes steps to the end, to the time limit or to a signal, whose number it returns."""
        c = self.config
        start = saved = since = time.monotonic()
        before, rows = self.seconds, []
        with progress(self.steps, "train_flow", "steps", self.step) as bar:
            while self.step < self.steps:
                rows.append(self.take_step())
                self.seconds = before + time.monotonic() - start
                if self.step % c.log_every == 0 or self.step == self.steps:
                    text = self._log_steps(rows, time.monotonic() - since)
                    bar.set_postfix_str(text, refresh=False)
                    rows, since = [], time.monotonic()
                bar.update()
                looked = self._snapshot(), self._validate()
                if any(looked):
                    since = time.monotonic()  # neither counts as time of the steps
                late = int(time.monotonic() - start > time_limit)
                late, number = self.processes.agree([late, signals.received], self.device)
                if late or number:
                    return number
                if time.monotonic() - saved > c.checkpoint_seconds and self.step < self.steps:
                    self.save()
                    saved = time.monotonic()
        return 0

    def take_step(self) -> list[float]:
        """Trains for one step; returns loss, likelihood, class accuracy and gradient norm."""
        self.alternation.before_step(self.step)
        values = self._flow_step()
        self.alternation.after_step(self.step)
        self.step += 1
        c = self.config
        if self.averaged is not None:
            if c.average == "ema" or self.step >= round(c.swa_from * self.steps):
                self.averaged.update_parameters(self.flow)
        return values

    def _flow_step(self) -> list[float]:
        c = self.config
        self.scheduler.step_update(self.step)
        # a shift takes a JPEG's 8x8 blocks off their grid, which costs bits, so shifted images do
        # not count in bits/dim
        whole = c.batch_size // self.processes.world // 2 if c.shift else None
        x, y = self.images(self.order(self.step), self.step, NOISE, whole)
        loss, per_dim, accuracy = self.loss(x, y, whole)
        self.flow.zero_grad(set_to_none=True)
        loss.backward()
        limit = c.clip_grad or math.inf
        norm = nn.utils.clip_grad_norm_(self.flow.network.parameters(), limit)
        stacked = torch.stack([loss.detach(), per_dim, accuracy, norm.detach()])
        self.processes.average_(stacked)
        values = stacked.tolist()
        if not math.isfinite(values[0]) or not math.isfinite(values[3]):
            raise self._diverged(f"loss {values[0]} with gradient norm {values[3]}")
        self.optimizer.step()
        return values

    def _diverged(self, what: str) -> FloatingPointError:
        c = self.config
        return FloatingPointError(
            f"{what} at step {self.step}; train again with a lower lr or a smaller clip_grad "
            f"(they were {c.lr:g} and {c.clip_grad:g}) and another --out"
        )

    def _log_steps(self, rows: list[list[float]], seconds: float) -> str:
        """Logs the means over some steps; returns the text for the progress bar."""
        loss, per_dim, accuracy, norm = torch.tensor(rows).mean(0).tolist()
        speed = len(rows) * self.config.batch_size / max(seconds, 1e-9)
        lr, updates = self.optimizer.param_groups[0]["lr"], self.alternation.updates
        unit = unit_of(self.flow.config)
        self._log(**{"loss": loss, unit: per_dim}, class_accuracy=accuracy, grad_norm=norm, lr=lr,
            images_per_second=speed, seconds=self.seconds, gaussian_updates=updates)  # fmt: skip
        shown = f"{per_dim:.3f} {unit.replace('_per_', '/')}"
        return f"{shown}, accuracy {accuracy:.3f}, {speed:.0f} images/s"

    def _snapshot(self) -> bool:
        """Exports the flow where a snapshot is due; returns whether one was."""
        due = self.step in self.config.snapshots and self.step < self.steps
        if due and self.processes.rank == 0:
            report = self._export(copy.deepcopy(self.best()), f"flow-{self.step}")
            self._log(snapshot=True, **report)
        return due

    def _validate(self) -> bool:
        """Evaluates the flow on validation images where that is due; returns whether it was."""
        c, val = self.config, self.val_data
        if not c.eval_every or self.step % c.eval_every or self.step == self.steps or val is None:
            return False
        if self.processes.rank == 0:
            report = evaluate(self.best(), val, limit=c.eval_images)
            self._log(**{f"val_{k}": v for k, v in report.items()})
        return True

    def finish(self) -> dict[str, float]:
        """Estimates the modes, saves out/flow, evaluates what was saved, and returns the report."""
        report = self._export(self.best(), "flow")
        self._log(final=True, **report)
        self.close()
        return report

    def _export(self, flow: ConditionalFlow, folder: str) -> dict[str, float]:
        hardware = f"{self.processes.world} x {self.device.type}"
        training = describe(self.config, self.step, self.seconds, hardware, self.origin)
        data = self.train_data, self.val_data
        return export_flow(flow, self.out / folder, self.config, *data, self.seconds, training)

    def _log(self, **values: Any) -> None:
        if self.processes.rank == 0:
            self.log_file.append(step=self.step, **values)


def _check(config: TrainConfig, train: Examples, world: int) -> None:
    """Refuses batches and shifts that do not fit the processes and the images."""
    c, side = config, min(train.shape[1:])
    if c.batch_size % world:
        raise ValueError(f"batch_size {c.batch_size} must be a multiple of the {world} processes")
    if c.shift and c.batch_size // world < 2:
        raise ValueError(
            f"shift needs two images or more a process, got batch_size {c.batch_size}; raise it"
        )
    if c.shift >= side:
        raise ValueError(f"shift {c.shift} must be below the image side, {side}")


def emulates_bfloat16(device: torch.device | str) -> bool:
    """Whether `device` is a CPU that computes bfloat16 in software, far slower than float32.

    >>> emulates_bfloat16("cuda")
    False
    """
    slow = ("DEFAULT", "AVX2")
    return torch.device(device).type == "cpu" and torch.backends.cpu.get_cpu_capability() in slow
