"""Fine-tuning of one arm: evaluation of the untouched model, then the epochs, resumably."""

from __future__ import annotations

import argparse
import contextlib
import math
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, Subset

from benchmarks.imagenet import recipe
from benchmarks.imagenet.data import ImageNetFolder
from benchmarks.imagenet.evaluate import accuracy, check_untouched, describe
from timm_nfaug._utils.files import write_atomically
from train_flow.schedule import generator

PROGRESS = ("step", "loss_sum", "seconds", "untouched", "checked", "epochs")  # in a checkpoint


class FineTuning:
    """Trains one arm, resumably.

    What an epoch trains on and in which order follows from (seed, epoch), so that a resumed run is
    the uninterrupted one, bit for bit on the CPU.

    Args:
        model: float32, on the device.
        train: see `arms.training_set`. val: normalised images in the order of `names`.
        names: official names of the validation images.
        settings: what must be equal for a checkpoint to be resumed.
        args: of the command line, with `accum` set; checkpoint.pt is in args.out.
    """

    def __init__(
        self,
        model: nn.Module,
        train: Dataset,
        val: ImageNetFolder,
        names: list[str],
        settings: dict[str, Any],
        args: argparse.Namespace,
        device: torch.device,
    ):
        self.model, self.train, self.val, self.names = model, train, val, names
        self.settings, self.args, self.device = settings, args, device
        self.checkpoint = Path(args.out) / "checkpoint.pt"
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.world = dist.get_world_size() if dist.is_initialized() else 1
        self.batch_size = settings["batch_size"]  # of an optimizer step
        self.steps_per_epoch = len(train) // self.batch_size
        if not self.steps_per_epoch:
            raise ValueError(
                f"{len(train)} samples do not fill one batch of {self.batch_size}; lower --batch-size"
            )
        self.parallel = DistributedDataParallel(model) if self.world > 1 else model
        self.optimizer, self.scheduler = recipe.make_optimizer(model.parameters())
        self.step, self.loss_sum, self.seconds = 0, 0.0, 0.0
        self.untouched: dict[str, float] | None = None
        self.checked = False
        self.epochs: list[dict[str, float]] = []
        if self.checkpoint.exists():
            if not args.resume:
                raise FileExistsError(
                    f"{self.checkpoint} exists; continue with --resume, or choose another --out"
                )
            self._restore()

    def save(self) -> None:
        """Writes the checkpoint; only the first process does. timm reads the weights from it."""
        if self.rank:
            return
        state = {
            "settings": self.settings,
            **{key: getattr(self, key) for key in PROGRESS},
            "state_dict": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
        }
        write_atomically(self.checkpoint, lambda p: torch.save(state, p))

    def _restore(self) -> None:
        state = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
        own, kept = self.settings, state["settings"]
        changed = [
            f"{k}={kept.get(k)!r} instead of {own[k]!r}" for k in own if kept.get(k) != own[k]
        ]
        if changed:
            raise ValueError(
                f"{self.checkpoint} was made with other settings: {', '.join(changed)}; "
                "resume with those, or choose another --out"
            )
        self.model.load_state_dict(state["state_dict"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        for key in PROGRESS:
            setattr(self, key, state[key])

    def _autocast(self):
        dtype = None if self.args.amp is None else getattr(torch, self.args.amp)
        return torch.autocast(self.device.type, dtype, enabled=dtype is not None)

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Returns `accuracy` on the validation images, each of them evaluated by one process."""
        start = time.monotonic()
        self.model.eval()
        mine = range(self.rank, len(self.val), self.world)
        some, batch_size = Subset(self.val, mine), 2 * self.args.batch_size
        loader = DataLoader(some, batch_size, num_workers=self.args.workers)
        top5 = torch.zeros(len(self.val), 5, dtype=torch.int64, device=self.device)
        best = []
        for images, _ in loader:
            with self._autocast():
                logits = self.model(images.to(self.device))
            best.append(logits.topk(5).indices)
        if best:
            top5[mine.start :: mine.step] = torch.cat(best)
        if self.world > 1:
            dist.all_reduce(top5)  # each row is zero in all processes but one
        found = accuracy(top5.cpu(), torch.tensor(self.val.targets), self.names)
        self.seconds += time.monotonic() - start
        return found

    def _batches(self, epoch: int, first: int) -> DataLoader:
        """Loads micro-batches of this process for the optimizer steps of `epoch` from `first` on."""
        if hasattr(self.train, "set_epoch"):
            self.train.set_epoch(epoch)
        order = torch.randperm(len(self.train), generator=generator(self.args.seed, epoch))
        order = order[: self.steps_per_epoch * self.batch_size]
        shares = order.view(self.steps_per_epoch, self.args.accum, self.world, self.args.batch_size)
        mine = shares[first:, :, self.rank].flatten(0, 1)
        sampler, pinned = (batch.tolist() for batch in mine), self.device.type == "cuda"
        return DataLoader(
            self.train, batch_sampler=sampler, num_workers=self.args.workers, pin_memory=pinned
        )

    def _optimizer_step(self, batches) -> float:
        """Accumulates --accum micro-batches, clips and steps; returns this process's mean loss."""
        accum, losses = self.args.accum, []
        # for dropout, in models that have any
        torch.manual_seed(self.args.seed + 1_000_003 * self.step + self.rank)
        for i in range(accum):
            images, labels = next(batches)
            last = i == accum - 1
            with contextlib.nullcontext() if last or self.world == 1 else self.parallel.no_sync():
                with self._autocast():
                    logits = self.parallel(images.to(self.device, non_blocking=True))
                loss = nn.functional.cross_entropy(logits.float(), labels.to(self.device)) / accum
                loss.backward()
            losses.append(loss.detach())
        total = torch.stack(losses).sum().item()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), recipe.CLIP_NORM)
        if not math.isfinite(norm):
            raise FloatingPointError(
                f"loss {total} with gradient norm {float(norm)} at step {self.step}; start again without --amp, or with "
                "another --seed"
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return total

    def _train_epoch(self, epoch: int, deadline: float) -> bool:
        """Trains the rest of an epoch; returns whether its end was reached before the deadline."""
        self.model.train()
        batches = iter(self._batches(epoch, self.step - epoch * self.steps_per_epoch))
        saved = logged = time.monotonic()
        logged_step = self.step
        while self.step < (epoch + 1) * self.steps_per_epoch:
            start = time.monotonic()
            loss, stop = self._agree(self._optimizer_step(batches), time.monotonic() > deadline)
            self.step += 1
            self.loss_sum += loss
            now = time.monotonic()
            self.seconds += now - start
            if self.step % self.args.log_every == 0:
                self._log(loss, (self.step - logged_step) * self.batch_size / (now - logged))
                logged, logged_step = now, self.step
            if stop or now - saved > 60 * self.args.checkpoint_minutes:
                self.save()
                saved = now
            if stop:
                return False
        return True

    def _agree(self, loss: float, stop: bool) -> tuple[float, bool]:
        """Averages the loss over all processes; one process's clock stops all, so that none waits for another."""
        status = torch.tensor([loss / self.world, float(stop)], device=self.device)
        if self.world > 1:
            dist.all_reduce(status)
        loss, stopped = status.tolist()
        return loss, bool(stopped)

    def _log(self, loss: float, images_per_s: float) -> None:
        memory = ""
        if self.device.type == "cuda":
            memory = f", {torch.cuda.max_memory_allocated(self.device) / 1e9:.1f} GB at most"
        steps = recipe.EPOCHS * self.steps_per_epoch
        self._say(f"step {self.step}/{steps}: loss {loss:.6g}, {images_per_s:.1f} images/s{memory}")

    def run(self) -> bool:
        """Does everything that is left to do; returns whether the end was reached within --time-limit."""
        args = self.args
        deadline = time.monotonic() + args.time_limit
        if self.untouched is None:
            self.untouched = self.evaluate()
            self._say("untouched: " + describe(self.untouched))
            self.save()  # so that nothing is evaluated twice
        if not (self.checked or args.skip_check):
            expected = {"real_top1": args.check_top1, "real_top5": args.check_top5}
            check_untouched(self.untouched, len(self.val), expected, args.tolerance)
            self.checked = True
        while len(self.epochs) < recipe.EPOCHS:
            epoch = len(self.epochs)
            if not self._train_epoch(epoch, deadline):
                return False
            rate, loss = self.optimizer.param_groups[0]["lr"], self.loss_sum / self.steps_per_epoch
            self.epochs.append(
                {"epoch": epoch + 1, "learning_rate": rate, "loss": loss, **self.evaluate()}
            )
            self.loss_sum = 0.0
            self.scheduler.step()
            self.save()
            self._say(f"epoch {epoch + 1}: loss {loss:.6g}, " + describe(self.epochs[-1]))
        return True

    def _say(self, line: str) -> None:
        if self.rank == 0:
            print(line, flush=True)
