"""A script of the shape of timm's train.py on timm's own parts: module-level parsers, `create_loader`, `main()`, args.yaml.

What a test wants to see of a training is saved as seen.pt: losses, the batches as the model got them, the validation
images. Images are not cropped, flipped or jittered, so that those of two trainings can be compared one by one.
"""

import argparse
import contextlib
import importlib
import os

import timm
import torch
import yaml
from timm.data import AugMixDataset, FastCollateMixup, Mixup, create_dataset, create_loader
from timm.loss import (
    BinaryCrossEntropy,
    JsdCrossEntropy,
    LabelSmoothingCrossEntropy,
    SoftTargetCrossEntropy,
)
from timm.utils import init_distributed_device, random_seed

try:
    from timm.data import create_naflex_loader
except ImportError:  # timm before 1.0.16
    create_naflex_loader = None

config_parser = parser = argparse.ArgumentParser(description="Training Config", add_help=False)
parser.add_argument("-c", "--config", default="", type=str, metavar="FILE")

parser = argparse.ArgumentParser(description="Toy training")
for name in ("data-dir", "output"):
    parser.add_argument(f"--{name}")
for name in ("no-prefetcher", "bce-loss", "jsd-loss", "resplit", "channels-last", "amp", "no-aug", "use-multi-epochs-loader",
             "naflex-loader", "pretrained"):  # fmt: skip
    parser.add_argument(f"--{name}", action="store_true")
for name in ("aug-repeats", "mixup", "cutmix", "reprob", "smoothing"):
    parser.add_argument(f"--{name}", type=float, default=0.0)
for name, default in (("aug-splits", 0), ("seed", 42), ("start-epoch", 0), ("epochs", 1), ("mixup-off-epoch", 0),
                      ("grad-accum-steps", 1), ("img-size", 32), ("in-chans", None), ("num-classes", 3)):  # fmt: skip
    parser.add_argument(f"--{name}", type=int, default=default)
for name, default in (("aa", None), ("mixup-mode", "batch"), ("remode", "const"), ("model-dtype", "float32"), ("dataset", ""),
                      ("device", "cpu"), ("model", "toy")):  # fmt: skip
    parser.add_argument(f"--{name}", default=default)
for name, kind in (("mean", float), ("std", float), ("train-img-sizes", int)):
    parser.add_argument(f"--{name}", type=kind, nargs="+")
parser.add_argument("--device-modules", nargs="+", default=[])
parser.add_argument("-j", "--workers", type=int, default=0)


def _parse_args():
    args_config, remaining = config_parser.parse_known_args()
    if args_config.config:
        with open(args_config.config) as f:
            parser.set_defaults(**yaml.safe_load(f))
    args = parser.parse_args(remaining)
    return args, yaml.safe_dump(args.__dict__, default_flow_style=False)


def train_one_epoch(epoch, model, loader, optimizer, args, loss_fn, mixup_fn):
    if args.mixup_off_epoch and epoch >= args.mixup_off_epoch:
        if not args.no_prefetcher and loader.mixup_enabled:
            loader.mixup_enabled = False
        elif mixup_fn is not None:
            mixup_fn.mixup_enabled = False
    losses, seen = [], []
    for i, (x, y) in enumerate(loader):
        if args.no_prefetcher:
            x = x.to(getattr(torch, args.model_dtype))
            if mixup_fn is not None:
                x, y = mixup_fn(x, y)
        if args.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16) if args.amp else contextlib.nullcontext():
            loss = loss_fn(model(x), y)
        loss.backward()
        if (i + 1) % args.grad_accum_steps == 0 or i + 1 == len(loader):
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
        seen.append((x.detach().clone(), y.clone()))
    return losses, seen


def make_loss(args):
    if args.jsd_loss:
        return JsdCrossEntropy(num_splits=args.aug_splits, smoothing=args.smoothing)
    if args.bce_loss:
        return BinaryCrossEntropy(smoothing=args.smoothing)
    if args.mixup or args.cutmix:
        return SoftTargetCrossEntropy()
    return LabelSmoothingCrossEntropy(smoothing=args.smoothing)


