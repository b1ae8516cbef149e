"""How well a classifier reads the label from a move along modes: the leak of modes per class.

    python -m benchmarks.analysis.leak --data-dir DIR --data-name "CIFAR-10"

Claim: none beforehand. Data: training images alone, three seeds. Modes of the linear flow are fitted
to a few images of each class, as `labels="given"` has it, or to all of them, as `labels="none"`.
Other images get random labels, so that nothing in them tells the label, and are moved along the
modes of these labels. A classifier is trained on them and tested on others again: what it has over
chance, it read from the moves. It sees more images than it could memorise.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from benchmarks.cifar.arms import Arm, NFAStep, Settings, fitted, linear_flow
from benchmarks.cifar.quick import QuickRecipe
from benchmarks.cifar.testing import logits_of
from benchmarks.cifar.training import train
from benchmarks.core.common import command_line, environment, markdown_table, write_result
from train_flow.data import Images, load_data

RECIPE = QuickRecipe(width=32, epochs=3, batch_size=100, max_lr=0.4, weight_decay=5e-3)
CASES = (  # labels of the modes, strength, p, shrinkage
    ("given", 1.0, 1.0, 0.0), ("given", 1.0, 1.0, 100.0), ("given", 1.0, 0.5, 100.0), ("given", 0.5, 0.5, 100.0),
    ("none", 1.0, 1.0, 100.0),
)  # fmt: skip


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.analysis.leak", description=__doc__.split("\n")[0]
    )
    add = parser.add_argument
    add("--data-dir", required=True, help="ImageFolder tree with train/ and val/")
    add("--data-name", required=True)
    add("--per-class", type=int, default=50, help="images to fit modes to")
    add("--train", type=int, default=20_000, help="images to train on")
    add("--test", type=int, default=5000, help="images to test on")
    add("--epochs", type=int, default=RECIPE.epochs)
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--record", metavar="NAME", default="leak")
    return parser


def split(data: Images, sizes: Sequence[int], seed: int) -> list[Images]:
    """Random images apart from each other: so many of each class, then so many with random labels.

    Args:
        sizes: images of a class, to fit modes to; images to train on, and to test on.
    """
    g, classes = torch.Generator().manual_seed(seed), len(data.class_names)
    order = torch.randperm(len(data), generator=g)
    members = [order[data.labels[order] == k][: sizes[0]] for k in range(classes)]
    few = torch.cat(members)
    rest = order[~torch.isin(order, few)]
    found = [data.subset(few)]
    for part in rest[: sum(sizes[1:])].split(list(sizes[1:])):
        images, labels = data.subset(part), torch.arange(len(part)) % classes
        images.labels = labels[torch.randperm(len(part), generator=g)]
        found.append(images)
    return found


def read_back(
    parts: Sequence[Images], labels: str, s: Settings, recipe: QuickRecipe, seed: int
) -> float:
    """Percent of the test images whose label a classifier tells that was trained on others, moved alike.

    Args:
        parts: images to fit modes to, to train on and to test on.
    """
    few, data, other = parts
    step = NFAStep(fitted(linear_flow(few), few, s, labels))
    model, _ = train(data, Arm(before=step), recipe, seed)
    moved = step(other.levels, other.labels, torch.Generator().manual_seed(seed))
    told = logits_of(model, moved, recipe.bf16).argmax(1)
    return 100 * (told == other.labels).float().mean().item()


def measure(data: Images, args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each of `CASES`."""
    sizes, rows = (args.per_class, args.train, args.test), []
    recipe = replace(RECIPE, epochs=args.epochs, batch_size=min(RECIPE.batch_size, args.train))
    for labels, strength, p, shrinkage in CASES:
        s = Settings(strength=strength, p=p, shrinkage=shrinkage)
        shares = [
            read_back(split(data, sizes, seed), labels, s, recipe, seed) for seed in args.seeds
        ]
        rows.append(
            {"labels": labels, "strength": strength, "p": p, "shrinkage": shrinkage}
            | {"percent": sum(shares) / len(shares), "percent_by_seed": shares}
        )
    return rows


def table(rows: list[dict[str, Any]]) -> list[list[str]]:
    cells = [["modes", "strength", "p", "shrinkage", "label told"]]
    for r in rows:
        modes = "of each class" if r["labels"] == "given" else "of all images"
        numbers = (f"{r[k]:g}" for k in ("strength", "p", "shrinkage"))
        cells.append([modes, *numbers, f"{r['percent']:.0f}%"])
    return cells


def main(argv: list[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    data, _ = load_data("folder", args.data_dir, image_size=32)
    rows = measure(data, args)
    k = len(data.class_names)
    sizes = f"modes of {args.per_class} images of each of {k} classes, {args.train:,} others to train on"
    write_result(
        args.record,
        {
            "benchmark": "leak",
            "command": command_line("benchmarks.analysis.leak", argv),
            "data": f"{args.data_name}, {sizes}",
            "seeds": args.seeds,
            "environment": environment(),
            "settings": {"epochs": args.epochs, "chance": 100 / k},
            "results": {"rows": rows},
        },
    )
    print(markdown_table(table(rows)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
