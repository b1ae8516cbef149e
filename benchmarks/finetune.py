"""Compares augmentations in fine-tuning, on your images and with any timm model.

    python -m benchmarks.finetune --model resnet18 --data-dir DATA --per-class 25
    python -m benchmarks.finetune --model eva02_base_patch14_448.mim_in22k_ft_in22k_in1k \\
        --side 448 --data-dir DATA --per-class 25 --device cuda --frozen-stages 0 --bf16

DATA is an ImageFolder tree with train/ and val/. The protocol is that of `benchmarks.evidence`:
crop and flip is tuned on held-out training images, every arm has a search there, and the chosen
settings are reported on val/ with other seeds. The weights are the Hub's, those of --weights, or
with --from-scratch none. Runs are appended to --record, and the same command resumes; at the end
the tables are printed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.core import records
from benchmarks.core.common import command_line
from benchmarks.evidence.arms import ENTRIES, grid
from benchmarks.evidence.cells import BASELINE, ELSEWHERE, SEEDS, Cell
from benchmarks.evidence.run import able, add_plan, fill
from benchmarks.evidence.tables import cell_table, search_table, tuning_table
from benchmarks.evidence.work import add_place, add_runs, place_of
from benchmarks.finetuning.recipe import NORMS, FinetuneRecipe
from train_flow.data import list_files


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    place = place_of(args, command_line("benchmarks.finetune", argv))
    cell = cell_of(args)
    path = args.record or Path("runs") / f"{cell.name}.jsonl"
    arms = able(cell, cell.arms, place)
    fill(cell, place, path, arms, args.stages, args.jobs, args.time_limit)
    runs = records.read(path)
    print("\n\n".join(table(cell, runs) for table in (tuning_table, search_table, cell_table)))
    return 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.finetune", description=__doc__.split("\n")[0]
    )
    add, usual = parser.add_argument, FinetuneRecipe(pretrained=True)
    add("--model", required=True, help="a name in timm")
    add("--per-class", type=int, default=25, help="training images of each class")
    add("--data-name", help="how the record calls the data; default: the directory's name")
    add("--side", type=int, default=224, help="pixels of the model's images")
    add("--batch-size", type=int, default=usual.batch_size)
    add(
        "--lrs", type=float, nargs="+", default=[1e-4, 2.5e-4, 5e-4], help="tried for crop and flip"
    )
    add("--epochs", type=int, nargs="+", default=[20, 40], help="tried for crop and flip")
    add(
        "--smoothings", type=float, nargs="+", default=[0.0, 0.1],
        help="of labels, tried for crop and flip",
    )  # fmt: skip
    add("--frozen", action="store_true", help="train the head alone")
    add("--frozen-stages", type=int, default=0, help="the first ones, kept as they are")
    add("--norm", choices=NORMS, help="of batch norm in training; default: fixed")
    add("--from-scratch", action="store_true", help="no pretrained weights; batch norm is trained")
    add("--no-flip", action="store_true", help="left and right differ: digits, text, road signs")
    add("--by-track", action="store_true", help="names are TRACK_FRAME, frames are near-copies")
    add("--bf16", action="store_true", help="autocast")
    add_plan(parser)
    add_place(parser)
    add_runs(parser)
    args = parser.parse_args(argv)
    if args.frozen and args.norm == "trained":
        parser.error("--frozen keeps the batch norms: --norm fixed or folded")
    if args.from_scratch and (args.weights or args.frozen or args.frozen_stages or args.norm):
        parser.error("--from-scratch trains all: drop --weights, --norm, --frozen, --frozen-stages")
    args.norm = "trained" if args.from_scratch else args.norm or "fixed"
    args.data_name = args.data_name or args.data_dir.resolve().name
    return args


def cell_of(args: argparse.Namespace) -> Cell:
    """The cell that the flags describe."""
    weights = args.weights.stem if args.weights else ""
    recipe = FinetuneRecipe(
        args.model, weights=weights, pretrained=not (weights or args.from_scratch), side=args.side,
        batch_size=args.batch_size, norm=args.norm, frozen=args.frozen,
        frozen_stages=args.frozen_stages, flip=not args.no_flip, bf16=args.bf16,
    )  # fmt: skip
    names, files = list_files(args.data_dir / "train")
    share = args.per_class * len(names) / len(files)
    start = "scratch-" * args.from_scratch + "frozen-" * args.frozen + "tracks-" * args.by_track
    asked = args.arms or [a for a, e in ENTRIES.items() if not e.flow]
    arms = tuple(dict.fromkeys((BASELINE, *asked)))
    tuning = grid(epochs=tuple(args.epochs), lr=tuple(args.lrs), smoothing=tuple(args.smoothings))
    return Cell(
        f"{args.model.partition('.')[0]}-{start}{args.data_name}-{args.per_class}", args.data_name,
        args.per_class, share, f"{args.model}, {args.side} px", recipe, tuning, arms, ELSEWHERE,
        tuple(args.seeds or SEEDS), size=args.side, by_track=args.by_track, corrupted=0,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
