"""The training loop: batches, optimizer, the Gaussians' alternation, averaging, checkpoints, logs.

Every random choice is a function of (seed, purpose, step), so a checkpoint holds no generator state and a resumed
training is the uninterrupted one, bit for bit.
"""

from __future__ import annotations

import copy
import json
import logging
import math
import os
import time
from pathlib import Path

import torch
import torch.distributed as dist
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler, MultiStepLRScheduler
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

import timm_nfaug
from timm_nfaug import pixels
from timm_nfaug._utils.files import write_atomically
from timm_nfaug.flows.model import ConditionalFlow
from timm_nfaug.flows.moments import ClassMoments

from .config import TrainConfig
from .data import Images, random_shift, stratified_split
from .evaluate import batches, evaluate
from .objective import FlowLoss, gaussian_loss, piecewise

_logger = logging.getLogger(__name__)

# settings that change no step of a training: --resume may come with others
FREE = {
    "data_name",
    "log_every",
    "eval_every",
    "eval_images",
    "checkpoint_seconds",
    "mode_images",
    "half",
}

ORDER, NOISE, FLIP, GAUSSIANS, START, MODES = range(6)  # purposes of random numbers


def generator(seed: int, *key: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator keyed by a seed and small integers; on another kind of device it draws other numbers."""
    for k in key:
        seed = (seed * 6364136223846793005 + k + 1442695040888963407) % 2**63
    return torch.Generator(device).manual_seed(seed)


def ema_rule(decay: float):
    """Of the averaged weights: an exponential mean whose decay warms up, so that the first weights do not linger.

    With 0.999 from the start they would still have a share of 13% after 2,000 steps.
    """

    def update(averages, current, count) -> None:
        count = int(count)  # of updates before this one
        get_ema_multi_avg_fn(min(decay, (1 + count) / (10 + count)))(averages, current, count)

    return update


class BatchOrder:
    """Which images make up step t: a pure function of t.

    Up to `merge_step` the epochs run over `first`, afterwards over `first` and `second` together.
    """

    def __init__(self, first: Tensor, second: Tensor, batch_size: int, merge_step: int, seed: int):
        self.batch_size, self.merge_step, self.seed = batch_size, merge_step, seed
        self.phases = [first, torch.cat([first, second]).sort().values]
        smallest = min(len(p) for p in self.phases)
        if smallest < batch_size:
            raise ValueError(
                f"batch_size {batch_size} exceeds the {smallest} training images; lower it"
            )
        self._kept: tuple = (None, None)

    def steps_per_epoch(self, step: int) -> int:
        return len(self.phases[int(step >= self.merge_step)]) // self.batch_size

    def __call__(self, step: int) -> Tensor:
        """Indices (batch_size,) of step `step`."""
        merged = step >= self.merge_step
        epoch, i = divmod(step - self.merge_step if merged else step, self.steps_per_epoch(step))
        key = (int(merged), epoch)
        if self._kept[0] != key:
            pool = self.phases[int(merged)]
            order = torch.randperm(len(pool), generator=generator(self.seed, ORDER, *key))
            self._kept = (key, pool[order])
        return self._kept[1][i * self.batch_size : (i + 1) * self.batch_size]


def emulates_bfloat16(device: torch.device | str) -> bool:
    """Whether `device` is a CPU that computes bfloat16 in software, many times slower than float32."""
    return torch.device(device).type == "cpu" and torch.backends.cpu.get_cpu_capability() in (
        "DEFAULT",
        "AVX2",
    )


class Trainer:
    """Trains a flow on images; see `TrainConfig` for every setting.

    Args:
        config: the training.
        train, val: images; val may be None.
        out: directory for checkpoint.pt, log.jsonl and, at the end, flow/.
        device: of the computation; the images stay on the CPU unless it is CUDA.
        resume: go on from out/checkpoint.pt; without one, start. Settings that change no step (`FREE`) may be others then.
    """

    def __init__(
        self,
        config: TrainConfig,
        train: Images,
        val: Images | None,
        out: str | Path,
        device: str | torch.device = "cpu",
        resume: bool = False,
    ):
        self.config, self.train_data, self.val_data = config, train, val
        self.out, self.device = Path(out), torch.device(device)
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.world = dist.get_world_size() if dist.is_initialized() else 1
        if config.batch_size % self.world:
            raise ValueError(
                f"batch_size {config.batch_size} must be a multiple of the {self.world} processes"
            )
        if config.shift and config.batch_size // self.world < 2:
            raise ValueError(
                f"shift needs two images or more a process, got batch_size {config.batch_size}; raise it"
            )
        if config.shift >= min(train.levels.shape[2:]):
            raise ValueError(
                f"shift {config.shift} must be below the image side, {min(train.levels.shape[2:])}"
            )
        self.checkpoint = self.out / "checkpoint.pt"
        if self.checkpoint.exists() and not resume:
            raise FileExistsError(
                f"{self.checkpoint} exists; go on with --resume, or choose another --out"
            )
        self.data_hash = train.sha256()
        self._make_data()
        self._make_flow()
        self.step = 0
        self.gaussian_updates = 0
        self.seconds = 0.0
        if self.checkpoint.exists():
            self._load()
        if self.rank == 0:
            _drop_log_after(self.out / "log.jsonl", self.step)
            for leftover in self.out.glob(
                f".{self.checkpoint.name}.*"
            ):  # of a kill while the checkpoint was written
                leftover.unlink()

    # -- set-up ------------------------------------------------------------------------------------------------------

    @property
    def alternates(self) -> bool:
        """Whether the Gaussians are trained by turns with the flow."""
        return self.config.objective in ("glem", "ml")

    @property
    def joint(self) -> bool:
        """Whether the Gaussians are trained in the flow's own steps."""
        return self.config.objective == "joint"

    def _make_data(self) -> None:
        c = self.config
        everything = torch.arange(len(self.train_data))
        first, self.gaussian_pool = everything, everything
        second = torch.empty(0, dtype=torch.int64)
        if self.alternates and c.gaussian_fraction:
            first, second = stratified_split(
                self.train_data.labels.cpu(), c.gaussian_fraction, c.seed
            )
            self.gaussian_pool = second
            if not len(second):
                raise ValueError(
                    "gaussian_fraction takes no image, as every class has one alone; set gaussian_fraction=0"
                )
        per_epoch = len(first) // c.batch_size
        if c.objective == "moments":
            self.steps = 0
        else:
            self.steps = c.steps or max(1, round(c.epochs * max(per_epoch, 1)))
        self.freeze_step = round(c.gaussian_until * self.steps)
        if c.objective != "moments":
            self.order = BatchOrder(first, second, c.batch_size, self.freeze_step, c.seed)
            self.gaussian_every = c.gaussian_every or per_epoch
        if self.device.type == "cuda":
            self.train_data = Images(
                self.train_data.levels.to(self.device),
                self.train_data.labels.to(self.device),
                self.train_data.class_names,
            )

    def _make_flow(self) -> None:
        c, data = self.config, self.train_data
        torch.manual_seed(c.seed)  # weights of the networks
        self.flow = timm_nfaug.create_flow(
            c.flow,
            input_size=tuple(data.levels.shape[1:]),
            num_classes=len(data.class_names),
            bits=c.bits,
            code_rows=c.code_rows,
            prior=c.prior,
            class_names=data.class_names,
            **c.network,
        )
        if self.steps and not any(True for _ in self.flow.network.parameters()):
            raise ValueError(
                f"flow {c.flow} has no weights for objective {c.objective} to train; set objective=moments"
            )
        self.flow.to(self.device)
        self.origin = ""  # what the card says of the flow this training starts from
        if c.init:
            other = ConditionalFlow.from_pretrained(c.init)
            self._start_from(other)
            self.origin = f" It started from a flow trained so: {other.config.info.get('training') or 'not stated.'}"
        else:
            self._start_from_data()
        counts = torch.bincount(data.labels.cpu(), minlength=len(data.class_names))
        self.flow.log_prior.copy_((counts / counts.sum()).log())
        self.flow.train().set_net_dtype(torch.bfloat16 if c.net_dtype == "bfloat16" else None)
        if c.net_dtype == "bfloat16" and emulates_bfloat16(self.device):
            _logger.warning(
                "this CPU emulates bfloat16, many times slower than float32; --set net_dtype=float32"
            )
        self.flow.set_reversible(c.reversible)
        self.flow.prior.requires_grad_(
            self.joint
        )  # by turns, only the Gaussians' own step asks for their gradient
        self.gaussian_adam = torch.optim.Adam([self.flow.prior.mu, self.flow.prior.s])
        self.averaged = None
        if c.average != "none" and self.steps:
            rule = ema_rule(c.ema_decay) if c.average == "ema" else None
            self.averaged = AveragedModel(self.flow, multi_avg_fn=rule)
        if self.steps:
            loss = FlowLoss(self.flow, c.discriminative, c.temperature)
            if self.world > 1:
                ids = [self.device.index] if self.device.type == "cuda" else None
                loss = DistributedDataParallel(loss, device_ids=ids, broadcast_buffers=False)
            self.loss = loss
            self.optimizer = create_optimizer_v2(
                self.flow.network,
                opt=c.optimizer,
                lr=c.lr,
                weight_decay=c.weight_decay,
                filter_bias_and_bn=True,
            )
            self.scheduler = self._make_scheduler()

    def _start_from(self, other: ConditionalFlow) -> None:
        mine, theirs = self.flow.config, other.config
        for key in ("architecture", "input_size", "num_classes", "network", "prior", "code_rows"):
            if getattr(mine, key) != getattr(theirs, key):
                raise ValueError(
                    f"init: {key} of that flow is {getattr(theirs, key)}, of this training {getattr(mine, key)}"
                )
        if theirs.class_names and mine.class_names != theirs.class_names:
            raise ValueError(
                f"init: that flow knows the classes {theirs.class_names[:5]}, the data {mine.class_names[:5]}"
            )
        self.flow.load_state_dict(other.state_dict())

    def _start_from_data(self) -> None:
        c, data = self.config, self.train_data
        if c.objective == "random":
            self.flow.prior.randomize(generator(c.seed, START, 1))
        elif c.objective == "ce":
            self.flow.prior.set_variance(torch.ones_like(self.flow.prior.s))
        pick = torch.randperm(len(data), generator=generator(c.seed, START))[: min(len(data), 2048)]
        x = pixels.dequantize(
            data.levels[pick.to(data.levels.device)], c.bits, generator(c.seed, START, 2)
        )
        self.flow.initialize(x, data.labels[pick.to(data.labels.device)])

    def _make_scheduler(self):
        c = self.config
        warmup = {
            "warmup_t": min(c.warmup_steps, self.steps - 1),
            "warmup_lr_init": 1e-6,
            "warmup_prefix": False,
        }
        if c.schedule == "cosine":
            return CosineLRScheduler(
                self.optimizer, t_initial=self.steps, lr_min=c.lr_floor, t_in_epochs=False, **warmup
            )
        per_epoch = self.order.steps_per_epoch(0)
        halvings = int(math.log2(c.lr / c.lr_floor) + 1e-9) if c.lr_floor else 64
        decays = [round((c.halve_from + i * c.halve_every) * per_epoch) for i in range(halvings)]
        return MultiStepLRScheduler(
            self.optimizer, decay_t=decays, decay_rate=0.5, t_in_epochs=False, **warmup
        )

    # -- state -------------------------------------------------------------------------------------------------------

    def _state(self) -> dict:
        state = {
            "config": self.config.to_dict(),
            "data": self.data_hash,
            "step": self.step,
            "gaussian_updates": self.gaussian_updates,
            "seconds": self.seconds,
            "flow": self.flow.state_dict(),
            "gaussian_adam": self.gaussian_adam.state_dict(),
        }
        if self.steps:
            state["optimizer"] = self.optimizer.state_dict()
        if self.averaged is not None:
            state["averaged"] = self.averaged.state_dict()
        return state

    def save(self) -> None:
        """Writes the checkpoint; only the first process does."""
        if self.rank == 0:
            write_atomically(self.checkpoint, lambda p: torch.save(self._state(), p))

    def _load(self) -> None:
        # step counts stay on the CPU, where Adam reads them without waiting for a GPU
        state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        # a setting that is newer than the checkpoint had its default
        mine, theirs = self.config.to_dict(), TrainConfig(data="digits").to_dict() | state["config"]
        changed = [k for k in mine if theirs.get(k) != mine[k] and k not in FREE]
        if changed:
            raise ValueError(
                f"{self.checkpoint} was made with other settings: "
                + ", ".join(f"{k}={theirs.get(k)!r} instead of {mine[k]!r}" for k in changed)
                + "; resume with those, or choose another --out"
            )
        if state["data"] != self.data_hash:
            raise ValueError(
                f"{self.checkpoint} was made with other data; resume with those, or choose another --out"
            )
        self.step, self.gaussian_updates = state["step"], state["gaussian_updates"]
        self.seconds = state["seconds"]
        self.flow.load_state_dict(state["flow"])
        self.gaussian_adam.load_state_dict(state["gaussian_adam"])
        if self.steps:
            self.optimizer.load_state_dict(state["optimizer"])
        if self.averaged is not None:
            self.averaged.load_state_dict(state["averaged"])

    def log(self, **values) -> None:
        if self.rank == 0:
            self.out.mkdir(parents=True, exist_ok=True)
            rounded = {
                k: float(f"{v:.6g}") if isinstance(v, float) else v
                for k, v in values.items()
                if v == v
            }  # no NaN
            with (self.out / "log.jsonl").open("a", encoding="utf-8") as f:
                f.write(json.dumps(rounded) + "\n")

    # -- one step ----------------------------------------------------------------------------------------------------

    def _images(
        self, indices: Tensor, step: int, purpose: int, whole: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Dequantised images in [-1, 1] and labels of this process's share of `indices`; from `whole` on shifted."""
        c = self.config
        indices = indices[self.rank :: self.world]
        where = indices.to(self.train_data.levels.device)
        levels, y = self.train_data.levels[where], self.train_data.labels[where]
        g = generator(c.seed, purpose, step, self.rank, device=levels.device)
        if c.flip:
            flipped = torch.rand(len(levels), generator=g, device=levels.device) < 0.5
            levels = torch.where(flipped.view(-1, 1, 1, 1), levels.flip(3), levels)
        if whole is not None:
            levels = torch.cat([levels[:whole], random_shift(levels[whole:], c.shift, g)])
        x = pixels.dequantize(levels, c.bits, g)
        return x.to(self.device), y.to(self.device)

    def _flow_step(self) -> tuple[float, float, float, float]:
        self.scheduler.step_update(self.step)
        c = self.config
        # a shift takes a JPEG's 8x8 blocks off their grid, which costs bits: shifted images do not count in bits/dim
        whole = c.batch_size // self.world // 2 if c.shift else None
        x, y = self._images(self.order(self.step), self.step, NOISE, whole)
        loss, bpd, accuracy = self.loss(x, y, whole)
        self.flow.zero_grad(set_to_none=True)
        loss.backward()
        limit = c.clip_grad or math.inf
        norm = torch.nn.utils.clip_grad_norm_(self.flow.network.parameters(), limit)
        values = torch.stack([loss.detach(), bpd, accuracy, norm.detach()])
        if self.world > 1:
            dist.all_reduce(values)
            values /= self.world
        values = values.tolist()
        if not math.isfinite(values[0]) or not math.isfinite(values[3]):
            raise FloatingPointError(
                f"loss {values[0]} with gradient norm {values[3]} at step {self.step}; train again with a lower lr or a "
                f"smaller clip_grad (they were {c.lr:g} and {c.clip_grad:g}) and another --out"
            )
        self.optimizer.step()
        if self.joint and self.step < self.freeze_step:
            self._gaussian_adam_step()
        return tuple(values)

    def _gaussian_indices(self, every_class: bool = False) -> Tensor:
        """Indices of the images of D_G that an update at this step is made from.

        Args:
            every_class: add to them the first image in the same random order of each class that they miss.
        """
        c, pool = self.config, self.gaussian_pool
        pool = pool[torch.randperm(len(pool), generator=generator(c.seed, GAUSSIANS, self.step))]
        n = c.gaussian_images or len(pool)
        if not every_class:
            return pool[:n]
        labels = self.train_data.labels[pool.to(self.train_data.labels.device)].cpu()
        first = torch.full((self.flow.num_classes,), len(pool)).scatter_reduce(
            0, labels, torch.arange(len(pool)), "amin"
        )
        return torch.cat([pool[:n], pool[first[(first >= n) & (first < len(pool))]]])

    def _gaussian_step(self) -> None:
        """One Adam update of all Gaussians on the codes of D_G."""
        c, prior = self.config, self.flow.prior
        t = self._alternation_time()
        codes, labels = [], []
        with torch.no_grad():
            for i, part in enumerate(self._gaussian_indices().split(512)):
                x, y = self._images(part, self.step * 4096 + i, GAUSSIANS)
                codes.append(self.flow(x)[0])
                labels.append(y)
        weight = piecewise(c.kld_weight, t, geometric=False) if c.objective == "glem" else 0.0
        prior.requires_grad_(True)
        loss = gaussian_loss(
            prior,
            torch.cat(codes),
            torch.cat(labels),
            weight,
            c.discriminative,
            self.flow.dim,
            c.temperature,
        )
        grads = torch.autograd.grad(loss, [prior.mu, prior.s])
        prior.requires_grad_(False)
        if self.world > 1:
            for g in grads:
                dist.all_reduce(g)
                g /= self.world
        if (
            self.gaussian_updates == 1
        ):  # the first update knew no KLD, all Gaussians being equal: forget its moments
            self.gaussian_adam.state.clear()
        prior.mu.grad, prior.s.grad = grads
        self._gaussian_adam_step()
        prior.mu.grad = prior.s.grad = None

    @torch.no_grad()
    def _fit_gaussians(self) -> None:
        """Means, modes and variances in closed form from codes of D_G: the large directions need not be learned away."""
        some = self.train_data.subset(
            self._gaussian_indices(every_class=True).to(self.train_data.levels.device)
        )
        self.flow.prior.set_moments(_moments(self.flow, some))

    def _gaussian_adam_step(self) -> None:
        for group in self.gaussian_adam.param_groups:
            group["lr"] = piecewise(
                self.config.gaussian_lr, self._alternation_time(), geometric=True
            )
        self.gaussian_adam.step()
        self.gaussian_updates += 1

    def _alternation_time(self) -> float:
        """Position in the schedules of the Gaussians: 0 at the start, 1 where they freeze."""
        return self.step / max(self.freeze_step, 1)

    def _average(self) -> None:
        c = self.config
        if self.averaged is None:
            return
        if c.average == "ema" or self.step >= round(c.swa_from * self.steps):
            self.averaged.update_parameters(self.flow)

    # -- the whole ---------------------------------------------------------------------------------------------------

    def best(self) -> ConditionalFlow:
        """The averaged flow where averaging has begun, else the flow itself."""
        if self.averaged is not None and int(self.averaged.n_averaged) > 0:
            return self.averaged.module
        return self.flow

    def run(self, time_limit: float = math.inf) -> bool:
        """Trains to the end, or for `time_limit` seconds; returns whether the end was reached."""
        c = self.config
        start = saved = time.monotonic()
        before = self.seconds
        bar = tqdm(
            total=self.steps,
            initial=self.step,
            disable=self.rank > 0 or not self.steps,
            unit="step",
            mininterval=1,
        )
        window, window_start = [], time.monotonic()
        while self.step < self.steps:
            if (
                self.alternates
                and self.step
                and self.step < self.freeze_step
                and self.step % self.gaussian_every == 0
            ):
                self._gaussian_step()
            if c.modes_every and self.step < self.freeze_step and self.step % c.modes_every == 0:
                self._fit_gaussians()
            window.append(self._flow_step())
            self.step += 1
            self._average()
            self.seconds = before + time.monotonic() - start
            bar.update()
            if self.step % c.log_every == 0 or self.step == self.steps:
                loss, bpd, accuracy, norm = torch.tensor(window).mean(0).tolist()
                speed = len(window) * c.batch_size / max(time.monotonic() - window_start, 1e-9)
                lr = self.optimizer.param_groups[0]["lr"]
                self.log(
                    step=self.step, loss=loss, bits_per_dim=bpd, class_accuracy=accuracy, grad_norm=norm, lr=lr,
                    images_per_second=speed, seconds=self.seconds, gaussian_updates=self.gaussian_updates,
                )  # fmt: skip
                bar.set_postfix_str(
                    f"{bpd:.3f} bits/dim, accuracy {accuracy:.3f}, {speed:.0f} images/s"
                )
                window, window_start = [], time.monotonic()
            if self.step in c.snapshots and self.step < self.steps and self.rank == 0:
                self.log(
                    step=self.step,
                    snapshot=True,
                    **self._export(copy.deepcopy(self.best()), f"flow-{self.step}"),
                )
                window_start = time.monotonic()
            if (
                c.eval_every
                and self.step % c.eval_every == 0
                and self.step < self.steps
                and self.val_data is not None
            ):
                if self.rank == 0:
                    report = evaluate(self.best(), self.val_data, limit=c.eval_images)
                    self.log(step=self.step, **{f"val_{k}": v for k, v in report.items()})
                window_start = time.monotonic()
            stop = self._agreed(time.monotonic() - start > time_limit)
            if stop or time.monotonic() - saved > c.checkpoint_seconds:
                self.save()
                saved = time.monotonic()
            if stop and self.step < self.steps:
                bar.close()
                return False
        bar.close()
        self.save()
        return True

    def _agreed(self, stop: bool) -> bool:
        """The first process decides for all, so that none waits for another in a reduction."""
        if self.world == 1:
            return stop
        flag = torch.tensor(float(stop), device=self.device)
        dist.broadcast(flag, 0)
        return bool(flag)

    def finish(self) -> dict:
        """Estimates the modes, saves out/flow, evaluates what was saved, and returns the report."""
        report = self._export(self.best(), "flow")
        self.log(step=self.step, final=True, **report)
        return report

    @torch.no_grad()
    def _export(self, flow: ConditionalFlow, folder: str) -> dict:
        c = self.config
        flow = flow.eval().set_net_dtype(None)
        name = self.out.name + folder.removeprefix("flow").replace("-", "_")
        data = self.train_data
        if c.mode_images and c.mode_images < len(data):
            labels = data.labels.cpu()
            _, pick = stratified_split(labels, c.mode_images / len(data), c.seed)
            single = torch.nonzero(
                torch.bincount(labels)[labels] == 1
            ).flatten()  # no split takes a class's only image
            data = data.subset(torch.cat([pick, single]).sort().values.to(data.levels.device))
        moments = _moments(flow, data)
        if c.objective == "moments" or c.modes_every:
            flow.prior.set_moments(moments)
        elif flow.prior.num_modes:
            _, _, modes, std = moments.finish()
            flow.prior.set_modes(modes, std)
        info = {
            "data": c.data_name or c.data,
            "license": "apache-2.0",
            "training_seconds": round(self.seconds, 1),
        }
        flow.config.info = info
        flow.save_pretrained(self.out / folder, c.half, name=name)
        report = {}
        if self.val_data is not None:
            stored = ConditionalFlow.from_pretrained(self.out / folder).to(self.device)
            report = evaluate(stored, self.val_data)
            split = "held out of training" if c.val_fraction else "validation"
            dropped = {"images"} | (
                {"class_accuracy", "mean_pairwise_kl"} if flow.num_classes == 1 else set()
            )
            info["metrics"] = {k: v for k, v in report.items() if k not in dropped}
            info["metrics"]["measured_on"] = f"{report['images']} {split} images"
        info["training"] = self._describe()
        flow.save_pretrained(self.out / folder, c.half, name=name)
        return report

    def _describe(self) -> str:
        c = self.config
        if c.objective == "moments":
            return f"Class Gaussians and modes in closed form, one pass over the data; no gradient step.{self.origin}"
        seen = self.step * c.batch_size
        fits = (
            f" Means, modes and variances were fitted anew every {c.modes_every} steps."
            if c.modes_every
            else ""
        )
        return (
            f"Objective `{c.objective}` (discriminative weight {c.discriminative:g}, temperature {c.temperature:g}, "
            f"{f'half of each batch shifted by up to {c.shift} pixels' if c.shift else 'no shifts'}), {self.step} steps of batch "
            f"{c.batch_size} ({seen:,} images{'' if c.labels else ', labels not looked at'}), {c.optimizer} with learning rate "
            f"{c.lr:g} ({c.schedule}), average {c.average}, {self.seconds:.0f} s on {self.world} x {self.device.type}. Kernels "
            f"and modes are stored in {'float16' if c.half else 'float32'}.{fits}{self.origin}"
        )


def _moments(flow: ConditionalFlow, data: Images) -> ClassMoments:
    """Of the codes of `data`, with as many modes as the flow stores."""
    pairs = ((pixels.levels_to_model(levels), y) for levels, y in batches(data, 512))
    return flow.moments(pairs, num_modes=flow.prior.num_modes)


def _drop_log_after(path: Path, step: int) -> None:
    """Removes what a killed run logged after its last checkpoint; the resumed run writes it again."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (json.JSONDecodeError, KeyError):  # a line cut short by the kill
            continue
    write_atomically(path, lambda p: p.write_text("".join(kept), encoding="utf-8"))


def init_distributed(device: str) -> torch.device:
    """Joins the process group that torchrun describes, if it does; returns this process's device."""
    if "WORLD_SIZE" not in os.environ or int(os.environ["WORLD_SIZE"]) == 1:
        return torch.device(device)
    if device.startswith("cuda"):
        local = int(os.environ["LOCAL_RANK"])
        torch.cuda.set_device(local)
        dist.init_process_group("nccl")
        return torch.device("cuda", local)
    dist.init_process_group("gloo")
    return torch.device(device)
