"""What the flows are worth: bits/dim, class accuracy, exactness, separation and stability on held-out images.

    python -m benchmarks.analysis.flow_report --flow conv_p4_small.cifar10 --data-dir DIR --data-name "CIFAR-10 (JPEG)"
    python -m benchmarks.analysis.flow_report --flow conv_p4_tiny.digits --data digits

Stability: how far a pixel moves when the code of each image is perturbed. `largest_move` is in units of
[-1, 1] before any clamping, so an inverse that blows up shows; `mean_move_levels` is in levels of 255, after.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

import torch

from timm_nfaug import ConditionalFlow, pixels
from timm_nfaug.hub import WEIGHTS_NAME, resolve
from timm_nfaug.moves.perturb import perturb
from train_flow.data import Images, load_data
from train_flow.evaluate import batches, evaluate, evenly

from ..core.common import command_line, environment, markdown_table, write_result

STRENGTHS = (0.25, 0.5, 1.0)
BATCH = 256


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.analysis.flow_report", description="Reports on flows."
    )
    parser.add_argument(
        "--flow", nargs="+", required=True, metavar="NAME", help="bundled, directory, Hub id"
    )
    parser.add_argument(
        "--data", default="folder", choices=["folder", "cifar10", "cifar100", "digits"]
    )
    parser.add_argument(
        "--data-dir", help="ImageFolder tree with train/ and val/, or where CIFAR is"
    )
    parser.add_argument(
        "--data-name", help="what the result calls the data (default: the folder's name)"
    )
    parser.add_argument(
        "--limit", type=int, default=0, help="only N validation images, evenly spaced"
    )
    parser.add_argument("--kinds", nargs="+", default=["pca", "isotropic"], help="of perturbation")
    parser.add_argument(
        "--modes", type=int, default=32, help="modes perturbed, at most those of the flow"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    folder = args.data == "folder" and args.data_dir
    data_name = args.data_name or (Path(args.data_dir).name if folder else args.data)

    reports, loaded = {}, {}
    for name in args.flow:
        try:
            flow = ConditionalFlow.from_pretrained(name).to(args.device)
            size = flow.config.input_size
            if size not in loaded:
                loaded[size] = validation_images(args.data, args.data_dir, size, args.limit)
            data = loaded[size]
            check_classes(flow, data, name)
        except (ValueError, FileNotFoundError) as e:
            parser.exit(2, f"error: {e}\n")
        short = re.sub(r"[^\w.-]+", "_", name.rstrip("/").rpartition("/")[2])
        reports[short] = {
            "flow": short,
            "architecture": flow.config.architecture,
            "bits": flow.config.bits,
            "parameters": sum(p.numel() for p in flow.network.parameters()),
            "file_bytes": (resolve(name) / WEIGHTS_NAME).stat().st_size,
            **evaluate(flow, data, args.seed, BATCH),
            "moves": {k: moves(flow, data, k, args.modes, args.seed) for k in args.kinds},
        }
        write_result(
            f"flow_{short}",
            {
                "benchmark": "flow_report",
                "command": command_line("benchmarks.analysis.flow_report", argv),
                "data": f"{data_name}, {reports[short]['images']} validation images",
                "seeds": [args.seed],
                "environment": environment(),
                "settings": {"kinds": args.kinds, "modes": args.modes, "device": args.device},
                "results": reports[short],
            },
        )
    print(f"{data_name}\n\n{table(reports)}\n")
    print("written to " + ", ".join(f"benchmarks/results/flow_{name}.json" for name in reports))
    return 0


def validation_images(
    data: str, data_dir: str | None, size: tuple[int, int, int], limit: int
) -> Images:
    _, val = load_data(data, data_dir, image_size=size[1], in_chans=size[0])
    if val is None:
        raise ValueError(f"{data_dir} has no validation images; expected train/ and val/ inside")
    return evenly(val, limit)


def check_classes(flow: ConditionalFlow, data: Images, name: str) -> None:
    """The same labels must mean the same classes."""
    own = flow.config.class_names
    if flow.num_classes != len(data.class_names) or (own and own != data.class_names):
        raise ValueError(
            f"{name} was made for {flow.num_classes} classes {own[:5]}, "
            f"the data have {len(data.class_names)}: {data.class_names[:5]}"
        )


@torch.no_grad()
def moves(
    flow: ConditionalFlow, data: Images, kind: str, modes: int, seed: int
) -> dict[str, dict[str, Any]]:
    """For each strength the largest and mean move of a pixel, and how many images came back non-finite."""
    found = {}
    for strength in STRENGTHS:
        g = torch.Generator().manual_seed(seed)
        largest, total, values, broken = 0.0, 0.0, 0, 0
        for levels, y in batches(data, BATCH):
            x, y = pixels.levels_to_model(levels).to(flow.device), y.to(flow.device)
            z = flow(x, y)[0]
            count = (
                min(modes, flow.prior.num_modes) or modes
            )  # a flow without modes has axes all the same
            moved = flow.inverse(
                perturb(flow, z, y, strength=strength, modes=count, kind=kind, generator=g)
            )
            finite = moved.flatten(1).isfinite().all(1)
            broken += int((~finite).sum())
            x, moved = x[finite], moved[finite]
            if len(x):
                largest = max(largest, (moved - x).abs().max().item())
                total += (
                    moved.clamp(-1, 1) - x
                ).abs().double().sum().item() * 128  # a level is 1/128 wide
                values += x.numel()
        found[str(strength)] = {
            "largest_move": largest,
            "mean_move_levels": total / max(values, 1),
            "non_finite_images": broken,
        }
    return found


def table(reports: dict[str, dict[str, Any]]) -> str:
    """One column a flow."""
    rows = [
        ["", *reports],
        ["images", *(f"{r['images']:,}" for r in reports.values())],
        ["bits/dim", *(f"{r['bits_per_dim']:.3f}" for r in reports.values())],
        ["class accuracy", *(f"{100 * r['class_accuracy']:.1f}%" for r in reports.values())],
        ["round trip, largest error", *(f"{r['round_trip_max']:.1e}" for r in reports.values())],
        ["mean pairwise KL, nats", *(f"{r['mean_pairwise_kl']:.1f}" for r in reports.values())],
    ]
    kinds = next(iter(reports.values()))["moves"]
    for kind in kinds:
        for strength in STRENGTHS:
            cells = [r["moves"][kind][str(strength)] for r in reports.values()]
            shown = [f"{c['largest_move']:.2f} ({c['mean_move_levels']:.1f} levels)" for c in cells]
            rows.append([f"{kind}, strength {strength:g}: largest (mean) move", *shown])
    all_moves = [
        [c for kind in r["moves"].values() for c in kind.values()] for r in reports.values()
    ]
    broken = [sum(c["non_finite_images"] for c in cells) for cells in all_moves]
    rows.append(["non-finite images", *map(str, broken)])
    rows.append(["parameters", *(f"{r['parameters'] / 1e6:.2f} M" for r in reports.values())])
    rows.append(["file", *(f"{r['file_bytes'] / 1e6:.2f} MB" for r in reports.values())])
    return markdown_table(rows)


if __name__ == "__main__":
    sys.exit(main())
