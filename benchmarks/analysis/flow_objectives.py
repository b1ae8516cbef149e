"""GLEM against `ml` and `random` Gaussians on one budget: bits/dim, class accuracy, separation.

    python -m benchmarks.analysis.flow_objectives --data-dir DIR

Claim: none beforehand. Data: the images of --config (CIFAR-10), one seed unless `--seeds`
says more; nothing is chosen by these numbers. Every arm trains the same network from the same
weights on the same images in the same order for the same number of steps; only the Gaussians
differ. `glem` separates them gently, `glem, strong` as hard as the likelihood. `glem+disc` adds the
small discriminative term of the bundled flow, to show what that term, rather than the separation,
does.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from benchmarks.core.common import command_line, environment, markdown_table, write_result
from train_flow.config import load_config
from train_flow.data import Images, load_data
from train_flow.trainer import Trainer

ARMS = {
    "glem": [],
    "glem, strong": ["kld_weight=[[0, 1], [1, 0.5]]", "gaussian_lr=[[0, 0.03], [1, 0.003]]"],
    "ml": ["objective=ml"],
    "random": ["objective=random"],
    "glem+disc": ["discriminative=0.015"],
    "ml+disc": ["objective=ml", "discriminative=0.015"],
}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.analysis.flow_objectives", description=__doc__.split("\n")[0]
    )
    add = parser.add_argument
    add("--config", default="conv_p4_tiny.cifar10")
    add("--data-dir", required=True)
    add("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    add("--seeds", type=int, nargs="+", default=[0])
    override = "override a setting in every arm"
    add("--set", action="append", default=[], metavar="KEY=VALUE", help=override)
    runs = "where the trainings live, resumably"
    add("--runs", type=Path, default=Path("runs/objectives"), help=runs)
    return parser.parse_args()


def train(
    args: argparse.Namespace, arm: str, seed: int, images: Images, val: Images
) -> dict[str, Any]:
    """Trains one arm, or resumes it; returns its row."""
    config = load_config(args.config, [*args.set, *ARMS[arm], f"seed={seed}"])
    start, out = time.perf_counter(), args.runs / f"{arm.replace(', ', '-')}-{seed}"
    trainer = Trainer(config, images, val, out, resume=True)
    trainer.run()
    report = trainer.finish()
    print(f"{arm}, seed {seed}: {report} ({time.perf_counter() - start:.0f} s)", flush=True)
    about = {"arm": arm, "seed": seed, "steps": trainer.steps}
    return {**about, "training_seconds": trainer.seconds, **report}


def table(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Returns cells, a row for each arm; the values of its seeds stand side by side."""
    cells = [["objective", "bits/dim", "class accuracy", "mean pairwise KL (nats)", "seconds"]]
    for arm in dict.fromkeys(row["arm"] for row in rows):
        own = [row for row in rows if row["arm"] == arm]
        each = (
            [f"{row['bits_per_dim']:.3f}" for row in own],
            [f"{100 * row['class_accuracy']:.1f}%" for row in own],
            [f"{row['mean_pairwise_kl']:.1f}" for row in own],
            [f"{row['training_seconds']:.0f}" for row in own],
        )
        cells.append([arm, *map(", ".join, each)])
    return cells


def main() -> None:
    args = parse()
    c = load_config(args.config, args.set)
    images, val = load_data(
        c.data, args.data_dir, c.image_size, c.in_chans, c.val_fraction, c.skip_unreadable
    )
    rows = [train(args, arm, seed, images, val) for seed in args.seeds for arm in args.arms]
    own = {"objective": "of the arm", "discriminative": "of the arm", "seed": "of the run"}
    last = load_config(args.config, [*args.set, *ARMS[args.arms[-1]]])
    write_result(
        "flow_objectives",
        {
            "benchmark": "flow_objectives",
            "command": command_line("benchmarks.analysis.flow_objectives"),
            "data": f"{c.data_name or images.name}: {len(images)} training images, {len(val)} validation images",
            "seeds": args.seeds,
            "environment": environment(),
            "settings": last.to_dict() | own,
            "results": rows,
        },
    )
    print(markdown_table(table(rows)))


if __name__ == "__main__":
    main()
