"""What an augmentation costs: microseconds an image of NFA beside timm's, torchvision's and kornia's.

Claim: on one CPU thread NFA with the `linear` flow and NFA from a cache of tangents, on batches of uint8 images, each take at
most half the time of timm's RandAugment at 32 and at 224 px.

    python -m benchmarks.speed.throughput --plot docs/figures/throughput.png
    python -m benchmarks.speed.throughput --device cuda --record throughput_cuda

All run side by side in one process with pinned threads, on the same images, every image augmented (NFA with p 1). One
image at a time, as a loader's worker has it: "PIL", "uint8 image". Many at a time, where the batch lies: "uint8 batch",
"float batch" (normalised). Policies of timm exist for PIL images only. With --device cuda the batches lie on the GPU and
the PIL images stay on the CPU. torchvision's policies draw once for a batch, whose images are then all changed alike.
The slow flows have smaller batches, the paper's resnet_ms3 a sixteenth. The training steps (forward, backward, SGD; autocast
to bfloat16 unless the CPU only emulates that) say what share of a training an augmentation is on the same threads, with no
worker to hide it. On a GPU TF32 is off, batches have 4 times and steps 16 times the images, and tangents are still added up
on the CPU.
"""

from __future__ import annotations

import argparse
import copy
import functools
import importlib.util
import math
import random
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from PIL import Image
from timm.data import Mixup
from timm.data.auto_augment import (
    augment_and_mix_transform,
    auto_augment_transform,
    rand_augment_transform,
)
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torchvision.transforms import v2

from benchmarks.cifar.arms import RANDAUGMENT
from benchmarks.cifar.classifier import make_classifier
from benchmarks.core.common import (
    command_line,
    disturbed,
    environment,
    markdown_table,
    pin_threads,
    timed,
    write_result,
)
from timm_nfaug import CachedNFADataset, NFACache, NFAugment, create_flow, lift, pixels
from timm_nfaug._utils.files import write_atomically
from timm_nfaug.flows.architectures import ARCHITECTURES
from timm_nfaug.integration.pillow import guard_posterize
from timm_nfaug.moves.perturb import displacement, draw_noise
from train_flow.trainer import emulates_bfloat16

BASE = "timm RandAugment (PIL)"
CLAIMED = ("NFA linear (uint8 batch)", "NFA, cached tangents (uint8 batch)")
CLAIM = 0.5  # of the time of BASE, at CLAIMED_SIZES
CLAIMED_SIZES = (32, 224)
CLASSES = 10
STEP = "training step, "
FEWER = {
    "conv_p4_base": 4,
    "jet_p4": 4,
    "resnet_ms3": 16,
}  # of the slow flows a batch is so many times smaller
FEWEST = 8
Call = Callable[[], Any]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed.throughput", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 64, 224, 448])
    parser.add_argument(
        "--flows",
        nargs="+",
        choices=ARCHITECTURES,
        default=list(ARCHITECTURES),
        help="beside linear",
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--min-seconds", type=float, default=0.2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--record", metavar="NAME", default="throughput")
    parser.add_argument("--plot", type=Path, help="also draw it into this PNG")
    args = parser.parse_args(argv)
    pin_threads(args.threads)
    torch.set_num_threads(args.threads)
    torch.backends.cudnn.allow_tf32 = False  # as in flow_speed
    guard_posterize()
    flows = {name: augmentation(name) for name in dict.fromkeys(["linear", *args.flows])}
    rows = []
    for size in args.sizes:
        calls = candidates(size, flows, args.device) | training_steps(size, args.device)
        timings = timed(
            {name: call for name, (call, _) in calls.items()}, args.repeats, args.min_seconds
        )
        for name, (_, images) in calls.items():
            t = timings[name]
            rows.append({
                "size": size, "name": name, "images": images, "us_per_image": 1e6 * t["median"] / images,
                "us_min": 1e6 * t["min"] / images, "us_max": 1e6 * t["max"] / images,
                "over_randaugment": t["median"] / images / timings[BASE]["median"],
                "cpu_per_wall": t["cpu_per_wall"],
                "disturbed": args.device == "cpu" and disturbed(t, 1 if _single(name) else args.threads),
            })  # fmt: skip
        print(f"{size} px\n{table(rows, [size])}\n", flush=True)
    claim = {
        name: {
            str(r["size"]): r["over_randaugment"]
            for r in rows
            if r["name"] == name and r["size"] in CLAIMED_SIZES
        }
        for name in CLAIMED
    }
    claimed = args.device == "cpu" and args.threads == 1 and set(CLAIMED_SIZES) <= set(args.sizes)
    holds = all(v <= CLAIM for own in claim.values() for v in own.values()) if claimed else None
    write_result(args.record, {
        "benchmark": "throughput",
        "command": command_line("benchmarks.speed.throughput", argv),
        "data": "smooth random images",
        "seeds": [0],
        "environment": environment(["kornia"] if importlib.util.find_spec("kornia") else []),
        "claim": f"{' and '.join(CLAIMED)}, one CPU thread: at most {CLAIM:g} of the time of {BASE} at 32 and at 224 px",
        "settings": {"threads": args.threads, "device": args.device, "repeats": args.repeats},
        "results": {"claim_ratios": claim, "claim_holds": holds, "rows": rows},
    })  # fmt: skip
    if args.plot:  # last: a changed picture would make the commit on record another one
        write_atomically(args.plot, lambda p: draw(rows).savefig(p, format="png", dpi=95))
    return int(holds is False)


