"""GLEM against `ml` and `random` Gaussians on one budget: bits/dim, class accuracy, separation.

Claim: none beforehand. Every arm trains the same network from the same weights on the same images in the same order
for the same number of steps; only the Gaussians differ. `glem` separates them gently, `glem, strong` as hard as the
likelihood. `glem+disc` adds the small discriminative term of the bundled
flow, to show what that term, rather than the separation of the Gaussians, does. Nothing is chosen by these numbers.

    python -m benchmarks.analysis.flow_objectives --data-dir DIR
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from benchmarks.core.common import command_line, environment, markdown_table, write_result
from train_flow.config import load_config
from train_flow.data import load_data
from train_flow.trainer import Trainer

ARMS = {
    "glem": [],
    "glem, strong": ["kld_weight=[[0, 1], [1, 0.5]]", "gaussian_lr=[[0, 0.03], [1, 0.003]]"],
    "ml": ["objective=ml"],
    "random": ["objective=random"],
    "glem+disc": ["discriminative=0.015"],
    "ml+disc": ["objective=ml", "discriminative=0.015"],
}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.analysis.flow_objectives", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--config", default="conv_p4_tiny.cifar10_jpeg")
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a setting in every arm",
    )
    parser.add_argument(
        "--runs",
        type=Path,
        default=Path("runs/objectives"),
        help="where the trainings live, resumably",
    )
    args = parser.parse_args()
    results = []
    c = load_config(args.config, args.set)
    train, val = load_data(
        c.data, args.data_dir, c.image_size, c.in_chans, c.val_fraction, c.skip_unreadable
    )
    for seed in args.seeds:
        for arm in args.arms:
            config = load_config(args.config, [*args.set, *ARMS[arm], f"seed={seed}"])
            start = time.perf_counter()
            trainer = Trainer(
                config, train, val, args.runs / f"{arm.replace(', ', '-')}-{seed}", resume=True
            )
            trainer.run()
            report = trainer.finish()
            results.append(
                {
                    "arm": arm,
                    "seed": seed,
                    "steps": trainer.steps,
                    "training_seconds": trainer.seconds,
                    **report,
                }
            )
            print(f"{arm}, seed {seed}: {report} ({time.perf_counter() - start:.0f} s)", flush=True)
    payload = {
        "benchmark": "flow_objectives",
        "command": command_line("benchmarks.analysis.flow_objectives"),
        "data": f"{config.data_name}: {len(train)} training images, {len(val)} validation images",
        "seeds": args.seeds,
        "environment": environment(),
        "settings": config.to_dict()
        | {"objective": "of the arm", "discriminative": "of the arm", "seed": "of the run"},
        "results": results,
    }
    write_result("flow_objectives", payload)
    rows = [
        ["objective", "seed", "bits/dim", "class accuracy", "mean pairwise KL (nats)", "seconds"]
    ]
    for r in results:
        rows.append([
            r["arm"], str(r["seed"]), f"{r['bits_per_dim']:.3f}", f"{100 * r['class_accuracy']:.1f}%",
            f"{r['mean_pairwise_kl']:.1f}", f"{r['training_seconds']:.0f}",
        ])  # fmt: skip
    print(markdown_table(rows))


if __name__ == "__main__":
    main()
