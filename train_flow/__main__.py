"""Command line: trains a flow, resumes it after a kill, and reports on the validation images."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import math
import os
import signal
import sys
from pathlib import Path

import torch

from timm_nfaug._utils.progress import QUIET

from .checkpoint import hold
from .config import TrainConfig, list_configs, load_config
from .data import load_data
from .distributed import Processes, init_distributed, leave_distributed
from .images import Examples
from .latents import load_latents
from .plan import plan
from .signals import interruptible
from .trainer import Trainer


def main(argv: list[str] | None = None) -> int:
    """Runs ``python -m train_flow`` with the arguments `argv`."""
    parser = _make_parser()
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if args.quiet:
        os.environ[QUIET] = "1"
    code = 2
    try:
        if args.plan:
            config = load_config(args.config, args.set)
            print("\n".join(plan(config, args.data_dir, torch.device(args.device))))
            return 0
        with interruptible():
            trainer = _make_trainer(args)
            code = 1
            if args.resume and not trainer.step and trainer.processes.rank == 0:
                logging.warning("nothing to resume in %s: starts at step 0", trainer.out)
            with contextlib.closing(trainer):
                _run(trainer, args.time_limit)
    except (ValueError, OSError, ImportError, FloatingPointError) as e:
        parser.exit(code, f"error: {e}\n")
    except KeyboardInterrupt as e:  # before or after the steps, where there is nothing to save
        number = e.args[0] if e.args else signal.SIGINT
        parser.exit(128 + number, "interrupted; continue with --resume\n")
    leave_distributed()
    return 0


def _run(trainer: Trainer, time_limit: float) -> None:
    done = trainer.run(time_limit)
    if trainer.processes.rank == 0:
        if done:
            print(json.dumps(trainer.finish(), indent=2))
            print(f"flow saved to {trainer.out / 'flow'}")
        else:
            print(f"stopped at step {trainer.step} of {trainer.steps}; continue with --resume")


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m train_flow", description="Train a flow for timm_nfaug."
    )
    add, configs = parser.add_argument, ", ".join(list_configs())
    add("--config", required=True, help=f"a YAML file, or one of: {configs}")
    tree = "ImageFolder tree (train/, val/), or where CIFAR is or will be downloaded"
    add("--data-dir", help=tree)
    add("--out", help="output directory (default: runs/CONFIG)")
    override = "override a setting; repeatable"
    add("--set", action="append", default=[], metavar="KEY=VALUE", help=override)
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    resume = "continue from the checkpoint in --out, if there is one"
    add("--resume", action="store_true", help=resume)
    what = "print images, bytes and hours of the training, by a short trial, and stop"
    add("--plan", action="store_true", help=what)
    limit = "stop, resumably, after this"
    add("--time-limit", type=_seconds, default=math.inf, metavar="SECONDS", help=limit)
    quiet = "show no progress, as the environment variable TIMM_NFAUG_QUIET=1 asks for everywhere"
    add("--quiet", action="store_true", help=quiet)
    return parser


def _seconds(text: str) -> float:
    seconds = float(text)
    if not seconds >= 0:  # NaN, too
        raise ValueError
    return seconds


_seconds.__name__ = "number of seconds"  # as argparse names what it refuses


def _make_trainer(args: argparse.Namespace) -> Trainer:
    c = load_config(args.config, args.set)
    device = init_distributed(args.device)
    out = Path(args.out or Path("runs") / Path(args.config).name.removesuffix(".yaml"))
    with hold(out, Processes.current(), device) as held:
        train, val = _load(c, args.data_dir, out, device)
        if not c.labels:
            train, val = train.without_labels(), val if val is None else val.without_labels()
        return Trainer(c, train, val, out, device, args.resume, held.pop_all())


def _load(
    c: TrainConfig, data_dir: str | None, out: Path, device: torch.device
) -> tuple[Examples, Examples | None]:
    if c.space == "latent":
        return load_latents(c, data_dir, out, device)
    images = c.image_size, c.in_chans, c.val_fraction, c.skip_unreadable, c.seed
    return load_data(c.data, data_dir, *images)


if __name__ == "__main__":
    code = main()
    for number in (signal.SIGTERM, signal.SIGINT):  # all is saved: nothing is left to interrupt
        signal.signal(number, signal.SIG_IGN)
    sys.exit(code)