def augmentation(name: str, **network: int) -> NFAugment:
    """NFA at its full price: 32 modes, every image. The weights are random, which costs what trained ones do."""
    g = torch.Generator().manual_seed(0)
    images = smooth_levels(36 * CLASSES, 32, g)  # a class has more than its modes
    labels = torch.arange(len(images)) % CLASSES
    flow = create_flow(name, **network)
    if not flow.is_linear:
        flow.initialize(pixels.dequantize(images[:64], generator=g))
    return NFAugment.to_fit(flow.eval(), p=1.0, seed=0).fit([(images, labels)], CLASSES)


def smooth_levels(count: int, size: int, g: torch.Generator) -> Tensor:
    """uint8 (count, 3, size, size)."""
    x = F.interpolate(torch.rand(count, 3, 8, 8, generator=g), size=size, mode="bicubic")
    return (255 * x.clamp(0, 1)).to(torch.uint8)


def candidates(size: int, flows: dict[str, NFAugment], device: str) -> dict[str, tuple[Call, int]]:
    """Name to a call and the number of images it augments."""
    g = torch.Generator().manual_seed(0)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - timm draws from it
    torch.manual_seed(0)
    batch = (128 if size <= 64 else 32) * (4 if torch.device(device).type == "cuda" else 1)
    levels = smooth_levels(batch, size, g)
    image = Image.fromarray(np.ascontiguousarray(levels[0].permute(1, 2, 0).numpy()))
    mean, std = (
        torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    )
    normal = ((levels / 255 - mean) / std).to(device)
    one, levels = levels[0], levels.to(device)
    labels = torch.arange(batch, device=device) % CLASSES
    hyper = {"translate_const": int(0.45 * size), "img_mean": (124, 116, 104)}
    rand, auto = (
        rand_augment_transform(RANDAUGMENT, hyper),
        auto_augment_transform("original-mstd0.5", hyper),
    )
    augmix = augment_and_mix_transform("augmix-m3-w3", hyper)
    v2_rand, trivial = v2.RandAugment(), v2.TrivialAugmentWide()
    erasing = RandomErasing(1.0, mode="pixel", device=device)
    mixup = Mixup(mixup_alpha=1.0, num_classes=CLASSES)
    found: dict[str, tuple[Call, int]] = {
        BASE: (lambda: rand(image), 1),
        "timm AutoAugment (PIL)": (lambda: auto(image), 1),
        "timm AugMix (PIL)": (lambda: augmix(image), 1),
        "torchvision RandAugment (PIL)": (lambda: v2_rand(image), 1),
        "torchvision RandAugment (uint8 image)": (lambda: v2_rand(one), 1),
        "torchvision RandAugment (uint8 batch, all alike)": (lambda: v2_rand(levels), batch),
        "torchvision TrivialAugment (PIL)": (lambda: trivial(image), 1),
        "torchvision TrivialAugment (uint8 image)": (lambda: trivial(one), 1),
        "torchvision TrivialAugment (uint8 batch, all alike)": (lambda: trivial(levels), batch),
        "timm RandomErasing (float batch)": (lambda: erasing(normal.clone()), batch),
        "timm Mixup (float batch)": (lambda: mixup(normal.clone(), labels), batch),
    }
    if importlib.util.find_spec("kornia"):
        from kornia.augmentation.auto import RandAugment

        kornia = RandAugment(2, 9)
        unit = levels / 255
        found["kornia RandAugment (float batch)"] = (lambda: kornia(unit), batch)
    linear = flows["linear"]
    found["NFA linear (PIL)"] = (lambda: linear(image, 3), 1)
    for name, augment in flows.items():
        moved = copy.deepcopy(augment).to(device)
        count = max(FEWEST, batch // FEWER.get(name, 1))
        x, y = levels[:count], labels[:count]
        found[f"NFA {name} (uint8 batch)"] = (lambda a=moved, x=x, y=y: a(x, y), count)
        if not moved.flow.is_linear:
            found[f"NFA {name}, decode only (uint8 batch)"] = (decoding(moved, x, y), count)
            if not emulates_bfloat16(device):
                half = copy.deepcopy(moved)
                half.flow.set_net_dtype(torch.bfloat16)
                found[f"NFA {name}, bfloat16 networks (uint8 batch)"] = (
                    lambda a=half, x=x, y=y: a(x, y),
                    count,
                )
    found["NFA, cached tangents (PIL)"] = (cached(image), 1)
    found["NFA, cached tangents (uint8 batch)"] = (cached_batch(levels, labels), batch)
    normalised = copy.deepcopy(linear).to(device)
    normalised.mean, normalised.std = IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    found["NFA linear (float batch)"] = (lambda: normalised(normal, labels), batch)
    return {
        n: (call if _single(n) else _synchronised(call, device), count)
        for n, (call, count) in found.items()
    }


def _single(name: str) -> bool:
    """Whether a candidate takes one image at a time, which is on the CPU and by one thread."""
    return "PIL" in name or "image)" in name


def cached(image: Image.Image) -> Call:
    """One image of a data set with a cache of tangents, of which this row is in memory already."""
    with tempfile.TemporaryDirectory() as folder:
        dataset = CachedNFADataset(
            [(image, 3)], NFACache.build(shallow(), [(image, 3)], folder), p=1.0
        )
        dataset[0]  # which opens the files, and keeps them open
    return lambda: dataset[0]


def cached_batch(levels: Tensor, labels: Tensor) -> Call:
    """A batch from such a cache."""
    g, rows = torch.Generator().manual_seed(0), torch.arange(len(levels))
    pairs = list(zip(levels.cpu(), labels.tolist(), strict=True))
    with tempfile.TemporaryDirectory() as folder:
        cache = NFACache.build(shallow(), pairs, folder)
        cache.augment(levels, labels, rows, g, 0.5, 1.0)
    return lambda: cache.augment(levels, labels, rows, g, 0.5, 1.0)


@functools.cache
def shallow() -> NFAugment:
    """With the least of flows: once cached, all cost the same."""
    return augmentation("conv_p4_tiny", depth=1, hidden=8)


def decoding(augment: NFAugment, levels: Tensor, labels: Tensor) -> Call:
    """NFA on images whose codes are known, as they are where the same images come every epoch."""
    flow, g = augment.flow, torch.Generator().manual_seed(0)
    small = lift.down(pixels.levels_to_model(levels), flow.config.input_size[1:])
    with torch.no_grad():
        codes, _ = flow(small)

    @torch.no_grad()
    def call() -> Tensor:
        noise = draw_noise(len(codes), augment.modes, g).to(codes.device)
        moved = codes + augment.strength * displacement(
            flow, labels, noise, augment.kind, augment.modes
        )
        return lift.add(
            levels, (flow.inverse(moved) - small).clamp_(-2, 2) * 128, [0] * 3, [255] * 3
        )

    return call


def training_steps(size: int, device: str) -> dict[str, tuple[Call, int]]:
    """At 32 px a step of ResNet18 with CIFAR's stem, at 224 px one of vit_small; elsewhere none."""
    many = (
        16 if torch.device(device).type == "cuda" else 1
    )  # what small batches cost there is the launching of kernels
    makers = {32: (lambda: make_classifier("resnet18", CLASSES), "resnet18", 32 * many),
              224: (lambda: timm.create_model("vit_small_patch16_224", num_classes=CLASSES), "vit_small", 8 * many)}  # fmt: skip
    if size not in makers:
        return {}
    make, name, batch = makers[size]
    torch.manual_seed(0)
    model = make().to(device).train()
    x, y = (
        torch.randn(batch, 3, size, size, device=device),
        torch.arange(batch, device=device) % CLASSES,
    )
    x = x.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)

    dtype = torch.float32 if emulates_bfloat16(device) else torch.bfloat16

    def step() -> None:
        with torch.autocast(
            torch.device(device).type, torch.bfloat16, enabled=dtype == torch.bfloat16
        ):
            loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return {
        f"{STEP}{name}, {str(dtype).removeprefix('torch.')}": (_synchronised(step, device), batch)
    }


