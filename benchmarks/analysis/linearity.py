"""What a flow's augmentation does that its linear special case does not: shares of the energy of its change.

    python -m benchmarks.analysis.linearity --flow conv_p4_small.cifar10_jpeg linear --data-dir DIR --data-name "CIFAR-10 (JPEG)"

Images of a class are moved by the same noise along the same modes, and the change of the pixels is split:

- same for all: what the change of every image of the class has in common. The linear flow's change is the same for all
  images; a flow is worth its price for what it does differently from image to image.
- eigen-images: what lies in the span of the class's 32 eigen-images, from which `linear` takes its changes.
- first order: what the derivative of the decoder at the image's code gives, without decoding the moved code.

The rest of each is what only the exact flow gives. Shares are of the squared change after clamping to the range of images,
means over classes, noise and images; `same for all` is free of the bias of a mean over few images. Class Gaussians and modes
of all flows are fitted to the images measured on.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import torch
from torch import Tensor

from benchmarks.core.common import (
    command_line,
    environment,
    flow_title,
    markdown_table,
    write_result,
)
from timm_nfaug import ConditionalFlow, NFAugment, create_flow, pixels
from timm_nfaug.moves.perturb import displacement, draw_noise
from train_flow.data import Images, load_data
from train_flow.evaluate import batches

STEP = 0.05  # of the code, in standard deviations, for the derivative


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.analysis.linearity", description=__doc__.split("\n")[0]
    )
    parser.add_argument(
        "--flow",
        nargs="+",
        required=True,
        metavar="NAME",
        help="bundled, directory, Hub id; linear: none",
    )
    parser.add_argument("--data-dir", required=True, help="ImageFolder tree with train/ and val/")
    parser.add_argument("--data-name", required=True)
    parser.add_argument("--strengths", type=float, nargs="+", default=[0.5, 1.0])
    parser.add_argument("--modes", type=int, default=32)
    parser.add_argument("--images", type=int, default=16, help="of each class")
    parser.add_argument("--draws", type=int, default=8, help="of noise for each class")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", metavar="NAME", default="linearity")
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
            rows.append(
                {"flow": flow_title(name), "strength": strength}
                | shares(flow, data, eigen, strength, args)
            )
            print(rows[-1], flush=True)
    write_result(args.record, {
        "benchmark": "linearity",
        "command": command_line("benchmarks.analysis.linearity", argv),
        "data": f"{args.data_name}, {args.images * len(data.class_names)} of {len(data)} validation images",
        "seeds": [args.seed],
        "environment": environment(),
        "settings": {"modes": args.modes, "images": args.images, "draws": args.draws},
        "results": {"rows": rows},
    })  # fmt: skip
    print(f"\n{table(rows)}")
    return 0


def fitted(flow: ConditionalFlow, data: Images, modes: int) -> ConditionalFlow:
    """The flow with class Gaussians and modes of `data`."""
    return (
        NFAugment.to_fit(flow.eval(), modes)
        .fit(batches(data, 512), len(data.class_names), shrinkage=0.0)
        .flow
    )


@torch.no_grad()
def shares(
    flow: ConditionalFlow, data: Images, eigen: Tensor, strength: float, args: argparse.Namespace
) -> dict[str, Any]:
    """Shares of the squared change, and its mean size in levels. eigen: (K, r, D), orthonormal rows."""
    g = torch.Generator().manual_seed(args.seed)
    total = common = inside = left = moved = 0.0
    for k in range(len(data.class_names)):
        own = torch.nonzero(data.labels == k).flatten()
        x = pixels.levels_to_model(
            data.levels[own[torch.randperm(len(own), generator=g)[: args.images]]]
        )
        y, z = torch.full((len(x),), k), flow(x)[0]
        for _ in range(args.draws):
            noise = draw_noise(1, args.modes, g).expand(len(x), -1)
            move = displacement(flow, y, noise, "pca", args.modes)
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
    draws = len(data.class_names) * args.draws
    return {
        "same_for_all": common / total, "eigen_images": inside / total, "first_order": 1 - left / total,
        "mean_move_levels": moved / draws,
    }  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    cells = [
        [
            "flow",
            "strength",
            "mean move (levels)",
            "same for all images",
            "in the eigen-images",
            "first order",
        ]
    ]
    for r in rows:
        parts = [f"{100 * r[key]:.0f}%" for key in ("same_for_all", "eigen_images", "first_order")]
        cells.append([r["flow"], f"{r['strength']:g}", f"{r['mean_move_levels']:.1f}", *parts])
    return markdown_table(cells)


if __name__ == "__main__":
    sys.exit(main())
