"""Which space spreads images most for the classes that it loses: pixels, latents, and a control that saw no data.

    python -m benchmarks.analysis.drift --data-dir DIR --data-name "Imagenette (224 px, resized)" --autoencoder NAME

Claim: none beforehand. Data: validation images, every one augmented twice by each arm at each
strength; a classifier of frozen features fitted to training images without augmentation; one seed.
The modes are those of the same training images. What is measured stands in `benchmarks.analysis.moved`.
The features of MobileNetV2 have seen ImageNet, and with it Imagenette.

Arms: `linear`, pooled modes of 32-pixel images; `shading`, cosine images of the same energy that
are made without data; `latent`, pooled modes of an autoencoder's latents, and `latent, class`;
`deep` and `latent deep` with `--flow` and `--latent-flow`; RandAugment of timm as a point.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from benchmarks.analysis.frozen import BACKBONE, Classifier, read
from benchmarks.analysis.moved import (
    Augmentation,
    at_spread,
    latent_modes,
    latents_of,
    linear_modes,
    measure,
    nfa,
    randaugment,
    shading,
)
from benchmarks.core.charts import BLUE, GREEN, PURPLE, VERMILION, chart, render
from benchmarks.core.common import (
    command_line,
    environment,
    flow_title,
    markdown_table,
    write_result,
)
from timm_nfaug import ConditionalFlow
from timm_nfaug._utils.files import write_atomically
from timm_nfaug.autoencoder import Autoencoder, load_autoencoder
from train_flow.data import Images

POLICY = "RandAugment"
LINES = {  # colour and marker of an arm of the plot
    "linear": (VERMILION, "o"), "shading": ("0.5", "s"), "deep": (PURPLE, "o"),
    "latent": (BLUE, "o"), "latent, class": (BLUE, "^"), "latent deep": (GREEN, "o"),
    "latent deep, class": (GREEN, "^"), POLICY: ("black", "*"),
}  # fmt: skip
SPREADS = (0.2, 0.3, 0.4, 0.5, 0.6)  # at which the arms are compared


def add_data(parser: argparse.ArgumentParser) -> None:
    """The arguments of every measurement with a classifier."""
    add = parser.add_argument
    add("--data-dir", type=Path, required=True, help="ImageFolder tree with train/ and val/")
    add("--data-name", required=True)
    add("--image-size", type=int, default=224, help="side of the images (default: %(default)s)")
    weights = f"safetensors of timm's {BACKBONE} without classifier (default: timm's download)"
    add("--backbone-weights", type=Path, metavar="FILE", help=weights)
    add("--classifier-size", type=int, default=160, help="its images (default: %(default)s)")
    add("--train-images", type=int, default=3000, help="for classifier and modes (%(default)s)")
    add("--images", type=int, default=500, help="of val/ (default: %(default)s)")
    add("--strengths", type=float, nargs="+", default=[0.25, 0.5, 0.75, 1.0, 1.5])
    add("--autoencoder", metavar="NAME", help="Hub id, directory, or FILE.py:FUNCTION")
    add("--bfloat16", action="store_true", help="the autoencoder is safe in bfloat16")
    add("--seed", type=int, default=0)
    add("--threads", type=int, default=torch.get_num_threads())


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.analysis.drift", description=__doc__.split("\n")[0]
    )
    add_data(parser)
    add = parser.add_argument
    add("--size", type=int, default=112, help="side of latents' images (default: %(default)s)")
    add("--modes", type=int, default=32)
    add("--flow", metavar="NAME", help="deep flow over pixels: bundled, directory or Hub id")
    add("--latent-flow", metavar="NAME", help="deep flow over latents: directory or Hub id")
    add("--record", metavar="NAME", default="latent_drift")
    add("--plot", type=Path, metavar="FILE", help="draw kept over spread into this PNG")
    return parser


def opened(args: argparse.Namespace) -> Autoencoder | None:
    """The autoencoder that the arguments name."""
    if args.autoencoder is None:
        return None
    autoencoder = load_autoencoder(args.autoencoder)
    autoencoder.in_bfloat16 |= args.bfloat16
    return autoencoder


def named(args: argparse.Namespace) -> str | None:
    """How a record calls the autoencoder: without directories."""
    return args.autoencoder and args.autoencoder.rpartition("/")[2]


def loaded(args: argparse.Namespace) -> tuple[Images, Images, Classifier]:
    """Training and validation images, and a classifier fitted to the former."""
    torch.set_num_threads(args.threads)
    train = read(args.data_dir / "train", args.train_images, args.image_size)
    val = read(args.data_dir / "val", args.images, args.image_size)
    return train, val, Classifier(args.backbone_weights, args.classifier_size).fit(train)


def described(args: argparse.Namespace, train: Images, val: Images) -> str:
    """What a record says of the data."""
    counts = f"{len(val)} images moved, modes of {len(train)} others"
    return f"{args.data_name}, {counts}"


def make_arms(train: Images, args: argparse.Namespace) -> dict[str, Augmentation]:
    """Every arm at each strength, named "ARM STRENGTH"."""
    linear = linear_modes(train, args.modes)
    flows: dict[str, tuple[ConditionalFlow, Any, int | None]] = {
        "linear": (linear, None, None),
        "shading": (shading(linear, args.modes), None, None),
    }
    if args.flow:
        flows["deep"] = ConditionalFlow.from_pretrained(args.flow).eval().pooled(), None, None
    autoencoder = opened(args)
    if autoencoder is not None:
        latents, classes = latents_of(autoencoder, args.size, train), len(train.class_names)
        for name, count in (("latent", 1), ("latent, class", classes)):
            flow = latent_modes(autoencoder, args.size, latents, args.modes, count)
            flows[name] = flow, autoencoder, args.size
    if args.latent_flow:
        deep = ConditionalFlow.from_pretrained(args.latent_flow).eval()
        flows["latent deep"] = deep.pooled(), autoencoder, None
        if deep.num_classes > 1:
            flows["latent deep, class"] = deep, autoencoder, None
    found = {
        f"{name} {s:g}": nfa(flow, s, args.modes, own, side)
        for name, (flow, own, side) in flows.items()
        for s in args.strengths
    }
    return found | {POLICY: randaugment(args.image_size)}


def rows_of(found: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    """Rows of a record: the arm and its strength apart."""
    rows = []
    for label, measures in found.items():
        name, _, strength = label.rpartition(" ")
        which = (
            {"arm": name, "strength": float(strength)} if name else {"arm": label, "strength": None}
        )
        rows.append(which | measures)
    return rows


def table(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Cells, the header first: what each arm does at each strength."""
    cells = [["augmentation", "strength", "move (levels)", "kept", "spread", "burnt"]]
    for r in rows:
        strength = "" if r["strength"] is None else f"{r['strength']:g}"
        shares = f"{100 * r['kept']:.1f}%", f"{r['spread']:.2f}", f"{100 * r['burnt']:.1f}%"
        cells.append([r["arm"], strength, f"{r['move_levels']:.1f}", *shares])
    return cells


