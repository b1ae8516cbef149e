"""A timm model fine-tuned on ImageNet by the paper's recipe, and tested on ImageNet-ReaL before and after each epoch.

    python -m benchmarks.imagenet.real --plan
    python -m benchmarks.imagenet.real --data-dir IMAGENET --arm glem --flow NAME --amp bfloat16 --out runs/glem
    torchrun --nproc-per-node 8 -m benchmarks.imagenet.real --data-dir IMAGENET --arm sa --amp bfloat16 --batch-size 4 ...

Claim: none of ours yet; the paper's figures and the recipe are in `benchmarks.imagenet.recipe`, the
arms in `benchmarks.imagenet.arms`. Data: ImageNet, IMAGENET holds train/ and val/ with a folder for
each wnid; one seed a run. The paper's baseline is the untouched model, which every run measures
first: where timm's published figures are missed, it stops.

The paper leaves open, and we chose: all images are brought to the model's size as for evaluation,
without random crop or flip, and the copies are augmented at that size and drawn again in each
epoch; SGD without momentum or weight decay; plain cross-entropy; no drop path; 32 images a step.
The weights stay in float32: a step of this recipe changes them by less than half precision can
hold.

With `--space latent` the loading processes encode and decode each copy on the CPU: for parts of
ImageNet, not for all of it.

A flow of other classes than ImageNet's 1,000 supplies the class of an image by its own posterior.
`NFAugment.fit` would give it ImageNet's, but not with conditional encoding, and both arms are to be
treated alike.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import Any

import timm
import torch
import torch.distributed as dist
from timm.data import resolve_data_config
from torch import nn

from benchmarks.core.common import command_line, environment, markdown_table, write_result
from benchmarks.imagenet import recipe
from benchmarks.imagenet.arms import (
    ARMS,
    SPACES,
    check_space,
    fit_linear,
    make_augment,
    training_set,
)  # fmt: skip
from benchmarks.imagenet.data import ImageNetFolder, normalized
from benchmarks.imagenet.evaluate import METRICS, real_names
from benchmarks.imagenet.training import FineTuning
from timm_nfaug import NFAugment
from timm_nfaug.autoencoder import load_autoencoder
from train_flow.distributed import init_distributed


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.imagenet.real", description=__doc__.split("\n")[0]
    )
    add = parser.add_argument
    add("--plan", action="store_true", help="print what the recipe costs, and end")
    tree = "folder with train/ and val/, a folder for each wnid in them"
    add("--data-dir", type=Path, help=tree)
    add("--arm", choices=ARMS)
    flow = "of the arms ce and glem: bundled name, directory, Hub id"
    add("--flow", metavar="NAME", help=flow)
    strength = "of the arms linear, ce and glem (default: 0.5)"
    add("--strength", type=float, default=0.5, help=strength)
    add("--out", type=Path, help="directory of the checkpoint (default: runs/imagenet_ARM)")
    resume = "continue from the checkpoint in --out, if there is one"
    add("--resume", action="store_true", help=resume)
    add("--record", metavar="NAME", help="at the end also write benchmarks/results/NAME.json")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--seed", type=int, default=0)
    limit = "stop, resumably, after this"
    add("--time-limit", type=float, default=math.inf, metavar="SECONDS", help=limit)
    add("--checkpoint-minutes", type=float, default=15.0)
    add("--log-every", type=int, default=50, metavar="STEPS")
    add_space(parser)
    add_steps(parser)
    add_checks(parser)
    return parser


def add_space(parser: argparse.ArgumentParser) -> None:
    """Adds where the arms linear, ce and glem move images."""
    add = parser.add_argument
    add("--space", choices=SPACES, help="default: latent where --autoencoder is given, else pixels")
    autoencoder = "of the latents: Hub id, directory, FILE.py:FUNCTION (default: what --flow names)"
    add("--autoencoder", metavar="NAME", help=autoencoder)
    size = "side of the images that it encodes (default: of --flow, or the model's up to 112)"
    add("--size", type=int, metavar="PIXELS", help=size)


def add_steps(parser: argparse.ArgumentParser) -> None:
    """Adds how the images of a step are split and computed."""
    add = parser.add_argument
    add("--batch-size", type=int, default=8, help="images of one pass of one device (default: 8)")
    accum = f"passes of an optimizer step (default: what brings it to {recipe.BATCH_SIZE} images)"
    add("--accum", type=int, help=accum)
    amp = "autocast; the weights stay float32 (default: off)"
    add("--amp", choices=["bfloat16"], help=amp)
    less = "less memory for a third more time (EVA: timm >= 1.0.15)"
    add("--grad-checkpointing", action="store_true", help=less)
    add("--workers", type=int, default=4, help="loading processes of each device (default: 4)")


def add_checks(parser: argparse.ArgumentParser) -> None:
    """Adds what the untouched model must reach, and what smoke runs do otherwise."""
    check = parser.add_argument_group("check of the untouched model, in percent on ImageNet-ReaL")
    check.add_argument("--check-top1", type=float, default=recipe.PUBLISHED["real_top1"])
    check.add_argument("--check-top5", type=float, default=recipe.PUBLISHED["real_top5"])
    check.add_argument("--tolerance", type=float, default=0.1)
    smoke = parser.add_argument_group("smoke runs").add_argument
    model = f"a timm model of 1,000 classes (default: {recipe.MODEL})"
    smoke("--model", default=recipe.MODEL, help=model)
    smoke("--no-pretrained", action="store_true", help="random weights")
    smoke("--img-size", type=int, help="instead of the model's own")
    skip = "train whatever the untouched model gives; recorded"
    smoke("--skip-check", action="store_true", help=skip)


def set_accum(args: argparse.Namespace, world: int) -> None:
    """Sets --accum where it is not given; raises ValueError where no number of passes gives the recipe's batch."""
    if args.batch_size < 1 or (args.accum is not None and args.accum < 1):
        raise ValueError(
            f"--batch-size and --accum must be at least 1, got {args.batch_size} and {args.accum}"
        )
    if args.accum is None:
        args.accum, rest = divmod(recipe.BATCH_SIZE, args.batch_size * world)
        if rest or not args.accum:
            raise ValueError(
                f"--batch-size {args.batch_size} on {world} devices does not divide the recipe's batch of "
                f"{recipe.BATCH_SIZE}; change it, or say --accum for another batch"
            )


