"""What a change through an autoencoder costs: encode, decode, whole, and from cached latents, in one run.

    python -m benchmarks.speed.latent --autoencoder NAME --data-dir DIR [--device cuda --record latent_cost_cuda]

Claim: none on a CPU; on a GPU, at side 112 and p 0.5 at most 15% of a step of ViT-S at 224 px and 3%
of one of EVA02-B at 448 px. Data: photographs of train/ of an ImageFolder tree, at 224 px, for side
448 at 448 px; without `--data-dir` smooth random images. The 32 modes are those of 128 of them at 64
px, resampled. Training steps are forward, backward and update with random weights, in bfloat16 where
the device has it; every repeat runs each candidate once, so that a slow spell hits all alike.

- encode, decode: of one image. whole: encode, decode the latents and the moved ones, add the change.
- cached: the same from known latents.
- error: of a change in bfloat16 against float32 at strength 0.5, mean and 99% of the values.
"""

from __future__ import annotations

import argparse
import copy
import sys
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.data.auto_augment import rand_augment_transform
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from benchmarks.analysis.frozen import read
from benchmarks.cifar.arms import RANDAUGMENT
from benchmarks.core.common import (
    command_line,
    disturbed,
    environment,
    markdown_table,
    pin_threads,
    timed,
    write_result,
)
from benchmarks.speed.augmentations import Call, smooth_levels, training_steps
from benchmarks.speed.peak import dtypes, synchronised
from timm_nfaug import ConditionalFlow, NFAugment, lift, pixels
from timm_nfaug.autoencoder import Autoencoder, load_autoencoder
from timm_nfaug.change import LatentChange, add_change
from timm_nfaug.integration.pillow import guard_posterize
from timm_nfaug.moves import draw_noise

MODES, STRENGTH, P = 32, 0.5, 0.5
FITTED, FIT_SIDE = 128, 64  # images that the modes are found in, and their side
PIXELS = {"cpu": 2**17, "cuda": 2**22}  # of latents' images in a batch: one of 448 px, ten of 112
MOST = {"cpu": 8, "cuda": 128}  # images in a batch
PARTS = ("encode", "decode", "whole", "cached")
DRAWS = 64  # images of RandAugment in a call, whose cost depends on what it draws
EVA = "eva02_base_patch14_448"
EVA_BATCH = 16
GOALS = {"vit": 0.15, "eva": 0.03}  # shares of a step at side 112 on a GPU


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed.latent", description=__doc__.split("\n")[0]
    )
    add = parser.add_argument
    add("--autoencoder", required=True, metavar="NAME")
    add("--data-dir", type=Path, help="photographs: ImageFolder tree with train/")
    add("--data-name", default="photographs")
    add("--sides", type=int, nargs="+", default=[64, 112, 224, 448])
    add(
        "--threads", type=int, nargs="+", default=[1, 2], help="of a CPU; on a GPU the first counts"
    )
    add("--repeats", type=int, default=3)
    add("--min-seconds", type=float, default=0.0, help="a repeat lasts so long, or one call")
    add("--device", default="cpu")
    add("--record", metavar="NAME", default="latent_cost")
    return parser.parse_args(argv)


def images_for(side: int, count: int, data_dir: Path | None) -> Tensor:
    """Levels (count, 3, S, S) of 224 pixels, or of 448 for latents of images of 448."""
    size = 448 if side > 224 else 224
    if data_dir is None:
        return smooth_levels(count, size, torch.Generator().manual_seed(0))
    return read(data_dir / "train", count, size).levels


def augmentations(
    autoencoder: Autoencoder, flow: ConditionalFlow, side: int, device: str
) -> dict[str, NFAugment]:
    """NFA through an autoencoder in each dtype that the device computes in."""
    found = {}
    for dtype in dtypes(device):
        own = copy.copy(autoencoder)  # shares the weights
        own.in_bfloat16 = dtype == "bfloat16"
        found[dtype] = NFAugment(flow, STRENGTH, MODES, 1.0, autoencoder=own, size=side, seed=0)
    return found


def candidates(augment: NFAugment, levels: Tensor) -> dict[str, Call]:
    """The parts of a change of images (B, 3, S, S), uint8, as calls."""
    change: Any = augment.change
    assert isinstance(change, LatentChange)
    small = lift.down(pixels.levels_to_model(levels), change.size[1:])
    z, g = change.autoencoder.encode(small), torch.Generator().manual_seed(0)
    y = torch.zeros(len(levels), dtype=torch.int64, device=levels.device)

    def cached() -> Tensor:
        noise = draw_noise(len(levels), MODES, g).to(levels.device)
        return add_change(levels, change.change_of_latents(z, y, noise))

    return {
        "encode": lambda: change.autoencoder.encode(small),
        "decode": lambda: change.autoencoder.decode(z),
        "whole": lambda: augment(levels),
        "cached": cached,
    }


def error(found: dict[str, NFAugment], levels: Tensor) -> dict[str, float] | None:
    """How far the changes in bfloat16 lie from those in float32, in levels."""
    if len(found) < 2:
        return None
    noise = draw_noise(len(levels), MODES, torch.Generator().manual_seed(0)).to(levels.device)
    x, y = pixels.levels_to_model(levels), torch.zeros(len(levels), dtype=torch.int64)
    changes = [a.change.change(lambda: x, y.to(x.device), noise) for a in found.values()]
    off = 128 * (changes[0] - changes[1]).abs().flatten().cpu()
    near = off.kthvalue(max(1, int(0.99 * len(off)))).values
    return {
        "mean": off.mean().item(),
        "p99": near.item(),
        "move": 128 * changes[0].abs().mean().item(),
    }


