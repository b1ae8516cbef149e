"""The command line of the CIFAR comparison, and what it refuses."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import torch

from benchmarks.cifar.arms import ARMS, Settings, find, needs_flow
from benchmarks.cifar.classifier import MODELS, Recipe
from benchmarks.core.common import command_line

PAPER = {"cifar10": (30, 128), "cifar100": (50, 198)}  # epochs, batch size
TRAIN = "train:"


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Arguments of `python -m benchmarks.cifar.resnet18`; ends the program where they do not fit one another."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cifar.resnet18",
        description="ResNet18 on CIFAR with every augmentation, and the controls.",
    )
    add_data(parser)
    add_arms(parser)
    add_training(parser)
    add_machine(parser)
    args = parser.parse_args(argv)
    if problem := wrong(args):
        parser.error(problem)
    if args.threads is None:
        args.threads = max(1, torch.get_num_threads() // args.jobs)
    epochs, batch_size = PAPER.get(args.data, PAPER["cifar10"])
    args.epochs, args.batch_size = args.epochs or [epochs], args.batch_size or batch_size
    args.flow = dict(item.partition("=")[::2] for item in args.flow)
    if problem := wrong_flows(args):
        parser.error(problem)
    args.command = command_line("benchmarks.cifar.resnet18", argv)
    return args


def arm_name(text: str) -> str:
    """The name of an arm; argparse shows what is wrong with another."""
    try:
        return find(text) and text
    except ValueError as e:
        raise argparse.ArgumentTypeError(str(e)) from None


def add_data(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--data",
        required=True,
        help="cifar10, cifar100 or an ImageFolder tree with train/ and val/",
    )
    add("--data-dir", help="where CIFAR lies or is downloaded to")
    add("--data-name", help="how the record calls the data; required for a tree")
    add("--image-size", type=int, default=32, help="of a tree's images")
    add("--fraction", type=float, default=1.0, help="of the training set, above 0")
    add(
        "--split", nargs="+", choices=("test", "held"), default=["test"],
        help="images that are reported on; held: to choose settings",
    )  # fmt: skip
    add("--corrupted", type=int, default=0, help="test images for the corruptions; 0: none")


def add_arms(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--arms", nargs="+", type=arm_name, default=["baseline", "sa", "linear"], metavar="ARM",
        help=f"{', '.join(ARMS)}, or a policy and a move, as in sa+linear",
    )  # fmt: skip
    add(
        "--flow", nargs="+", default=[], metavar="ARM=NAME",
        help="of the arms: glem=NAME_OR_DIR ce=train:CONFIG",
    )  # fmt: skip
    add("--flow-trained-on", help="what the networks have seen, e.g. 'all images, without labels'")
    for field in dataclasses.fields(Settings):
        add(f"--{field.name}", type=type(field.default), default=field.default)


def add_training(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    add("--model", choices=MODELS, default="resnet18")
    add(
        "--epochs", type=int, nargs="+",
        help="several make arms of equal time comparable; default: the paper's",
    )  # fmt: skip
    add("--batch-size", type=int, help="default: the paper's")
    add("--max-lr", type=float, default=Recipe.max_lr)
    add("--init", default="", help="weights to start from, all but the head: a file of --save")
    add("--save", type=Path, help="directory for the weights of each classifier")
    add("--record", type=Path, help="another file for the runs")


def add_machine(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--device", default="cpu")
    add("--threads", type=int, help="default: the cores, over --jobs")
    add(
        "--no-bf16", dest="bf16", action="store_false",
        help="all in float32: faster on a CPU without AVX-512",
    )  # fmt: skip
    add("--compile", action="store_true")
    add(
        "--workers", type=int, default=0,
        help="processes beside each training, for PIL policies after the crop",
    )  # fmt: skip
    add(
        "--jobs", type=int, default=1,
        help="classifiers trained at once, whose seconds tell nothing",
    )  # fmt: skip
    add(
        "--time-limit", type=float, default=float("inf"),
        help="seconds; no run is begun that would take longer, at the pace of those before",
    )  # fmt: skip


def wrong(args: argparse.Namespace) -> str | None:
    """Numbers and data that do not fit one another."""
    if not 0 < args.fraction <= 1:
        return f"--fraction must be above 0 and at most 1, got {args.fraction:g}"
    if args.fraction == 1 and len(args.split) > 1:
        return "at --fraction 1 no images are held out of what --split test trains on; choose one split"
    if args.jobs < 1 or args.workers < 0:
        return f"--jobs must be at least 1 and --workers at least 0, got {args.jobs} and {args.workers}"
    return None


def wrong_flows(args: argparse.Namespace) -> str | None:
    """Flows that are missing or belong to no arm; and data without a name."""
    flows = args.flow
    if unknown := sorted(name for name in flows if not needs_flow(name)):
        known = ", ".join(name for name in ARMS if needs_flow(name))
        return f"--flow takes ARM=NAME with an arm of {known}; got {', '.join(unknown)}"
    if args.jobs > 1 and any(f.startswith(TRAIN) for f in flows.values()):
        return f"--flow ARM={TRAIN}CONFIG trains a flow once for all arms of a seed, so it needs --jobs 1"
    for arm in filter(needs_flow, args.arms):
        if not (flows.get(arm) or flows.get(find(arm).flow)):
            return f"arm {arm} needs --flow {find(arm).flow}=NAME"
    named = [f for f in flows.values() if not f.startswith(TRAIN)]
    if named and not args.flow_trained_on:
        return f"--flow-trained-on is needed with flow {Path(named[0]).name}: what images and labels its network has seen"
    if args.data not in PAPER and not args.data_name:
        return "--data-name is needed with an ImageFolder tree, e.g. 'CIFAR-10 (JPEG)'"
    return None
