"""Command line: trains a flow, resumes it after a kill, and reports on the validation images."""

from __future__ import annotations

import argparse
import json
import logging
import math
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from .config import list_configs, load_config
from .data import load_data
from .trainer import Trainer, init_distributed


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m train_flow", description="Train a flow for timm_nfaug."
    )
    parser.add_argument(
        "--config", required=True, help=f"a YAML file, or one of: {', '.join(list_configs())}"
    )
    parser.add_argument(
        "--data-dir",
        help="ImageFolder tree (train/, val/), or where CIFAR is or will be downloaded",
    )
    parser.add_argument("--out", help="output directory (default: runs/CONFIG)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a setting; repeatable",
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--resume", action="store_true", help="go on from the checkpoint in --out, if there is one"
    )
    parser.add_argument(
        "--time-limit",
        type=float,
        default=math.inf,
        metavar="SECONDS",
        help="stop, resumably, after this",
    )
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        config = load_config(args.config, args.set)
        device = init_distributed(args.device)
        out = Path(args.out or Path("runs") / Path(args.config).name.removesuffix(".yaml"))
        train, val = load_data(
            config.data, args.data_dir, config.image_size, config.in_chans,
            config.val_fraction, config.skip_unreadable, config.seed,
        )  # fmt: skip
        if not config.labels:
            train, val = train.without_labels(), val if val is None else val.without_labels()
        trainer = Trainer(config, train, val, out, device, args.resume)
    except (ValueError, FileNotFoundError, FileExistsError) as e:
        parser.exit(2, f"error: {e}\n")
    done = trainer.run(args.time_limit)
    if trainer.rank == 0:
        if done:
            report = trainer.finish()
            print(json.dumps(report, indent=2))
            print(f"flow saved to {out / 'flow'}")
        else:
            print(f"stopped at step {trainer.step} of {trainer.steps}; go on with --resume")
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
