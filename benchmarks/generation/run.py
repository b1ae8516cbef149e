"""Generation: FID, Coverage, class accuracy and time of what flows of every objective sample, at one equal budget.

    python -m benchmarks.generation.run --data-dir DIR --steps 1500
    python -m benchmarks.generation.run --data-dir DIR --flows glem=conv_p4_small.cifar10 --record generation_bundled

Claim: none beforehand. Data: CIFAR-10, training and validation images; one seed unless
`--seeds` says more. Every arm trains the same network from the same seed for the same number of
steps; `ce` on 8 more rows, its label code. `linear` is the control, class means and eigen-images
without any training, and the floor is what training images score against the reference. All
temperatures and mean scales are reported, none is chosen.

FID and Coverage (k = 5) compare samples with the validation images, on the penultimate features of
a ResNet18 (512 numbers) that is trained here on the training images; class accuracy is how often
its prediction is the label that was asked for. Every image, real or made, is cut to 5 bits first;
the classifier computes in bfloat16 unless told otherwise. Samples are clamped to [-1, 1]; those
with a value that is not finite are counted and left out. FID falls and Coverage rises with the
number of samples: compare figures of one number only. The extractor was trained on the images of
the floor, so another draw of the data would score a little better than they do.

bits/dim is at the flow's own depth; that of `ce` counts the label band too, so it compares with no
other. Time is that of sampling as many images as the training set has; it is extrapolated from warm
batches unless so many were sampled.

Runs live under --runs: trainings, the feature extractor once trained, and every row are kept and
not made again.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.analysis.flow_report import check_classes
from benchmarks.cifar.resnet import MODELS, Recipe
from benchmarks.core.common import (
    command_line,
    environment,
    markdown_table,
    pin_threads,
    require_val,
    write_result,
)
from benchmarks.generation.extractor import digest, feature_extractor, features_of
from benchmarks.generation.metrics import score
from benchmarks.generation.samples import (
    BATCH,
    asked_labels,
    row_of,
    settings_of,
    speed,
    training_set_time,
)
from timm_nfaug import ConditionalFlow
from timm_nfaug._utils.files import write_atomically
from timm_nfaug.hub import WEIGHTS_NAME, resolve
from train_flow.config import load_config
from train_flow.data import Images, load_data
from train_flow.evaluate import evaluate, evenly
from train_flow.trainer import Trainer

ARMS = {
    "glem": ["objective=glem"],
    "ml": ["objective=ml"],
    "random": ["objective=random"],
    "ce": ["objective=ce", "discriminative=0", "shift=0"],
    "joint": ["objective=joint"],
    "linear": [
        "objective=moments",
        "flow=linear",
        "network={}",
        "prior={num_modes: 32}",
        "mode_images=0",
    ],
}


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.generation.run", description=__doc__.split("\n")[0]
    )
    add = parser.add_argument
    add("--data-dir", required=True)
    add("--config", default="conv_p4_tiny.cifar10", help="of the trainings, and of the data")
    override = "override a setting in every arm"
    add("--set", action="append", default=[], metavar="KEY=VALUE", help=override)
    add("--steps", type=int, help="of every arm (default: the config's)")
    add("--arms", nargs="+", choices=ARMS, help="to train (default: all, none with --flows)")
    given = "trained flows: glem=NAME_OR_DIR ..."
    add("--flows", nargs="+", default=[], metavar="ARM=NAME", help=given)
    add("--seeds", type=int, nargs="+", default=[0])
    count = "for every row; 0: as many as training images"
    add("--samples", type=int, default=0, help=count)
    add("--temperatures", type=float, nargs="+", default=[1.0, 0.7, 0.5, 0.3, 0.1])
    add("--mean-scales", type=float, nargs="+", default=[1.0, 1.3])
    paper = "resnet18 is the paper's"
    add("--features-model", choices=MODELS, default="resnet18", help=paper)
    add("--features-epochs", type=int, default=Recipe.epochs)
    slow = "all in float32: faster on a CPU without AVX-512"
    add("--no-bf16", dest="bf16", action="store_false", help=slow)
    limit = "of sampling for a row of ce, which may have no end"
    add("--limit-seconds", type=float, default=600, help=limit)
    runs = "where trainings and rows live, resumably"
    add("--runs", type=Path, default=Path("runs/generation"), help=runs)
    add("--record", metavar="NAME", default="generation", help="the result's name")
    add("--device", default="cpu")
    add("--threads", type=int, default=2)
    return parser


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Parses the command line; `flows` becomes a dict of arm to name."""
    parser = make_parser()
    args = parser.parse_args(argv)
    args.arms = args.arms or ([] if args.flows else list(ARMS))
    given = [item.partition("=") for item in args.flows]
    if any(not name for _, _, name in given):
        parser.error(f"--flows takes ARM=NAME, got {' '.join(args.flows)}")
    args.flows = {arm: name for arm, _, name in given}
    both = sorted(set(args.flows) & set(args.arms))
    if both or len(args.flows) < len(given):
        names = ", ".join(both) or " ".join(arm for arm, _, _ in given)
        parser.error(f"an arm is trained or given once, got {names} twice")
    if args.samples and args.samples < 2:
        parser.error(f"--samples must be at least 2, got {args.samples}")
    return args


