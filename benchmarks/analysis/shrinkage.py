"""How well modes found from few images fit other images of the class, over the shrinkage toward all classes.

    python -m benchmarks.analysis.shrinkage --data-dir DIR --data-name "CIFAR-10"

Claim: none beforehand. Data: training images alone, three seeds; test images play no part. The
eigen-images of a class, as `linear` takes them, and the variances along them are found from
`--images` of each class, and again from all its other training images. The error is the Frobenius
norm of the difference of the two covariances, each of `--modes` modes, over that of the second; the
root mean square over classes and seeds.
"""

from __future__ import annotations

import argparse
import math
import sys
from typing import Any

import torch
from torch import Tensor

from benchmarks.core.common import command_line, environment, markdown_table, write_result
from timm_nfaug import pixels
from timm_nfaug.flows.moments import ClassMoments
from train_flow.data import Images, load_data
from train_flow.evaluate import batches


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.analysis.shrinkage", description=__doc__.split("\n")[0]
    )
    add = parser.add_argument
    add("--data-dir", required=True, help="ImageFolder tree with train/ and val/")
    add("--data-name", required=True)
    add("--image-size", type=int, default=32)
    add("--images", type=int, nargs="+", default=[20, 50, 250, 500], help="of each class")
    add("--shrinkages", type=float, nargs="+", default=[0, 10, 30, 100, 300, 1000])
    add("--modes", type=int, default=32)
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--record", metavar="NAME", default="shrinkage")
    return parser


def errors(data: Images, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Returns one row for each number of images and shrinkage."""
    found: dict[tuple[int, float], list[float]] = {
        (n, s): [] for n in args.images for s in args.shrinkages
    }
    for seed in args.seeds:
        g = torch.Generator().manual_seed(seed)
        members = [torch.nonzero(data.labels == k).flatten() for k in range(len(data.class_names))]
        members = [own[torch.randperm(len(own), generator=g)] for own in members]
        others = torch.cat([own[max(args.images) :] for own in members])
        truth = eigen_images(data.subset(others), args.modes, 0.0)
        for n, s in found:
            few = eigen_images(data.subset(torch.cat([own[:n] for own in members])), args.modes, s)
            squares = [squared_error(*(t[k] for t in (*few, *truth))) for k in range(len(members))]
            found[n, s].append(math.sqrt(sum(squares) / len(squares)))
    return [
        {"images": n, "shrinkage": s, "error": root_mean_square(e), "error_by_seed": e}
        for (n, s), e in found.items()
    ]


def root_mean_square(errors: list[float]) -> float:
    return math.sqrt(sum(e**2 for e in errors) / len(errors))


def eigen_images(data: Images, modes: int, shrinkage: float) -> tuple[Tensor, Tensor]:
    """Returns modes (K, r, D) and standard deviations (K, r) of the classes' pixels."""
    moments = ClassMoments(
        len(data.class_names), data.levels[0].numel(), modes, shrinkage=shrinkage
    )
    for levels, y in batches(data, 512):
        moments.update(pixels.levels_to_model(levels).flatten(1), y)
    return moments.finish()[2:]


def squared_error(modes: Tensor, std: Tensor, true_modes: Tensor, true_std: Tensor) -> float:
    """Returns |A - B|^2 / |B|^2 in the Frobenius norm, the second covariance being B.

    Args:
        modes, true_modes: (r, D), orthonormal rows. std, true_std: (r,).
    """
    own, true = std.double() ** 2, true_std.double() ** 2
    cosines = (modes.double() @ true_modes.double().T) ** 2
    energy = true.square().sum()
    return float((own.square().sum() + energy - 2 * own @ cosines @ true) / energy)


def table(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Returns cells, a row for each number of images, a column for each shrinkage."""
    shrinkages = dict.fromkeys(r["shrinkage"] for r in rows)
    cells = [["images of a class", *(f"shrinkage {s:g}" for s in shrinkages)]]
    for n in dict.fromkeys(r["images"] for r in rows):
        cells.append([str(n), *(f"{r['error']:.3f}" for r in rows if r["images"] == n)])
    return cells


def main(argv: list[str] | None = None) -> int:
    parser = make_parser()
    args = parser.parse_args(argv)
    data, _ = load_data("folder", args.data_dir, image_size=args.image_size)
    rare, most = int(torch.bincount(data.labels).min()), max(args.images)
    if rare < 2 * most:
        parser.error(f"the rarest class has {rare} images, too few to leave others beside {most}")
    rows = errors(data, args)
    sizes = f"{len(data)} training images of {len(data.class_names)} classes"
    write_result(
        args.record,
        {
            "benchmark": "shrinkage",
            "command": command_line("benchmarks.analysis.shrinkage", argv),
            "data": f"{args.data_name}, {sizes}",
            "seeds": args.seeds,
            "environment": environment(),
            "settings": {"modes": args.modes},
            "results": {"rows": rows},
        },
    )
    print(markdown_table(table(rows)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
