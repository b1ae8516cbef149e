"""How far augmentations take images, and how often past the border of their class.

    python -m benchmarks.cifar.resnet18 --data DIR --data-name "CIFAR-10" --arms baseline --epochs 8 --save WEIGHTS
    python -m benchmarks.analysis.label_drift --data-dir DIR --data-name "CIFAR-10" --classifier WEIGHTS/FILE.safetensors

Claim: none beforehand. Data: validation images, every one augmented twice, shown to a classifier
that was trained on all training images with crop and flip alone; one seed. NFA's modes are fitted
to the training images.

- kept: of the images it has right as they are, how many it still has right. It errs on strange
  pictures as well as on changed classes, so what is lost bounds the drift of labels from above.
- move: mean change of a pixel, in levels.
- spread: distance of the features of two augmented versions of one image over that of two images of
  a class: the variety that a training sees.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.cifar.arms import Arm, Settings, apply_policy, make_arm
from benchmarks.cifar.classifier import (
    Recipe,
    crop_and_flip,
    load_saved,
    logits_of,
    normalize,
    penultimate,
    seed_globals,
)
from benchmarks.core.common import (
    command_line,
    environment,
    flow_title,
    markdown_table,
    write_result,
)
from timm_nfaug import ConditionalFlow
from train_flow.data import Images, load_data
from train_flow.schedule import generator

BATCH, ROUNDS = 250, 2
# what every arm of a training sees as well
CROPPED = Arm(levels=lambda levels, y, g: crop_and_flip(levels, Recipe.crop, g))


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.analysis.label_drift", description=__doc__.split("\n")[0]
    )
    add = parser.add_argument
    add("--data-dir", required=True, help="ImageFolder tree with train/ and val/")
    add("--data-name", required=True)
    add("--image-size", type=int, default=32)
    add("--classifier", required=True, help="a file of benchmarks.cifar.resnet18 --save")
    add("--flow", help="of glem: bundled, directory or Hub id")
    add("--strengths", type=float, nargs="+", default=[0.25, 0.5, 1.0, 1.5])
    add("--modes", type=int, default=32)
    add("--images", type=int, default=2000)
    add("--seed", type=int, default=0)
    add("--threads", type=int, default=torch.get_num_threads())
    return parser


def arms(images: Images, args: argparse.Namespace) -> dict[str, Arm]:
    """Creates every augmentation that is compared, NFA at each strength."""
    found = {"crop and flip": CROPPED}
    found |= {name: make_arm(name, images, None, Settings()) for name in ("sa", "trivial")}
    flow = ConditionalFlow.from_pretrained(args.flow).eval() if args.flow else None
    for name in ["linear", *["glem"] * (flow is not None)]:
        for s in args.strengths:
            settings = Settings(strength=s, modes=args.modes, p=1.0)
            found[f"{name} s{s:g}-k{args.modes}"] = make_arm(name, images, flow, settings)
    return found


@torch.no_grad()
def measure(arm: Arm, model: nn.Module, data: Images, seed: int) -> dict[str, Any]:
    """Returns kept and spread as shares, and move in levels, means over images."""
    kept = total = move = 0.0
    versions: list[list[Tensor]] = [[] for _ in range(ROUNDS)]
    for start in range(0, len(data), BATCH):
        levels, y = data.levels[start : start + BATCH], data.labels[start : start + BATCH]
        clean = normalize(levels)
        was = logits_of(model, levels, bf16=False).argmax(1) == y
        for version in range(ROUNDS):
            g = generator(seed, version, start)
            seed_globals(g)
            x, _ = arm.tensors(normalize(arm.images(apply_policy(arm.policy, levels), y, g)), y)
            f = penultimate(model, x)
            versions[version].append(f)
            kept += (was & (model.get_classifier()(f).argmax(1) == y)).sum().item()
            total += was.sum().item()
            # a normalised image is twice that in [-1, 1], where a level is 1/128
            move += 64 * (x - clean).abs().flatten(1).mean(1).sum().item()
    a, b = (torch.cat(v) for v in versions)
    if not total:
        raise ValueError(
            "the classifier has none of the images right; give weights that were trained on these classes"
        )
    between = (a - partners(a, data.labels, seed)).norm(dim=1).mean()
    spread = ((a - b).norm(dim=1).mean() / between).item()
    return {"kept": kept / total, "move_levels": move / (ROUNDS * len(data)), "spread": spread}


def partners(rows: Tensor, labels: Tensor, seed: int) -> Tensor:
    """Returns for each row that of another image of the same class: the next in a shuffled round of the class."""
    out = torch.empty_like(rows)
    for k in labels.unique().tolist():
        own = torch.nonzero(labels == k).flatten()
        own = own[torch.randperm(len(own), generator=generator(seed, 9, k))]
        out[own] = rows[own.roll(1)]
    return out


def table(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Returns cells, the header first."""
    cells = [["augmentation", "move (levels)", "kept", "spread"]]
    for r in rows:
        shares = f"{100 * r['kept']:.1f}%", f"{r['spread']:.2f}"
        cells.append([r["augmentation"], f"{r['move_levels']:.1f}", *shares])
    return cells


def main(argv: list[str] | None = None) -> int:
    parser = make_parser()
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    images, val = load_data("folder", args.data_dir, args.image_size)
    if val is None:
        parser.exit(
            2, f"error: {args.data_dir} has no validation images; expected train/ and val/ inside\n"
        )
    count = min(args.images, len(val))
    some = val.subset(torch.arange(count) * len(val) // count)
    name, model = load_saved(args.classifier, len(val.class_names))
    rows = []
    for label, arm in arms(images, args).items():
        rows.append({"augmentation": label} | measure(arm, model, some, args.seed))
        print(rows[-1], flush=True)
    clean = logits_of(model, some.levels, bf16=False).argmax(1) == some.labels
    flow = args.flow and flow_title(args.flow)
    settings = {"model": name, "flow": flow, "modes": args.modes, "crop": Recipe.crop}
    write_result(
        "label_drift",
        {
            "benchmark": "label_drift",
            "command": command_line("benchmarks.analysis.label_drift", argv),
            "data": f"{args.data_name}, {count} of {len(val)} validation images",
            "seeds": [args.seed],
            "environment": environment(),
            "settings": settings,
            "results": {"clean_top1": 100 * clean.float().mean().item(), "rows": rows},
        },
    )
    print(markdown_table(table(rows)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
