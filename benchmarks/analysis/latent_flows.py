"""What deep flows over latents are worth beside the linear one: nats a dimension of the same held-out latents.

    python -m benchmarks.analysis.latent_flows --data-dir DIR --data-name "Imagenette (224 px, resized)" --autoencoder NAME \\
        --latents runs/conv/latents --flow runs/linear/flow runs/conv/flow

Claim: a deep flow has fewer nats a dimension than the linear one. Data: the latents of all images of
val/, made once and kept in `--latents` as `train_flow` keeps them; one seed. The nats are of the raw
latents, whatever a flow standardises them by.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.core.common import (
    command_line,
    environment,
    markdown_table,
    require_val,
    write_result,
)
from timm_nfaug import ConditionalFlow
from timm_nfaug.hub import WEIGHTS_NAME, resolve
from train_flow.config import TrainConfig
from train_flow.evaluate import evaluate
from train_flow.images import Examples
from train_flow.latents import load_latents


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.analysis.latent_flows", description=__doc__.split("\n")[0]
    )
    add = parser.add_argument
    add("--data-dir", required=True, help="ImageFolder tree with train/ and val/")
    add("--data-name", required=True)
    add("--autoencoder", required=True, metavar="NAME", help="of the flows")
    add("--image-size", type=int, default=112, help="of the flows (default: %(default)s)")
    add(
        "--latents", type=Path, required=True, help="where train_flow keeps, or is to keep, latents"
    )
    add("--flow", nargs="+", required=True, metavar="DIR", help="saved by train_flow")
    add("--limit", type=int, default=0, help="only N images of val/, evenly spaced")
    add("--threads", type=int, default=torch.get_num_threads())
    return parser


def held_out(args: argparse.Namespace) -> Examples:
    """The latents of val/, from the cache of a training, or made there."""
    config = TrainConfig(
        space="latent", autoencoder=args.autoencoder, image_size=args.image_size,
        latents=str(args.latents),
    )  # fmt: skip
    _, val = load_latents(config, args.data_dir, args.latents, torch.device("cpu"))
    return require_val(val, args.data_dir)


def measure(name: str, val: Examples, limit: int) -> dict[str, Any]:
    """What stands under `results` for one flow."""
    flow, path = ConditionalFlow.from_pretrained(name), resolve(name) / WEIGHTS_NAME
    return {
        "architecture": flow.config.architecture,
        "training": flow.config.info.get("training", ""),
        "parameters": sum(p.numel() for p in flow.network.parameters()),
        "file_bytes": path.stat().st_size,
        **evaluate(flow, val, limit=limit),
    }


def table(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Returns cells, the header first."""
    cells = [["flow", "nats a dimension", "class accuracy", "parameters of the network", "file"]]
    for r in rows:
        size = f"{r['parameters'] / 1e6:.2f} M", f"{r['file_bytes'] / 1e6:.1f} MB"
        share = f"{100 * r['class_accuracy']:.1f}%"
        cells.append([f"`{r['architecture']}`", f"{r['nats_per_dim']:.3f}", share, *size])
    return cells


def main(argv: list[str] | None = None) -> int:
    parser = make_parser()
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    try:
        val = held_out(args)
        rows = [measure(name, val, args.limit) for name in args.flow]
    except (ValueError, OSError) as e:
        parser.exit(2, f"error: {e}\n")
    write_result(
        "latent_flows",
        {
            "benchmark": "latent_flows",
            "command": command_line("benchmarks.analysis.latent_flows", argv),
            "data": f"{args.data_name}, latents of {rows[0]['images']} validation images",
            "seeds": [0],
            "environment": environment(),
            "settings": {"autoencoder": Path(args.autoencoder).stem, "size": args.image_size},
            "results": {"rows": rows},
        },
    )
    print(markdown_table(table(rows)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