def make_model(args: argparse.Namespace, device: torch.device) -> tuple[nn.Module, dict[str, Any]]:
    """Creates the model, float32, and timm's data config of it with the recipe's crop and interpolation."""
    torch.manual_seed(args.seed)  # of random weights
    size = {} if args.img_size is None else {"img_size": args.img_size}
    model = timm.create_model(args.model, pretrained=not args.no_pretrained, **size).to(device)
    if model.num_classes != recipe.CLASSES:
        raise ValueError(
            f"{args.model} has {model.num_classes} classes, ImageNet {recipe.CLASSES}; name another --model"
        )
    if args.grad_checkpointing:
        model.set_grad_checkpointing()
    wanted = {"crop_pct": recipe.CROP_PCT, "interpolation": recipe.INTERPOLATION, **size}
    return model, resolve_data_config(wanted, model=model)


def prepare(args: argparse.Namespace, device: torch.device) -> FineTuning:
    """Creates model, data and settings of a run; raises ValueError or FileNotFoundError for what cannot work."""
    world = dist.get_world_size() if dist.is_initialized() else 1
    set_accum(args, world)
    args.space = args.space or SPACES[args.autoencoder is not None]
    check_space(args.arm, args.space, args.autoencoder, args.size)
    autoencoder = None if args.autoencoder is None else load_autoencoder(args.autoencoder)
    augment = make_augment(args.arm, args.flow, args.strength, args.space, autoencoder, args.size)
    model, data_config = make_model(args, device)
    base = ImageNetFolder(args.data_dir / "train", data_config)
    val = ImageNetFolder(args.data_dir / "val", data_config)
    val.transform = normalized(data_config)
    names = real_names([path for path, _ in val.samples])
    if args.arm == "linear":  # last: what else is wrong is said before a pass over images
        augment = fit_linear(base, args.strength, args.workers, autoencoder, args.size)
    settings = {
        "model": args.model,
        "pretrained": not args.no_pretrained,
        "image_size": data_config["input_size"][-1],
        "crop_mode": data_config["crop_mode"],
        "arm": args.arm,
        "flow": None if augment is None else without_directories(args.flow or "linear"),
        **described(augment),
        # how it is split over devices and passes may change
        "batch_size": args.batch_size * args.accum * world,
        "amp": args.amp,
        "seed": args.seed,
        "train_images": len(base),
        "val_images": len(val),
    }
    train = training_set(args.arm, base, data_config, augment, args.seed)
    return FineTuning(model, train, val, names, settings, args, device)