def main():
    args, args_text = _parse_args()
    for module in args.device_modules:
        importlib.import_module(module)
    device = init_distributed_device(args)
    random_seed(args.seed, args.rank)  # torch, numpy and random, as train.py does
    channels = args.in_chans or 3
    dtype = getattr(torch, args.model_dtype)
    model = timm.create_model("test_resnet", num_classes=args.num_classes, in_chans=channels).to(
        dtype
    )
    common = dict(
        use_prefetcher=not args.no_prefetcher, num_workers=args.workers, img_dtype=dtype, device=device,
        mean=tuple(args.mean or (0.5, 0.4, 0.3)[:channels]), std=tuple(args.std or (0.2, 0.2, 0.2)[:channels]),
        distributed=args.distributed, persistent_workers=args.workers > 0,  # timm before 1.0.16 does not look
    )  # fmt: skip
    train_only = dict(
        is_training=True, batch_size=20, no_aug=args.no_aug, re_prob=args.reprob, re_mode=args.remode, re_split=args.resplit,
        num_aug_splits=args.aug_splits, auto_augment=args.aa, hflip=0.0, scale=(1.0, 1.0), ratio=(1.0, 1.0), color_jitter=0.0,
    )  # fmt: skip
    if args.dataset:  # module:function
        module, _, function = args.dataset.partition(":")
        data = getattr(importlib.import_module(module), function)(args.data_dir)
    else:
        data = create_dataset(
            "", root=args.data_dir, split="train", input_img_mode="L" if channels == 1 else "RGB"
        )
    collate_fn, mixup_fn = None, None
    if args.mixup or args.cutmix:
        mixing = dict(
            mixup_alpha=args.mixup, cutmix_alpha=args.cutmix, mode=args.mixup_mode, num_classes=args.num_classes,
            label_smoothing=args.smoothing,
        )  # fmt: skip
        if args.no_prefetcher:
            mixup_fn = Mixup(**mixing)
        else:
            collate_fn = FastCollateMixup(**mixing)
    if args.naflex_loader:
        train = create_naflex_loader(
            data, patch_size=8, train_seq_lens=(16,), max_seq_len=16, **train_only, **common
        )
    else:
        if args.aug_splits:
            data = AugMixDataset(data, num_splits=args.aug_splits)
        if args.train_img_sizes:
            train_only |= dict(input_size_choices=args.train_img_sizes, batch_choice_seed=args.seed)
        train = create_loader(
            data, input_size=(channels, args.img_size, args.img_size), collate_fn=collate_fn,
            use_multi_epochs_loader=args.use_multi_epochs_loader, num_aug_repeats=args.aug_repeats, **train_only, **common,
        )  # fmt: skip
    val_data = create_dataset(
        "", root=args.data_dir, split="val", input_img_mode="L" if channels == 1 else "RGB"
    )
    val = create_loader(
        val_data, (channels, args.img_size, args.img_size), batch_size=20, crop_pct=1.0, **common
    )
    if args.distributed:
        model = torch.nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    loss_fn = make_loss(args)
    losses, seen = [], []
    for epoch in range(args.start_epoch, args.start_epoch + args.epochs):
        for sampler in (getattr(train, "batch_sampler", None), train.sampler):
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(epoch)
                break
        new = train_one_epoch(epoch, model, train, optimizer, args, loss_fn, mixup_fn)
        losses, seen = losses + new[0], seen + new[1]
    os.makedirs(args.output, exist_ok=True)
    with open(os.path.join(args.output, "args.yaml"), "w") as f:
        f.write(args_text)
    name = f"seen{args.rank}.pt" if args.distributed else "seen.pt"
    torch.save(
        {"losses": losses, "train": seen, "val": torch.cat([x for x, _ in val])},
        os.path.join(args.output, name),
    )
    if args.distributed:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
