"""A script of the shape of timm's train.py that trains nothing: it writes down its batches.

Images are not cropped, flipped, jittered or shuffled. OUTPUT gets args.yaml and batches.npz: every
fourth pixel of the images as levels, and the labels.
"""

import argparse
import functools
import importlib
from pathlib import Path

import numpy as np
import timm.data
import torch
import yaml
from timm.data import create_dataset

from tests.golden.inputs import in_order

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)

parser = argparse.ArgumentParser(description="Writes down batches")
for name in ("data-dir", "output", "aa"):
    parser.add_argument(f"--{name}")
NUMBERS = {"seed": 42, "start-epoch": 0, "epochs": 1, "num-classes": 3, "img-size": 32}
for name, default in NUMBERS.items():
    parser.add_argument(f"--{name}", type=int, default=default)
parser.add_argument("--device-modules", nargs="+", default=[])


@functools.wraps(timm.data.create_loader)
def create_loader(*args, **kwargs):
    return in_order(timm.data.create_loader(*args, **kwargs))


def _parse_args():
    args = parser.parse_args()
    return args, yaml.safe_dump(args.__dict__, default_flow_style=False)


def train_one_epoch(epoch, model, loader):
    """Images as levels (N, C, H, W) and labels (N,) of one pass."""
    batches = list(loader)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    images = torch.cat([x for x, _ in batches]) * std + mean
    return (images * 255).round().clamp(0, 255).to(torch.uint8), torch.cat([y for _, y in batches])


def main():
    args, text = _parse_args()
    for module in args.device_modules:
        importlib.import_module(module)
    loader = create_loader(
        create_dataset("", root=args.data_dir, split="train"), batch_size=8, is_training=True,
        input_size=(3, args.img_size, args.img_size), auto_augment=args.aa, hflip=0.0,
        scale=(1.0, 1.0), ratio=(1.0, 1.0), color_jitter=0.0, mean=MEAN, std=STD,
        num_workers=0, persistent_workers=False, device=torch.device("cpu"),
    )  # fmt: skip
    epochs = range(args.start_epoch, args.start_epoch + args.epochs)
    seen = [train_one_epoch(epoch, None, loader) for epoch in epochs]
    images, labels = (torch.cat(parts).numpy() for parts in zip(*seen))
    output = Path(args.output)
    output.mkdir(parents=True)
    (output / "args.yaml").write_text(text)
    np.savez(output / "batches.npz", pixels=images[:, :, ::4, ::4], labels=labels)


if __name__ == "__main__":
    main()
