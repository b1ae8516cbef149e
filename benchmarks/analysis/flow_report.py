"""What the flows are worth: bits/dim, class accuracy, exactness, separation and stability on held-out images.

    python -m benchmarks.analysis.flow_report --flow conv_p4_small.cifar10 --data-dir DIR --data-name "CIFAR-10"
    python -m benchmarks.analysis.flow_report --flow conv_p4_tiny.digits --data digits

Claim: none beforehand. Data: the validation images of --data-dir, all of them unless `--limit` says
fewer; one seed.

Stability is how far a pixel moves when the code of each image is moved. `largest_move` is in units
of [-1, 1] before any clamping, so an inverse that blows up shows; `mean_move_levels` is in levels
of 255, after.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.analysis.moving import moved_codes
from benchmarks.core.common import (
    command_line,
    environment,
    markdown_table,
    require_val,
    write_result,
)
from timm_nfaug import ConditionalFlow, pixels
from timm_nfaug.hub import WEIGHTS_NAME, resolve
from train_flow.data import Images, load_data
from train_flow.evaluate import batches, evaluate, evenly

STRENGTHS = (0.25, 0.5, 1.0)
BATCH = 256


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.analysis.flow_report", description="Reports on flows."
    )
    add = parser.add_argument
    names = "bundled, directory, Hub id"
    add("--flow", nargs="+", required=True, metavar="NAME", help=names)
    add("--data", default="folder", choices=["folder", "cifar10", "cifar100", "digits"])
    add("--data-dir", help="ImageFolder tree with train/ and val/, or where CIFAR is")
    add("--data-name", help="what the result calls the data (default: the folder's name)")
    limit = "only N validation images, evenly spaced"
    add("--limit", type=int, default=0, help=limit)
    add("--kinds", nargs="+", default=["pca", "isotropic"], help="of moves")
    add("--modes", type=int, default=32, help="modes moved along, at most those of the flow")
    add("--device", default="cpu")
    add("--seed", type=int, default=0)
    return parser


def validation_images(
    data: str, data_dir: str | None, size: tuple[int, int, int], limit: int
) -> Images:
    _, val = load_data(data, data_dir, image_size=size[1], in_chans=size[0])
    return evenly(require_val(val, data_dir), limit)


def check_classes(flow: ConditionalFlow, data: Images, name: str) -> None:
    """Raises ValueError unless the same labels mean the same classes."""
    own = flow.config.class_names
    if flow.num_classes != len(data.class_names) or (own and own != data.class_names):
        raise ValueError(
            f"{name} was made for {flow.num_classes} classes {own[:5]}, "
            f"the data have {len(data.class_names)}: {data.class_names[:5]}"
        )


def measure(
    name: str, flow: ConditionalFlow, data: Images, args: argparse.Namespace
) -> dict[str, Any]:
    """Returns what stands under `results`."""
    return {
        "flow": short(name),
        "architecture": flow.config.architecture,
        "bits": flow.config.bits,
        "parameters": sum(p.numel() for p in flow.network.parameters()),
        "file_bytes": (resolve(name) / WEIGHTS_NAME).stat().st_size,
        **evaluate(flow, data, args.seed, BATCH),
        "moves": {k: moves(flow, data, k, args.modes, args.seed) for k in args.kinds},
    }


@torch.no_grad()
def moves(
    flow: ConditionalFlow, data: Images, kind: str, modes: int, seed: int
) -> dict[str, dict[str, Any]]:
    """Returns for each strength the largest and mean move of a pixel, and how many images came back non-finite."""
    # a flow without modes has axes all the same
    count = min(modes, flow.prior.num_modes) or modes
    return {str(s): move_at(flow, data, s, count, kind, seed) for s in STRENGTHS}


def move_at(
    flow: ConditionalFlow, data: Images, strength: float, modes: int, kind: str, seed: int
) -> dict[str, Any]:
    g = torch.Generator().manual_seed(seed)
    largest, total, values, broken = 0.0, 0.0, 0, 0
    for levels, y in batches(data, BATCH):
        x, y = pixels.levels_to_model(levels).to(flow.device), y.to(flow.device)
        moved = flow.inverse(moved_codes(flow, flow(x, y)[0], y, strength, modes, kind, g))
        finite = moved.flatten(1).isfinite().all(1)
        broken += int((~finite).sum())
        x, moved = x[finite], moved[finite]
        if len(x):
            largest = max(largest, (moved - x).abs().max().item())
            change = (moved.clamp(-1, 1) - x).abs().double()
            total += change.sum().item() * 128  # a level is 1/128 wide
            values += x.numel()
    mean = total / max(values, 1)
    return {"largest_move": largest, "mean_move_levels": mean, "non_finite_images": broken}


def short(name: str) -> str:
    """Returns the name of a flow without directories, as a file can be called."""
    return re.sub(r"[^\w.-]+", "_", name.rstrip("/").rpartition("/")[2])


def record(
    report: dict[str, Any], data_name: str, args: argparse.Namespace, argv: list[str] | None
) -> None:
    write_result(
        f"flow_{report['flow']}",
        {
            "benchmark": "flow_report",
            "command": command_line("benchmarks.analysis.flow_report", argv),
            "data": f"{data_name}, {report['images']} validation images",
            "seeds": [args.seed],
            "environment": environment(),
            "settings": {"kinds": args.kinds, "modes": args.modes, "device": args.device},
            "results": report,
        },
    )


def table(reports: dict[str, dict[str, Any]]) -> list[list[str]]:
    """Returns cells, a column for each flow."""
    each = list(reports.values())
    rows = [
        ["", *reports],
        ["images", *(f"{r['images']:,}" for r in each)],
        ["bits/dim", *(f"{r['bits_per_dim']:.3f}" for r in each)],
        ["class accuracy", *(f"{100 * r['class_accuracy']:.1f}%" for r in each)],
        ["round trip, largest error", *(f"{r['round_trip_max']:.1e}" for r in each)],
        ["mean pairwise KL, nats", *(f"{r['mean_pairwise_kl']:.1f}" for r in each)],
    ]
    for kind in each[0]["moves"]:
        for strength in STRENGTHS:
            cells = [r["moves"][kind][str(strength)] for r in each]
            shown = [f"{c['largest_move']:.2f} ({c['mean_move_levels']:.1f} levels)" for c in cells]
            rows.append([f"{kind}, strength {strength:g}: largest (mean) move", *shown])
    all_moves = ([c for by in r["moves"].values() for c in by.values()] for r in each)
    broken = (sum(c["non_finite_images"] for c in cells) for cells in all_moves)
    rows.append(["non-finite images", *map(str, broken)])
    rows.append(["parameters", *(f"{r['parameters'] / 1e6:.2f} M" for r in each)])
    rows.append(["file", *(f"{r['file_bytes'] / 1e6:.2f} MB" for r in each)])
    return rows


def main(argv: list[str] | None = None) -> int:
    parser = make_parser()
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
            check_classes(flow, loaded[size], name)
        except (ValueError, FileNotFoundError) as e:
            parser.exit(2, f"error: {e}\n")
        report = reports[short(name)] = measure(name, flow, loaded[size], args)
        record(report, data_name, args, argv)
    print(f"{data_name}\n\n{markdown_table(table(reports))}\n")
    print("written to " + ", ".join(f"benchmarks/results/flow_{name}.json" for name in reports))
    return 0


if __name__ == "__main__":
    sys.exit(main())
