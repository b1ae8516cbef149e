"""A script of the shape of timm's train.py: module-level parsers, `create_loader` from timm, `main()`, args.yaml."""

import argparse
import os

import timm
import torch
import yaml
from timm.data import Mixup, create_dataset, create_loader
from timm.utils import random_seed

config_parser = parser = argparse.ArgumentParser(description="Training Config", add_help=False)
parser.add_argument("-c", "--config", default="", type=str, metavar="FILE")

parser = argparse.ArgumentParser(description="Toy training")
parser.add_argument("--data-dir")
parser.add_argument("--output")
parser.add_argument("--aug-repeats", type=float, default=0)
parser.add_argument("--aug-splits", type=int, default=0)
parser.add_argument("--no-prefetcher", action="store_true")
parser.add_argument("--mixup", type=float, default=0.0)
parser.add_argument("--reprob", type=float, default=0.0)
parser.add_argument("--seed", type=int, default=42)
parser.add_argument("--start-epoch", type=int, default=0)
parser.add_argument("-j", "--workers", type=int, default=0)


def _parse_args():
    args_config, remaining = config_parser.parse_known_args()
    if args_config.config:
        with open(args_config.config) as f:
            parser.set_defaults(**yaml.safe_load(f))
    args = parser.parse_args(remaining)
    return args, yaml.safe_dump(args.__dict__, default_flow_style=False)


def train_one_epoch(epoch, model, loader, optimizer, mixup):
    losses, seen = [], []
    for x, y in loader:
        if mixup is not None:
            x, y = mixup(x, y)
        loss = torch.nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        seen.append((x.detach().clone(), y))
    return losses, seen


def main():
    args, args_text = _parse_args()
    random_seed(args.seed)  # torch, numpy and random, as train.py does
    model = timm.create_model("test_resnet", num_classes=3)
    common = dict(
        input_size=(3, 32, 32), batch_size=20, use_prefetcher=not args.no_prefetcher, num_workers=args.workers,
        persistent_workers=False, device=torch.device("cpu"), mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2),
    )  # fmt: skip
    collate, mixup = None, None
    if args.mixup:
        kwargs = dict(mixup_alpha=args.mixup, num_classes=3, label_smoothing=0.0)
        if args.no_prefetcher:
            mixup = Mixup(**kwargs)
        else:
            collate = timm.data.FastCollateMixup(**kwargs)
    train = create_loader(
        create_dataset("", root=args.data_dir, split="train"), is_training=True, re_prob=args.reprob, collate_fn=collate,
        num_aug_splits=args.aug_splits, hflip=0.0, scale=(1.0, 1.0), ratio=(1.0, 1.0), color_jitter=0.0, **common,
    )  # fmt: skip
    val = create_loader(create_dataset("", root=args.data_dir, split="val"), is_training=False, crop_pct=1.0, **common)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    losses, seen = train_one_epoch(args.start_epoch, model, train, optimizer, mixup)
    os.makedirs(args.output, exist_ok=True)
    with open(os.path.join(args.output, "args.yaml"), "w") as f:
        f.write(args_text)
    torch.save({"losses": losses, "train": seen, "val": torch.cat([x for x, _ in val])}, os.path.join(args.output, "seen.pt"))


if __name__ == "__main__":
    main()