def eva_step(device: str) -> tuple[Call, int]:
    """A training step of EVA02-B at 448 px, and its images."""
    model = timm.create_model(EVA, num_classes=1000).to(device).train()
    x = torch.randn(EVA_BATCH, 3, 448, 448, device=device)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)

    def step() -> None:
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            loss = F.cross_entropy(model(x), torch.zeros(len(x), dtype=torch.int64, device=device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return synchronised(step, device), EVA_BATCH


def steps(device: str) -> dict[str, tuple[Call, int]]:
    """The training steps whose shares are stated."""
    ((call, count),) = training_steps(224, device).values()
    found = {"vit": (call, count)}
    return found | ({"eva": eva_step(device)} if torch.device(device).type == "cuda" else {})


def measure(
    autoencoder: Autoencoder,
    flow: ConditionalFlow,
    side: int,
    threads: int,
    args: argparse.Namespace,
) -> list[dict[str, Any]]:
    """A row for each dtype: seconds an image of each part, of RandAugment and of the steps."""
    torch.set_num_threads(threads)
    kind = torch.device(args.device).type
    count = max(1, min(MOST[kind], PIXELS[kind] // side**2))
    levels = images_for(side, count, args.data_dir)
    hyper = {"translate_const": int(0.45 * levels.shape[-1]), "img_mean": (124, 116, 104)}
    guard_posterize()
    policy = rand_augment_transform(RANDAUGMENT, hyper)
    pils = [to_pil_image(levels[i % count]) for i in range(DRAWS)]
    levels = levels.to(args.device)
    calls = {"randaugment": (lambda: [policy(image) for image in pils], DRAWS)} | steps(args.device)
    found = augmentations(autoencoder, flow, side, args.device)
    for dtype, augment in found.items():
        for name, call in candidates(augment, levels).items():
            calls[f"{name} {dtype}"] = synchronised(call, args.device), count
    times = timed({n: call for n, (call, _) in calls.items()}, args.repeats, args.min_seconds)
    each = {n: times[n]["median"] / images for n, (_, images) in calls.items()}
    shared = {n: each[n] for n in ("randaugment", "vit", "eva") if n in each}
    off = error(found, levels)
    slow = [n for n, t in times.items() if n != "randaugment" and disturbed(t, threads)]
    rows = []
    for dtype in found:
        own = {part: each[f"{part} {dtype}"] for part in PARTS}
        row = {"side": side, "threads": threads, "dtype": dtype, "images": count} | own | shared
        row |= {"disturbed": kind == "cpu" and bool(slow)}
        rows.append(row | ({"error_levels": off} if off and dtype == "bfloat16" else {}))
    return rows


def table(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Cells, the header first: images/s of each part, and what the whole is of other work."""
    head = ["side, threads", "", *(f"{part}, images/s" for part in PARTS), "whole over RandAugment"]
    more = ["of a ViT-S step, p 0.5", "cached"]
    eva = ["of an EVA02-B step, p 0.5"] * ("eva" in rows[0])
    cells = [[*head, *more, *eva, "bfloat16 error, levels (99%)"]]
    for r in rows:
        cost = [f"{1 / r[part]:.{0 if r[part] < 0.1 else 1}f}" for part in PARTS]
        share = [f"{100 * P * r[part] / r['vit']:.1f}%" for part in ("whole", "cached")]
        share += [f"{100 * P * r['whole'] / r['eva']:.1f}%" for _ in eva]
        off = r.get("error_levels")
        shown = f"{off['mean']:.2f} ({off['p99']:.1f})" if off else ""
        over = f"{r['whole'] / r['randaugment']:.0f}"
        cells.append([f"{r['side']} px, {r['threads']}", r["dtype"], *cost, over, *share, shown])
    return cells


def goal(rows: list[dict[str, Any]]) -> dict[str, float] | None:
    """On a GPU the shares of the steps at side 112, in the quickest dtype."""
    own = [r for r in rows if r["side"] == 112 and "eva" in r]
    return {k: P * min(r["whole"] for r in own) / own[0][k] for k in GOALS} if own else None


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    on_cpu = torch.device(args.device).type == "cpu"
    pin_threads(max(args.threads))
    autoencoder = load_autoencoder(args.autoencoder)
    images = images_for(FIT_SIDE, FITTED, args.data_dir)
    batches = list(images.split(16))
    fitted = NFAugment.from_data(batches, autoencoder=autoencoder, size=FIT_SIDE, modes=MODES)
    autoencoder, flow = autoencoder.to(args.device), fitted.flow.to(args.device)
    rows = []
    for threads in args.threads if on_cpu else args.threads[:1]:
        for side in args.sides:
            rows += measure(autoencoder, flow, side, threads, args)
            print(markdown_table(table(rows[-2:])), flush=True)
    keys = ("device", "repeats", "min_seconds")
    settings = {k: getattr(args, k) for k in keys} | {"modes": MODES, "strength": STRENGTH, "p": P}
    settings["autoencoder"] = args.autoencoder.rpartition("/")[2]
    data = args.data_name if args.data_dir else "smooth random images"
    write_result(
        args.record,
        {
            "benchmark": "speed.latent",
            "command": command_line("benchmarks.speed.latent", argv),
            "data": f"{data} at 224 px, for side 448 at 448 px",
            "seeds": [0],
            "environment": environment(),
            "settings": settings,
            "results": {"rows": rows, "goal": goal(rows)},
        },
    )
    print(markdown_table(table(rows)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
