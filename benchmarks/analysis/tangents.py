"""How far tangents are from the exact flow: error of the change they make, and what they take on disk.

Images are moved by the exact flow and, with the same noise, by tangents as `NFACache` keeps them (8 bits). The error is the L2
norm of the difference over that of the exact change, both clamped to the range of images; a flow's own class posterior, and
with `--classifier` (a file of cifar_resnet18 --save) that network, say how often both give the same class. Tangents are fitted
to moves of `--steps` times the strength. "Without the bend" leaves the pictures out that are no tangents, those of second order.

    python -m benchmarks.analysis.tangents --flow conv_p4_small.cifar10_jpeg --data-dir DIR --data-name "CIFAR-10 (JPEG)"
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.cifar.classifier import load_saved, normalize
from benchmarks.core.common import (
    command_line,
    environment,
    flow_title,
    markdown_table,
    write_result,
)
from timm_nfaug import ConditionalFlow, pixels
from timm_nfaug.data.cache import packed, summed, tangents, weights
from timm_nfaug.moves.perturb import displacement, draw_noise
from train_flow.data import Images, load_data

IMAGENET = 1_281_167  # training images
LIMIT, DEFAULT = 0.15, "strength 0.5, 32 modes"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.analysis.tangents", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--flow", required=True, help="bundled, directory or Hub id")
    parser.add_argument("--data-dir", required=True, help="ImageFolder tree with train/ and val/")
    parser.add_argument("--data-name", required=True)
    parser.add_argument("--strengths", type=float, nargs="+", default=[0.25, 0.5, 1.0])
    parser.add_argument("--modes", type=int, nargs="+", default=[4, 8, 16, 32])
    parser.add_argument(
        "--steps",
        type=float,
        nargs="+",
        default=[0.1, 1.0, 1.5],
        help="of the differences, over the strength",
    )
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--classifier", help="a file of cifar_resnet18 --save")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", metavar="NAME", default="tangents")
    args = parser.parse_args(argv)
    flow = ConditionalFlow.from_pretrained(args.flow).eval()
    _, data = load_data("folder", args.data_dir, image_size=flow.config.input_size[1])
    if data is None:
        parser.exit(
            2, f"error: {args.data_dir} has no validation images; expected train/ and val/ inside\n"
        )
    some = data.subset(torch.arange(args.images) * len(data) // args.images)
    model = load_saved(args.classifier, len(data.class_names))[1] if args.classifier else None
    rows = [
        row
        for strength in args.strengths
        for step in args.steps
        for row in errors(flow, some, strength, step, args, model)
    ]
    # judged at the step of the size of the moves, NFACache's default at its default strength, not at the best of the steps
    median = {
        f"strength {r['strength']:g}, {r['modes']} modes": r["median"]
        for r in rows
        if r["step"] == 1
    }
    default = median.get(DEFAULT)
    met = None if default is None else default <= LIMIT
    write_result(args.record, {
        "benchmark": "tangents",
        "claim": f"the median error of tangents is at most {LIMIT:g} at {DEFAULT}, the defaults",
        "command": command_line("benchmarks.analysis.tangents", argv),
        "data": f"{args.data_name}, {len(some)} of {len(data)} validation images",
        "seeds": [args.seed],
        "environment": environment(),
        "settings": {"flow": flow_title(args.flow), "classifier": Path(args.classifier).stem if args.classifier else None},
        "results": {"rows": rows, "median_at_step_1": median, "claim_met": met},
    })  # fmt: skip
    print(markdown_table(table(rows)))
    return int(met is False)


@torch.no_grad()
def errors(
    flow: ConditionalFlow,
    data: Images,
    strength: float,
    step: float,
    args: argparse.Namespace,
    model: nn.Module | None = None,
) -> list[dict[str, Any]]:
    """One row for each number of modes."""
    x, y = pixels.levels_to_model(data.levels), data.labels
    z, _ = flow(x)
    found = []
    for modes in args.modes:
        made = [
            tangents(flow, z[i : i + 64], y[i : i + 64], modes, step * strength)
            for i in range(0, len(x), 64)
        ]
        kept = packed(torch.cat(made))
        noise = draw_noise(len(x), modes, torch.Generator().manual_seed(args.seed))
        exact = flow.inverse(z + strength * displacement(flow, y, noise, "pca", modes)).clamp(-1, 1)
        w, own = (
            torch.from_numpy(weights(noise.numpy(), strength, modes)),
            torch.arange(kept[..., 0].numel()).view(len(x), -1),
        )
        change, straight = (
            summed(kept.flatten(0, 1), own[:, :n], w[:, :n]).view_as(x) for n in (w.shape[1], modes)
        )
        moved, straight = (x + change).clamp(-1, 1), (x + straight).clamp(-1, 1)
        size = (exact - x).flatten(1).norm(dim=1)
        error, error_straight = (
            ((v - exact).flatten(1).norm(dim=1) / size).double() for v in (moved, straight)
        )
        same = flow.class_logits(exact).argmax(1) == flow.class_logits(moved).argmax(1)
        found.append({
            "strength": strength, "modes": modes, "step": step, "median": error.median().item(),
            "p99": error.quantile(0.99).item(), "median_without_bend": error_straight.median().item(),
            "mean_levels": 128 * (moved - exact).abs().mean().item(),
            "same_class": same.double().mean().item(), "bytes_an_image": kept[0].numel(),
        })  # fmt: skip
        if model is not None:
            first, second = (
                model(normalize(pixels.model_to_levels(v))).argmax(1) for v in (exact, moved)
            )
            found[-1]["same_class_classifier"] = (first == second).double().mean().item()
        print(found[-1], flush=True)
    return found


def table(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Cells; of the steps the one of the least median."""
    network = any("same_class_classifier" in r for r in rows)
    head = [
        "strength",
        "modes",
        "step",
        "error, median",
        "99%",
        "without the bend",
        "mean error (levels)",
        "same class: flow",
    ]
    cells = [[*head, *["classifier"] * network, "kB an image", "GB for ImageNet"]]
    for strength, modes in dict.fromkeys((r["strength"], r["modes"]) for r in rows):
        r = min(
            (r for r in rows if (r["strength"], r["modes"]) == (strength, modes)),
            key=lambda r: r["median"],
        )
        cells.append([
            f"{strength:g}", str(modes), f"{r['step']:g}", f"{r['median']:.2f}", f"{r['p99']:.2f}",
            f"{r['median_without_bend']:.2f}", f"{r['mean_levels']:.1f}", f"{100 * r['same_class']:.0f}%",
            *([f"{100 * r['same_class_classifier']:.0f}%"] if network else []),
            f"{r['bytes_an_image'] / 1e3:.0f}", f"{r['bytes_an_image'] * IMAGENET / 1e9:.0f}",
        ])  # fmt: skip
    return cells


if __name__ == "__main__":
    sys.exit(main())