def trained_flows(
    args: argparse.Namespace, images: Images, val: Images
) -> Iterator[tuple[dict[str, Any], Path]]:
    """Trains every arm with every seed; yields what is on record of a flow, and its directory."""
    steps = [f"steps={args.steps}"] if args.steps else []
    dtype = [] if args.bf16 else ["net_dtype=float32"]
    for seed in args.seeds:
        for arm in args.arms:
            settings = [*args.set, *steps, *dtype, *ARMS[arm], f"seed={seed}"]
            config, out = load_config(args.config, settings), args.runs / f"{arm}-{seed}"
            trainer = Trainer(config, images, val, out, args.device, resume=True)
            trainer.run()
            report = trainer.finish()
            about = {"arm": arm, "seed": seed, "flow": config.flow, "steps": trainer.steps}
            about["training_seconds"] = trainer.seconds
            yield about | report, out / "flow"


def given_flows(args: argparse.Namespace, val: Images) -> Iterator[tuple[dict[str, Any], Path]]:
    """Yields the same for the flows of --flows."""
    for arm, name in args.flows.items():
        directory = resolve(name)
        flow = ConditionalFlow.from_pretrained(directory).to(args.device)
        check_classes(flow, val, name)
        seconds = flow.config.info.get("training_seconds")
        about = {"flow": Path(name).name, "steps": None, "training_seconds": seconds}
        report = evaluate(flow, val)
        for seed in args.seeds:
            yield {"arm": arm, "seed": seed, **about, **report}, directory


def reference(
    args: argparse.Namespace, images: Images, val: Images, count: int
) -> tuple[nn.Module, Tensor, dict[str, Any]]:
    """Returns the feature extractor, the features of the validation images, and what is on record of both."""
    batch_size = min(Recipe.batch_size, len(images))
    recipe = Recipe(args.features_model, args.features_epochs, batch_size, bf16=args.bf16)
    levels, labels = images.levels.to(args.device), images.labels.to(args.device)
    path = args.runs / f"features-{recipe.model}-{recipe.epochs}.pt"
    model = feature_extractor(Images(levels, labels, images.class_names), recipe, path)
    real, predicted = features_of(model, val.levels, args.bf16)
    held_out = (predicted == val.labels).double().mean().item()
    extractor = {**asdict(recipe), "features": real.shape[1], "held_out_accuracy": held_out}
    print(f"feature extractor: {100 * held_out:.1f}% of the validation images", flush=True)
    some = evenly(images, count)
    floor = {"images": len(some), **score(real, model, some.levels, some.labels, args.bf16)}
    made_from = digest(path.read_bytes(), images.labels, val.levels, count, args.bf16)
    return model, real, {"feature_extractor": extractor, "floor": floor, "made_from": made_from}


