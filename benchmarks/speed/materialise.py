"""Rates and bytes of `timm-nfaug materialise`: pixels and latent, 112 and 224 px, one and two processes.

    python -m benchmarks.speed.materialise --images DIR --autoencoder NAME --data "Imagenette (224 px, resized)"

Images of a folder are brought to a square of each side (JPEG, quality 90) and written with 3 copies
of each. A rate is that of the shards after the first of each process: starting and fitting do not
count. Core time is that of one process with one thread, which other work on the machine changes less
than the wall time.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from benchmarks.core.common import command_line, environment, markdown_table, write_result
from timm_nfaug import materialise
from timm_nfaug.copies.formats import FORMATS
from timm_nfaug.integration.classes import evenly
from timm_nfaug.integration.folder import training_set

COPIES = 3
IMAGES = {"ImageNet-1k": 1_281_167, "ImageNet-21k": 14_197_122}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed.materialise", description=__doc__.split("\n")[0]
    )
    add = parser.add_argument
    add("--images", type=Path, required=True, help="folder with a folder of images a class")
    add("--data", required=True, help="what the images are, for the record")
    add("--autoencoder", help="of the space latent; without, pixels alone are measured")
    add("--sides", type=int, nargs="+", default=[112, 224])
    add("--limit", type=int, default=64, help="images of each run in pixels")
    add("--limit-latent", type=int, default=16)
    add("--device", default="cpu")
    add("--record", default="materialise", help="the result's name")
    return parser.parse_args()


def squares(source: Path, target: Path, side: int, limit: int) -> Path:
    """Writes `limit` images, evenly spread over a folder, as squares."""
    samples = training_set(source).reader.samples
    for i, (path, label) in enumerate(evenly(samples, limit)):
        file = target / str(side) / "train" / f"{label:03d}" / f"{i:05d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        square = ImageOps.fit(
            Image.open(path).convert("RGB"), (side, side), Image.Resampling.BICUBIC
        )
        square.save(file, quality=90)
    return target / str(side)


def run(data: Path, out: Path, form: str, processes: int, flags: list[str]) -> dict[str, Any]:
    """Makes a set; returns its rate and bytes."""
    images = sum(1 for _ in data.rglob("*.jpg"))
    own = ["--format", form, "--processes", str(processes), "--shard-images", str(images // 8)]
    where = ["--data-dir", str(data), "--out", str(out), "--copies", str(COPIES), *own, *flags]
    args = materialise._parse(where)
    (out / ".nfa").mkdir(parents=True)
    found = materialise._open(args, materialise._images(args))
    records, wall, cpu = [], [], []
    for record in materialise._made(found, args):
        records.append(record)
        wall.append(time.perf_counter())
        cpu.append(time.process_time())
    timed = sum(r["images"] for r in records[processes:])
    size = sum(p.stat().st_size for p in data.rglob("*.jpg"))
    return {
        "format": form, "processes": processes, "images": images,
        "images_per_second": timed / (wall[-1] - wall[processes - 1]),
        "core_seconds_per_image": (cpu[-1] - cpu[0]) / timed if processes == 1 else None,
        "bytes_per_image": size / images,
        "bytes_per_copy": (sum(r["bytes"] for r in records) - size) / images / COPIES,
    }  # fmt: skip


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Makes a set for each row; all runs of a space and side have the modes of the first."""
    rows = []
    for space in ("pixels", "latent") if args.autoencoder else ("pixels",):
        limit = args.limit if space == "pixels" else args.limit_latent
        own = ["--autoencoder", args.autoencoder] if space == "latent" else []
        for side in args.sides:
            with tempfile.TemporaryDirectory() as folder:
                data, flags = squares(args.images, Path(folder), side, limit), ["--aug", "nfa-k4"]
                flags += ["--size", str(side)] if own else []
                for form in FORMATS:
                    for processes in (1, 2) if args.device == "cpu" else (1,):
                        out = Path(folder, f"{form}{processes}")
                        device = ["--device", args.device]
                        found = run(data, out, form, processes, [*device, *own, *flags])
                        rows.append({"space": space, "side": side, **found})
                        flags = ["--flow", str(Path(folder, "folder1", ".nfa", "augmentation"))]
                        print(rows[-1], flush=True)
    return rows


def table(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Cells: a row for each space, side and format; hours and bytes of the large sets as arithmetic."""
    head = ["space, side, format", "core ms an image", "images/s, 1 process", "2 processes"]
    cells = [
        [
            *head,
            "kB a copy",
            *(f"{name}: core hours" for name in IMAGES),
            *(f"{name}: copies, GB" for name in IMAGES),
        ]
    ]
    for one in (r for r in rows if r["processes"] == 1):
        same = lambda r, one=one: all(r[k] == one[k] for k in ("space", "side", "format"))
        two = [r for r in rows if r["processes"] == 2 and same(r)]
        seconds = one["core_seconds_per_image"]
        cells.append([
            f"{one['space']}, {one['side']} px, {one['format']}",
            f"{1000 * seconds:,.0f}", f"{one['images_per_second']:.3g}",
            f"{two[0]['images_per_second']:.3g}" if two else "",
            f"{one['bytes_per_copy'] / 1000:.0f}",
            *(f"{seconds * n / 3600:,.0f}" for n in IMAGES.values()),
            *(f"{one['bytes_per_copy'] * COPIES * n / 1e9:,.0f}" for n in IMAGES.values()),
        ])  # fmt: skip
    return cells


def main() -> int:
    args = parse()
    rows = measure(args)
    write_result(
        args.record,
        {
            "benchmark": "materialise",
            "command": command_line("benchmarks.speed.materialise"),
            "data": args.data,
            "seeds": [0],
            "environment": environment(("pillow",)),
            "settings": {"copies": COPIES, "device": args.device, "image format": "png"},
            "results": {"rows": rows},
        },
    )
    print(markdown_table(table(rows)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
