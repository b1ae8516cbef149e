"""Whether a pass over latents needs more memory for more images: its peak at 1,000 and at 10,000.

    python -m benchmarks.speed.latent_memory

Claim: ten times the images take at most 1.1 times the memory, in every pass. Data: random images of
64 pixels in ten classes, an autoencoder that only rearranges pixels (48 x 8 x 8 latents). Each point
is a process of its own; the peak is that of its resident memory, torch included.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2.functional import to_pil_image

from benchmarks.core.common import (
    ROOT,
    command_line,
    environment,
    markdown_table,
    pinned,
    write_result,
)
from timm_nfaug import NFAugment

LIMIT = 1.1
CLAIM = f"ten times the images take at most {LIMIT} times the memory"
SIDE, CLASSES, BATCH = 64, 10, 64
HERE = "benchmarks.speed.latent_memory"
# a process counts the memory of the one that started it, which must not be this one with torch
LAUNCHER = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""
CHEAP = f"{HERE}:Rearranged"


class Rearranged(nn.Module):
    """Latents (B, 48, H/8, W/8) of images (B, 3, H, W): half of the pixels each way, four by four."""

    def encode(self, x: Tensor) -> Tensor:
        return F.pixel_unshuffle(F.avg_pool2d(x, 2), 4)

    def decode(self, z: Tensor) -> Tensor:
        return F.interpolate(F.pixel_shuffle(z, 4), scale_factor=2)


class RandomImages(Dataset):
    """`count` images (3, 64, 64), uint8, and labels, each made when it is asked for."""

    def __init__(self, count: int):
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        g = torch.Generator().manual_seed(i)
        image = torch.randint(0, 256, (3, SIDE, SIDE), generator=g, dtype=torch.uint8)
        return image, i % CLASSES


def fit(labels: str, count: int) -> None:
    """Finds modes of latents, pooled or of each class, in this process."""
    loader = DataLoader(RandomImages(count), BATCH)
    NFAugment.from_data(loader, CLASSES, autoencoder=Rearranged(), size=SIDE, labels=labels)


def write_images(folder: Path, count: int) -> Path:
    """Writes an ImageFolder tree with train/."""
    data = RandomImages(count)
    for i in range(count):
        image, label = data[i]
        path = folder / "train" / str(label) / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        to_pil_image(image).save(path, compress_level=0)
    return folder


def of_fit(labels: str) -> Callable[[Path, int], list[str]]:
    return lambda folder, count: ["-m", HERE, "--fit", labels, str(count)]


def of_latents(folder: Path, count: int) -> list[str]:
    """The latents of a training, made and kept, and its modes."""
    settings = [f"autoencoder={CHEAP}", f"image_size={SIDE}", "prior={num_modes: 8}"]
    flags = [part for setting in settings for part in ("--set", setting)]
    data = ["--data-dir", str(write_images(folder / "data", count)), "--out", str(folder / "out")]
    return ["-m", "train_flow", "--config", "linear_latent.imagenette", *data, *flags]


def of_materialise(folder: Path, count: int) -> list[str]:
    """A moved copy of each image, by one process."""
    data = ["--data-dir", str(write_images(folder / "data", count)), "--out", str(folder / "out")]
    how = ["--autoencoder", CHEAP, "--size", str(SIDE), "--processes", "1", "--device", "cpu"]
    return ["-m", "timm_nfaug.materialise", *data, *how, "--copies", "1"]


PASSES: dict[str, Callable[[Path, int], list[str]]] = {
    "fit, pooled modes": of_fit("none"),
    "fit, class modes": of_fit("given"),
    "train_flow, latents": of_latents,
    "materialise": of_materialise,
}


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=f"python -m {HERE}", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--counts", type=int, nargs=2, default=[1000, 10000], help="of images (%(default)s)")
    add("--passes", nargs="+", choices=list(PASSES), default=list(PASSES))
    add("--record", metavar="NAME", default="latent_memory")
    add("--fit", nargs=2, help=argparse.SUPPRESS)  # labels and images of this process's pass
    return parser.parse_args(argv)


def peak(name: str, count: int) -> float:
    """MB of a pass's processes at the peak of the largest."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, *PASSES[name](Path(folder), count)]
        done = subprocess.run(
            [sys.executable, "-c", LAUNCHER, *command],
            capture_output=True, text=True, cwd=ROOT, env={**os.environ, **pinned(1)},
        )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{name}, {count} images:\n{done.stderr[-2000:]}")
    return int(done.stdout.split()[-1]) / 1e3  # of kB


def table(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Cells, the header first."""
    cells = [["pass", *(f"{n:,} images, MB" for n in rows[0]["images"]), "ratio"]]
    for r in rows:
        cells.append([r["pass"], *(f"{mb:.0f}" for mb in r["mb"]), f"{r['ratio']:.2f}"])
    return cells


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    if args.fit:
        torch.set_num_threads(1)
        fit(args.fit[0], int(args.fit[1]))
        return 0
    rows = []
    for name in args.passes:
        mb = [peak(name, count) for count in args.counts]
        rows.append({"pass": name, "images": args.counts, "mb": mb, "ratio": mb[1] / mb[0]})
        print(rows[-1], flush=True)
    met = all(r["ratio"] <= LIMIT for r in rows)
    write_result(
        args.record,
        {
            "benchmark": "speed.latent_memory",
            "claim": CLAIM,
            "command": command_line(HERE, argv),
            "data": f"random images of 3 x {SIDE} x {SIDE}",
            "seeds": [0],
            "environment": environment(),
            "results": {"rows": rows, "claim_met": met},
        },
    )
    print(markdown_table(table(rows)))
    return int(not met)


if __name__ == "__main__":
    sys.exit(main())