def kept_row(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Reads a row from its file, or makes it and writes the file, unless it holds an error."""
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    row = make()
    if not row["error"]:  # another limit may do away with an error
        text = json.dumps(row, allow_nan=False)
        write_atomically(path, lambda p: p.write_text(text, encoding="utf-8"))
    return row


def measure(args: argparse.Namespace, images: Images, val: Images) -> dict[str, Any]:
    """Returns everything under `results`."""
    count = args.samples or len(images)
    model, real, about_it = reference(args, images, val, count)
    made_from = about_it.pop("made_from")
    flows, rows = [], []
    for about, directory in chain(trained_flows(args, images, val), given_flows(args, val)):
        flow = ConditionalFlow.from_pretrained(directory).to(args.device)
        flow.eval().requires_grad_(False)
        weights, seed = (directory / WEIGHTS_NAME).read_bytes(), about["seed"]
        y = asked_labels(images, count, seed)
        own = []
        for setting in settings_of(flow, args.temperatures, args.mean_scales):
            path = args.runs / "rows" / f"{digest(made_from, weights, *setting, seed)}.json"
            asked = (flow, y, *setting, seed, args.limit_seconds, real, model, args.bf16)
            row = kept_row(path, lambda asked=asked: row_of(*asked))
            own.append({"arm": about["arm"], "seed": seed, **row})
            print(markdown_table(table([own[-1]])).splitlines()[-1], flush=True)
        timing = speed(flow, y[:BATCH], args.threads)
        whole = training_set_time(timing["images_per_s"], own, len(images))
        flows.append(about | {"bits": flow.config.bits} | timing | whole)
        rows += own
    return {**about_it, "flows": flows, "rows": rows}


def table(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Returns cells, the header first."""
    head = ["arm", "seed", "temperature", "mean scale", "FID", "Coverage", "class accuracy"]
    cells = [[*head, "left out"]]
    for r in rows:
        setting = [r["arm"], str(r["seed"]), f"{r['temperature']:g}", f"{r['mean_scale']:g}"]
        scores = ["-"] * 3 if r["error"] else scores_of(r)
        cells.append([*setting, *scores, r["error"] or str(r["non_finite"])])
    return cells


def scores_of(row: dict[str, float]) -> list[str]:
    """Returns the cells of FID, Coverage and class accuracy."""
    shares = (f"{100 * row[k]:.1f}%" for k in ("coverage", "class_accuracy"))
    return [f"{row['fid']:.2f}", *shares]


def record(args: argparse.Namespace, argv: list[str] | None, data: str, results: dict) -> None:
    left_out = ("data_dir", "flows", "runs", "record")
    settings = {k: v for k, v in vars(args).items() if k not in left_out}
    write_result(
        args.record,
        {
            "benchmark": "generation",
            "command": command_line("benchmarks.generation.run", argv),
            "data": data,
            "seeds": args.seeds,
            "environment": environment(["torchmetrics", "scikit-learn"]),
            "settings": settings,
            "results": results,
        },
    )


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    if args.device == "cpu" and argv is None:
        pin_threads(args.threads)
    torch.set_num_threads(args.threads)
    c = load_config(args.config, args.set)
    images, val = load_data(
        c.data, args.data_dir, c.image_size, c.in_chans, c.val_fraction, c.skip_unreadable
    )
    if c.in_chans != 3:
        raise SystemExit(f"in_chans={c.in_chans}: the networks of these measures take RGB images")
    results = measure(args, images, require_val(val, args.data_dir))
    args.samples, args.batch_size = args.samples or len(images), c.batch_size
    sizes = f"{len(images)} training images, {len(val)} validation images"
    record(args, argv, f"{c.data_name or images.name}: {sizes}", results)
    print(f"\n{markdown_table(table(results['rows']))}\n")
    print(f"written to benchmarks/results/{args.record}.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