def described(augment: NFAugment | None) -> dict[str, Any]:
    """What a record says of an augmentation, and of the autoencoder whose latents it moves."""
    found = getattr(augment, "autoencoder", None)
    if found is None:
        return {"augment": None if augment is None else repr(augment)}
    name = without_directories(found.name) if Path(found.name).is_absolute() else found.name
    return {
        "augment": repr(augment).replace(found.name, name) if name else repr(augment),
        "autoencoder": name,
        "size": augment.size,
        "digest": found.digest(),
    }


def without_directories(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2]


def result(run: FineTuning, argv: list[str] | None) -> dict[str, Any]:
    """Returns the record of a run."""
    s, args = run.settings, run.args
    whole = (s["train_images"], s["val_images"]) == (recipe.TRAIN_IMAGES, recipe.VAL_IMAGES)
    smoke = "images under ImageNet's names (not ImageNet-1k)"
    name = "ImageNet-1k and ImageNet-ReaL" if whole else smoke
    split = {"devices": run.world, "accum": args.accum}
    return {
        "benchmark": "imagenet_real",
        "command": command_line("benchmarks.imagenet.real", argv),
        "data": f"{name}: {s['train_images']} training images, {s['val_images']} validation images",
        "seeds": [args.seed],
        "environment": environment(),
        "settings": {
            **s,
            **split,
            "space": args.space,
            "grad_checkpointing": args.grad_checkpointing,
        },
        "results": {
            "arm": s["arm"],
            "flow": s["flow"],
            "untouched": run.untouched,
            "checked": run.checked,
            "epochs": run.epochs,
            "images_seen": run.step * run.batch_size,
            "optimizer_steps": run.step,
            "seconds": run.seconds,
        },
    }


def table(run: FineTuning) -> list[list[str]]:
    """Returns cells: the untouched model, then each epoch."""
    rows = {"untouched": run.untouched} | {f"epoch {e['epoch']}": e for e in run.epochs}
    cells = [[name, *(f"{found[key]:.3f}" for key in METRICS)] for name, found in rows.items()]
    return [["", *METRICS], *cells]


def main(argv: list[str] | None = None) -> int:
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.plan:
        print(recipe.plan())
        return 0
    if args.data_dir is None or args.arm is None:
        parser.error("--data-dir and --arm are needed, or --plan")
    args.out = args.out or Path("runs") / f"imagenet_{args.arm}"
    device = init_distributed(args.device)
    try:
        run = prepare(args, device)
    except (ValueError, OSError, ImportError) as e:
        parser.exit(2, f"error: {e}\n")
    done = run.run()
    if run.rank == 0 and done:
        print(f"\n{markdown_table(table(run))}\n")
        if args.record:
            write_result(args.record, result(run, argv))
    elif run.rank == 0:
        steps = recipe.EPOCHS * run.steps_per_epoch
        print(f"stopped at step {run.step} of {steps}; continue with --resume")
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