def equal_table(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Cells, the header first: what each arm keeps at equal spread, between its strengths."""
    cells = [["kept at a spread of", *(f"{s:g}" for s in SPREADS)]]
    for arm, points in lines(rows).items():
        kept = [at_spread(points, s) for s in SPREADS]
        cells.append([arm, *("" if k is None else f"{100 * k:.1f}%" for k in kept)])
    return [row for row in cells if row[0] != POLICY]


def lines(rows: list[dict[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """The points (spread, kept) of each arm."""
    found: dict[str, list[tuple[float, float]]] = {}
    for r in rows:
        found.setdefault(r["arm"], []).append((r["spread"], r["kept"]))
    return found


def draw(rows: list[dict[str, Any]]) -> Figure:
    """Draws kept over spread, a line for each arm."""
    figure = chart(4, "How much variety, for how many lost classes?")
    axis = figure.subplots()
    for arm, points in lines(rows).items():
        spread, kept = zip(*points, strict=True)
        colour, marker = LINES[arm]
        style = "" if arm == POLICY else "--" if "class" in arm else "-"
        axis.plot(spread, [100 * k for k in kept], style, marker=marker, color=colour, label=arm)
    axis.set(xlabel="spread of the features, over that of two images of a class", ylabel="kept, %")
    axis.grid()
    axis.legend()
    return figure


def write_plot(path: Path, figure: Callable[[], Figure]) -> None:
    picture = render(figure)
    write_atomically(path, lambda p: picture.save(p, format="PNG", optimize=True))


def main(argv: list[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    train, val, classifier = loaded(args)
    rows = rows_of(measure(make_arms(train, args), val, classifier, args.seed))
    right = classifier.right(classifier.features(val.levels), val.labels).float().mean().item()
    names = {"flow": args.flow and flow_title(args.flow), "autoencoder": named(args)}
    names |= {"latent_flow": args.latent_flow and flow_title(args.latent_flow)}
    keys = ("modes", "size", "image_size", "classifier_size", "bfloat16")
    write_result(
        args.record,
        {
            "benchmark": "analysis.drift",
            "command": command_line("benchmarks.analysis.drift", argv),
            "data": described(args, train, val),
            "seeds": [args.seed],
            "environment": environment(),
            "settings": {k: getattr(args, k) for k in keys} | names,
            "notes": [f"{BACKBONE}'s features were trained on ImageNet"],
            "results": {"clean_top1": 100 * right, "rows": rows},
        },
    )
    print(f"{markdown_table(table(rows))}\n\n{markdown_table(equal_table(rows))}")
    if args.plot:  # last: a changed picture would make the commit on record another one
        write_plot(args.plot, lambda: draw(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