def _synchronised(call: Call, device: str) -> Call:
    if torch.device(device).type != "cuda":
        return call

    def whole() -> None:
        call()
        torch.cuda.synchronize()

    return whole


def draw(rows: list[dict[str, Any]]) -> Figure:
    """A line for each candidate, a point for each image size; training steps are left out."""
    rows = [r for r in rows if not r["name"].startswith(STEP)]
    sizes = sorted({r["size"] for r in rows})
    dearness = {
        name: statistics.fmean(math.log(r["us_per_image"]) for r in rows if r["name"] == name)
        for name in names_of(rows)
    }
    names = sorted(dearness, key=dearness.get, reverse=True)
    figure = Figure((8, 0.9 + 0.27 * len(names)), layout="constrained")
    axis = figure.subplots()
    for i, size in enumerate(sizes):
        own = {r["name"]: r["us_per_image"] for r in rows if r["size"] == size}
        axis.plot(
            [own[n] for n in names],
            range(len(names)),
            "o",
            color=f"C{i}",
            markersize=5,
            label=f"{size} px",
        )
    axis.set_yticks(range(len(names)), names, fontsize=8)
    for label in axis.get_yticklabels():
        label.set_fontweight("bold" if label.get_text().startswith("NFA") else "normal")
    axis.set_xscale("log")
    axis.grid(axis="x", color="0.9")
    axis.set_axisbelow(True)
    axis.set_xlabel("µs an image (less is better)")
    axis.legend(fontsize=8)
    return figure


