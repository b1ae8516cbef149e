"""What an augmentation costs: microseconds an image of NFA beside timm's, torchvision's and kornia's.

Claim: on one CPU thread NFA with the `linear` flow and NFA from a cache of tangents, on batches of
uint8 images, each take at most half the time of timm's RandAugment at 32 and at 224 px.

    python -m benchmarks.speed.throughput --plot docs/figures/throughput.png
    python -m benchmarks.speed.throughput --device cuda --record throughput_cuda

Data: smooth random images, one seed. All candidates (`benchmarks.speed.augmentations`) run side by
side in one process with pinned threads, on the same images, every image augmented (NFA with p 1).
The slow flows have smaller batches, the paper's resnet_ms3 a sixteenth. The training steps
(forward, backward, SGD; autocast to bfloat16 unless the CPU emulates that) say what share of a
training an augmentation is on the same threads, with no worker to hide it.

With --device cuda the batches lie on the GPU and PIL images stay on the CPU, TF32 is off, batches
have 4 times and steps 16 times the images, and tangents are still added up on the CPU.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.core.charts import BLUE, VERMILION, chart, plain, render
from benchmarks.core.common import (
    command_line,
    disturbed,
    environment,
    markdown_table,
    pin_threads,
    timed,
    write_result,
)
from benchmarks.speed.augmentations import (
    BASE,
    STEP,
    augmentation,
    candidates,
    takes_one_image,
    training_steps,
)
from timm_nfaug import NFAugment
from timm_nfaug._utils.files import write_atomically
from timm_nfaug.flows.architectures import ARCHITECTURES
from timm_nfaug.integration.pillow import guard_posterize

CLAIMED = ("NFA linear (uint8 batch)", "NFA, cached tangents (uint8 batch)")
CLAIM = 0.5  # of the time of BASE, at CLAIMED_SIZES
CLAIMED_SIZES = (32, 224)
DRAWN = {  # candidates of the chart, and what it calls them: what a training would take
    "NFA, cached tangents (uint8 batch)": "NFA, cached deep flow, batches",
    "NFA linear (uint8 batch)": "NFA, batches",
    "NFA linear (PIL)": "NFA, single images",
    "NFA conv_p4_tiny, bfloat16 networks (uint8 batch)": "NFA, deep flow conv_p4_tiny, batches",
    "NFA conv_p4_small, bfloat16 networks (uint8 batch)": "NFA, deep flow conv_p4_small, batches",
    "NFA conv_p4_small (PIL)": "NFA, deep flow conv_p4_small, single images",
    "timm RandomErasing (float batch)": "RandomErasing (timm), batches",
    "torchvision TrivialAugment (PIL)": "TrivialAugment (torchvision), single images",
    BASE: "RandAugment (timm), single images",
    "kornia RandAugment (float batch)": "RandAugment (kornia), batches",
    "timm AugMix (PIL)": "AugMix (timm), single images",
}


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed.throughput", description=__doc__.split("\n")[0]
    )
    add = parser.add_argument
    every = list(ARCHITECTURES)
    add("--sizes", type=int, nargs="+", default=[32, 64, 224, 448])
    add("--flows", nargs="+", choices=every, default=every, help="beside linear")
    add("--threads", type=int, default=1)
    add("--repeats", type=int, default=5)
    add("--min-seconds", type=float, default=0.2)
    add("--device", default="cpu")
    add("--record", metavar="NAME", default="throughput")
    add("--plot", type=Path, help="also draw it into this PNG")
    return parser.parse_args(argv)


def measure(
    size: int, flows: dict[str, NFAugment], args: argparse.Namespace
) -> list[dict[str, Any]]:
    """Returns a row for each candidate at one image size."""
    calls = candidates(size, flows, args.device) | training_steps(size, args.device)
    functions = {name: call for name, (call, _) in calls.items()}
    timings = timed(functions, args.repeats, args.min_seconds)
    rows = []
    for name, (_, images) in calls.items():
        t, threads = timings[name], 1 if takes_one_image(name) else args.threads
        rows.append(
            {
                "size": size,
                "name": name,
                "images": images,
                "us_per_image": 1e6 * t["median"] / images,
                "us_min": 1e6 * t["min"] / images,
                "us_max": 1e6 * t["max"] / images,
                "over_randaugment": t["median"] / images / timings[BASE]["median"],
                "cpu_per_wall": t["cpu_per_wall"],
                "disturbed": args.device == "cpu" and disturbed(t, threads),
            }
        )
    return rows


def judge(rows: list[dict[str, Any]], args: argparse.Namespace) -> dict[str, Any]:
    """Returns the ratios that are claimed, and whether they hold; None where the claim was not measured."""
    ratios: dict[str, dict[str, float]] = {name: {} for name in CLAIMED}
    for r in rows:
        if r["name"] in ratios and r["size"] in CLAIMED_SIZES:
            ratios[r["name"]][str(r["size"])] = r["over_randaugment"]
    measured = args.device == "cpu" and args.threads == 1 and set(CLAIMED_SIZES) <= set(args.sizes)
    met = all(v <= CLAIM for own in ratios.values() for v in own.values())
    return {"claim_ratios": ratios, "claim_holds": met if measured else None}


def record(args: argparse.Namespace, argv: list[str] | None, results: dict[str, Any]) -> None:
    arms = " and ".join(CLAIMED)
    claim = f"at most {CLAIM:g} of the time of {BASE} at 32 and at 224 px"
    write_result(
        args.record,
        {
            "benchmark": "throughput",
            "command": command_line("benchmarks.speed.throughput", argv),
            "data": "smooth random images",
            "seeds": [0],
            "environment": environment(["kornia"] if importlib.util.find_spec("kornia") else []),
            "claim": f"{arms}, one CPU thread: {claim}",
            "settings": {k: getattr(args, k) for k in ("threads", "device", "repeats")},
            "results": results,
        },
    )


def draw(rows: list[dict[str, Any]], sizes: Sequence[int] = CLAIMED_SIZES) -> Figure:
    """Draws a line for each of DRAWN that was timed, cheapest first, a panel for each image size."""
    cost = {(r["name"], r["size"]): r["us_per_image"] for r in rows}
    sizes = [size for size in sizes if (BASE, size) in cost]
    names = [n for n in DRAWN if all((n, size) in cost for size in sizes)]
    names.sort(key=lambda n: sum(math.log(cost[n, size]) for size in sizes), reverse=True)
    figure = chart(1.4 + 0.26 * len(names), "What does an augmentation cost?")
    axes = figure.subplots(1, len(sizes), sharex=True, sharey=True, squeeze=False)[0]
    for axis, size in zip(axes, sizes, strict=True):
        for i, name in enumerate(names):
            draw_cost(axis, i, cost[name, size], BLUE if name.startswith("NFA") else VERMILION)
        axis.set(title=f"images of {size} px", xscale="log")
        axis.grid(axis="x")
        axis.margins(x=0.25)  # for the numbers
        plain(axis.xaxis)
    axes[0].set_yticks(range(len(names)), [DRAWN[n] for n in names])
    figure.supxlabel("microseconds per image on one CPU thread (left is better)", fontsize="medium")
    return figure


def draw_cost(axis: Axes, row: int, microseconds: float, colour: str) -> None:
    axis.plot(microseconds, row, "o", color=colour, markersize=6)
    beside = {"xytext": (7, 0), "textcoords": "offset points", "va": "center"}
    axis.annotate(f"{microseconds:,.0f}", (microseconds, row), **beside)


def names_of(rows: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(r["name"] for r in rows))


def table(rows: list[dict[str, Any]], sizes: list[int]) -> str:
    """Returns microseconds an image (over timm's RandAugment), a column a size; then shares of the training steps."""
    cost = {(r["name"], r["size"]): r["us_per_image"] for r in rows}
    over = {(r["name"], r["size"]): r["over_randaugment"] for r in rows}
    steps = {size: name for name, size in cost if name.startswith(STEP) and size in sizes}
    models = {size: name.removeprefix(STEP).partition(",")[0] for size, name in steps.items()}
    head = ["µs an image (over timm RandAugment)", *(f"{s} px" for s in sizes)]
    cells = [[*head, *(f"of a {m} step, {s} px" for s, m in models.items())]]
    for name in names_of([r for r in rows if r["size"] in sizes]):
        key = {s: (name, s) for s in sizes}
        own = [f"{_rounded(cost[k])} ({over[k]:.2f})" if k in cost else "" for k in key.values()]
        shares = [
            _share(cost[key[s]] / cost[step, s]) if key[s] in cost else ""
            for s, step in steps.items()
        ]
        cells.append([name, *own, *([""] * len(steps) if name.startswith(STEP) else shares)])
    return markdown_table(cells)


def _share(part: float) -> str:
    return f"{part:.{0 if part >= 0.1 else 2}%}"


def _rounded(microseconds: float) -> str:
    return f"{microseconds:.{0 if microseconds >= 10 else 1}f}"


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    pin_threads(args.threads)
    torch.set_num_threads(args.threads)
    torch.backends.cudnn.allow_tf32 = False  # as in flow_speed
    guard_posterize()
    flows = {name: augmentation(name) for name in dict.fromkeys(["linear", *args.flows])}
    rows = []
    for size in args.sizes:
        rows += measure(size, flows, args)
        print(f"{size} px\n{table(rows, [size])}\n", flush=True)
    results = judge(rows, args) | {"rows": rows}
    record(args, argv, results)
    if args.plot:  # last: a changed picture would make the commit on record another one
        picture = render(lambda: draw(rows, args.sizes))
        write_atomically(args.plot, lambda p: picture.save(p, format="PNG", optimize=True))
    return int(results["claim_holds"] is False)


if __name__ == "__main__":
    sys.exit(main())
