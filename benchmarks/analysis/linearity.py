"""What a flow's augmentation does that its linear special case does not: shares of the energy of its change.

    python -m benchmarks.analysis.linearity --flow conv_p4_small.cifar10 linear --data-dir DIR --data-name "CIFAR-10"

Claim: none beforehand. Data: validation images, `--images` of each class; one seed. Class Gaussians
and modes of all flows are fitted to the images measured on. Images of a class are moved by the same
noise along the same modes, and the change of the pixels is split:

- same for all: what the change of every image of the class has in common. The linear flow's change
  is the same for all images; a flow is worth its price for what it does differently from image to
  image.
- eigen-images: what lies in the span of the class's 32 eigen-images, from which `linear` takes its
  changes.
- first order: what the derivative of the decoder at the image's code gives, without decoding the
  moved code.

The rest of each is what only the exact flow gives. Shares are of the squared change after clamping
to the range of images, means over classes, noise and images; `same for all` is free of the bias of
a mean over few images.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import torch
from torch import Tensor

from benchmarks.analysis import moving
from benchmarks.core.common import (
    command_line,
    environment,
    flow_title,
    markdown_table,
    write_result,
)
from timm_nfaug import ConditionalFlow, NFAugment, create_flow, pixels
from train_flow.data import Images, load_data
from train_flow.evaluate import batches

STEP = 0.05  # of the code, in standard deviations, for the derivative


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.analysis.linearity", description=__doc__.split("\n")[0]
    )
    add = parser.add_argument
    names = "bundled, directory, Hub id; linear: none"
    add("--flow", nargs="+", required=True, metavar="NAME", help=names)
    add("--data-dir", required=True, help="ImageFolder tree with train/ and val/")
    add("--data-name", required=True)
    add("--strengths", type=float, nargs="+", default=[0.5, 1.0])
    add("--modes", type=int, default=32)
    add("--images", type=int, default=16, help="of each class")
    add("--draws", type=int, default=8, help="of noise for each class")
    add("--seed", type=int, default=0)
    add("--record", metavar="NAME", default="linearity")
    return parser


def fitted(flow: ConditionalFlow, data: Images, modes: int) -> ConditionalFlow:
    """Returns the flow with class Gaussians and modes of `data`."""
    augment = NFAugment.to_fit(flow.eval(), modes, labels="given")
    return augment.fit(batches(data, 512), len(data.class_names), shrinkage=0.0).flow


@torch.no_grad()
def shares(
    flow: ConditionalFlow, data: Images, eigen: Tensor, strength: float, args: argparse.Namespace
) -> dict[str, Any]:
    """Returns shares of the squared change, and its mean size in levels.

    Args:
        eigen: (K, r, D), orthonormal rows.
        args: images, draws, modes, seed; see the command line.
    """
    g = torch.Generator().manual_seed(args.seed)
    total = common = inside = left = moved = 0.0
    for k in range(len(data.class_names)):
        own = torch.nonzero(data.labels == k).flatten()
        own = own[torch.randperm(len(own), generator=g)[: args.images]]
        x = pixels.levels_to_model(data.levels[own])
        y, z = torch.full((len(x),), k), flow(x)[0]
        for _ in range(args.draws):
            move = moving.move(flow, y, moving.draw(1, args.modes, g).expand(len(x), -1))
            change = ((flow.inverse(z + strength * move).clamp(-1, 1)) - x).flatten(1)
            slope = (flow.inverse(z + STEP * move) - flow.inverse(z - STEP * move)) / (2 * STEP)
            first = ((x + strength * slope).clamp(-1, 1) - x).flatten(1)
            n = len(x)
            energy = change.square().sum().item()
            total += energy / n
            common += (change.sum(0).square().sum().item() - energy) / (n * (n - 1))
            inside += (change @ eigen[k].T).square().sum().item() / n
            left += (change - first).square().sum().item() / n
            moved += change.abs().mean().item() * 128
    return {
        "same_for_all": common / total,
        "eigen_images": inside / total,
        "first_order": 1 - left / total,
        "mean_move_levels": moved / (len(data.class_names) * args.draws),
    }


def table(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Returns cells, the header first."""
    shares = {
        "same_for_all": "same for all images",
        "eigen_images": "in the eigen-images",
        "first_order": "first order",
    }
    cells = [["flow", "strength", "mean move (levels)", *shares.values()]]
    for r in rows:
        parts = [f"{100 * r[key]:.0f}%" for key in shares]
        cells.append([r["flow"], f"{r['strength']:g}", f"{r['mean_move_levels']:.1f}", *parts])
    return cells


def main(argv: list[str] | None = None) -> int:
    parser = make_parser()
    args = parser.parse_args(argv)
    _, data = load_data("folder", args.data_dir, image_size=32)
    if data is None:
        parser.exit(
            2, f"error: {args.data_dir} has no validation images; expected train/ and val/ inside\n"
        )
    eigen = fitted(create_flow("linear"), data, args.modes).prior.modes
    rows = []
    for name in args.flow:
        flow = create_flow("linear") if name == "linear" else ConditionalFlow.from_pretrained(name)
        flow = fitted(flow, data, args.modes)
        for strength in args.strengths:
            found = shares(flow, data, eigen, strength, args)
            rows.append({"flow": flow_title(name), "strength": strength} | found)
            print(rows[-1], flush=True)
    count = args.images * len(data.class_names)
    write_result(
        args.record,
        {
            "benchmark": "linearity",
            "command": command_line("benchmarks.analysis.linearity", argv),
            "data": f"{args.data_name}, {count} of {len(data)} validation images",
            "seeds": [args.seed],
            "environment": environment(),
            "settings": {"modes": args.modes, "images": args.images, "draws": args.draws},
            "results": {"rows": rows},
        },
    )
    print(f"\n{markdown_table(table(rows))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