def names_of(rows: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(r["name"] for r in rows))


def table(rows: list[dict[str, Any]], sizes: list[int]) -> str:
    """Microseconds an image (over timm's RandAugment), a column for each size; then the share of each training step."""
    cost = {(r["name"], r["size"]): r["us_per_image"] for r in rows}
    over = {(r["name"], r["size"]): r["over_randaugment"] for r in rows}
    names = names_of([r for r in rows if r["size"] in sizes])
    steps = {size: name for name, size in cost if name.startswith(STEP) and size in sizes}
    models = {size: name.removeprefix(STEP).partition(",")[0] for size, name in steps.items()}
    head = [
        "µs an image (over timm RandAugment)",
        *(f"{s} px" for s in sizes),
        *(f"of a {m} step, {s} px" for s, m in models.items()),
    ]
    cells = [head]
    for name in names:
        own = [
            f"{_rounded(cost[name, s])} ({over[name, s]:.2f})" if (name, s) in cost else ""
            for s in sizes
        ]
        shares = [
            _share(cost[name, s] / cost[step, s]) if (name, s) in cost else ""
            for s, step in steps.items()
        ]
        cells.append([name, *own, *([""] * len(steps) if name.startswith(STEP) else shares)])
    return markdown_table(cells)


def _share(part: float) -> str:
    return f"{part:.{0 if part >= 0.1 else 2}%}"


def _rounded(microseconds: float) -> str:
    return f"{microseconds:.{0 if microseconds >= 10 else 1}f}"


if __name__ == "__main__":
    sys.exit(main())
