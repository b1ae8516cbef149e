"""Depth and width of the convolutional flows: bits/dim, and what their modes do, against images a second.

    python -m benchmarks.analysis.flow_pareto --data-dir DIR --plot docs/figures/flow_pareto.png

Claim: `conv_p4_tiny`, `conv_p4_small` and `conv_p4_base` lie on the front: no other depth and width
has both fewer bits/dim and more images a second. Data: CIFAR-10, training and validation
images; one seed.

Every point is trained from the same seed on the same images in the same order for the same number
of steps, without labels; its training time is on record, for steps of a larger network cost more.
Images a second are of encoding and decoding, as NFA asks for, in float32. "Same for all images" is
the share of the change by class modes that all images of a class have in common
(`benchmarks.analysis.linearity`): what a flow does beyond its linear special case is the rest.
`linear` is the control.

Trainings live under --runs and are resumed from there.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from benchmarks.analysis.linearity import fitted, shares
from benchmarks.core.charts import COLOURS, chart, plain, render
from benchmarks.core.common import (
    command_line,
    disturbed,
    environment,
    markdown_table,
    pin_threads,
    require_val,
    timed,
    write_result,
)
from timm_nfaug import ConditionalFlow, create_flow, pixels
from timm_nfaug._utils.files import write_atomically
from timm_nfaug.flows.architectures import ARCHITECTURES
from train_flow.config import TrainConfig, load_config
from train_flow.data import Images, load_data
from train_flow.trainer import Trainer

NAMED = {  # (depth, hidden) of the architectures that have a name
    (network["depth"], network["hidden"]): name
    for name, (_, network, _) in ARCHITECTURES.items()
    if name.startswith("conv_p4")
}
CLAIMED = ("conv_p4_tiny", "conv_p4_small", "conv_p4_base")
BATCH = 64


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.analysis.flow_pareto", description=__doc__.split("\n")[0]
    )
    add = parser.add_argument
    add("--data-dir", required=True)
    config = "of the trainings, and of the data"
    add("--config", default="conv_p4_small.cifar10_unlabelled", help=config)
    override = "override a setting in every point"
    add("--set", action="append", default=[], metavar="KEY=VALUE", help=override)
    add("--depths", type=int, nargs="+", default=[3, 6, 12, 24])
    add("--hidden", type=int, nargs="+", default=[32, 64, 128, 256])
    add("--steps", type=int, default=400)
    add("--strength", type=float, default=0.5)
    add("--modes", type=int, default=32)
    add("--per-class", type=int, default=16, help="images whose change is looked at")
    add("--threads", type=int, default=2)
    add("--repeats", type=int, default=5)
    add("--min-seconds", type=float, default=0.3)
    add("--runs", type=Path, default=Path("runs/pareto"))
    add("--device", default="cpu")
    add("--plot", type=Path, help="also draw it into this PNG")
    return parser.parse_args(argv)


def train(
    args: argparse.Namespace, depth: int, hidden: int, images: Images, val: Images
) -> tuple[ConditionalFlow, dict[str, Any]]:
    """Trains one point, or resumes it; returns its flow and what is on record of the training."""
    network = {"depth": depth, "hidden": hidden}
    settings = [*args.set, f"steps={args.steps}", f"network={network}"]
    out = args.runs / f"{depth}x{hidden}-{args.steps}"
    config = load_config(args.config, settings)
    trainer = Trainer(config, images, val, out, args.device, resume=True)
    trainer.run()
    bits = trainer.finish()["bits_per_dim"]
    name = NAMED.get((depth, hidden), f"{depth} x {hidden}")
    print(f"{name}: {bits:.3f} bits/dim, {trainer.seconds:.0f} s", flush=True)
    flow = ConditionalFlow.from_pretrained(out / "flow").to(args.device).eval()
    return flow, {
        "name": name,
        **network,
        "bits_per_dim": bits,
        "training_seconds": trainer.seconds,
    }


def measure(
    args: argparse.Namespace, images: Images, val: Images
) -> tuple[list[dict[str, Any]], list[str]]:
    """Trains and measures all points; returns their rows, and the flows whose timing something else disturbed."""
    linear = create_flow("linear", input_size=tuple(val.levels.shape[1:]))
    none = {"depth": 0, "hidden": 0, "bits_per_dim": None, "training_seconds": 0.0}
    points = [(linear.to(args.device), {"name": "linear", **none})]
    unlabelled = images.without_labels(), val.without_labels()
    points += [train(args, d, h, *unlabelled) for d in args.depths for h in args.hidden]
    flows = {row["name"]: flow for flow, row in points}
    speeds, busy = images_per_second(flows, val, args)
    eigen = fitted(linear.cpu(), val, args.modes).prior.modes
    looked_at = argparse.Namespace(seed=0, images=args.per_class, draws=4, modes=args.modes)
    rows = []
    for name, (flow, row) in zip(flows, points, strict=True):
        flow = flow.cpu()  # where the images are
        row["parameters"] = sum(p.numel() for p in flow.network.parameters())
        row["images_per_s"] = speeds[name]
        row |= shares(fitted(flow, val, args.modes), val, eigen, args.strength, looked_at)
        rows.append(row)
    for row in rows:
        row["on_front"] = on_front(row, rows)
    return rows, busy


@torch.no_grad()
def images_per_second(
    flows: dict[str, ConditionalFlow], data: Images, args: argparse.Namespace
) -> tuple[dict[str, float], list[str]]:
    """Times encoding and decoding, side by side in one run; also returns the flows whose timing something disturbed."""
    x = pixels.levels_to_model(data.levels[:BATCH]).to(args.device)

    def call(flow: ConditionalFlow):
        return lambda: flow.inverse(flow(x)[0]).sum().item()  # which waits for a GPU

    calls = {name: call(flow) for name, flow in flows.items()}
    timings = timed(calls, args.repeats, args.min_seconds)
    deep = [name for name in flows if args.device == "cpu" and name != "linear"]
    busy = [name for name in deep if disturbed(timings[name], args.threads)]
    return {name: len(x) / t["median"] for name, t in timings.items()}, busy


def on_front(row: dict[str, Any], rows: list[dict[str, Any]]) -> bool | None:
    """Whether no other row is better in both bits/dim and images a second; None without bits/dim."""
    if row["bits_per_dim"] is None:
        return None
    others = (r for r in rows if r["bits_per_dim"] is not None)
    return not any(
        r["bits_per_dim"] < row["bits_per_dim"] and r["images_per_s"] > row["images_per_s"]
        for r in others
    )


def table(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Returns cells, the quickest first."""
    head = ["depth x width", "bits/dim", "images/s", "parameters", "training, s"]
    cells = [[*head, "same for all images", "on the front"]]
    for r in sorted(rows, key=lambda r: -r["images_per_s"]):
        size = f" ({r['depth']} x {r['hidden']})" if r["name"] in NAMED.values() else ""
        bits = "" if r["bits_per_dim"] is None else f"{r['bits_per_dim']:.3f}"
        cost = [f"{r['parameters'] / 1e6:.2f} M", f"{r['training_seconds']:.0f}"]
        front = {True: "yes", False: "no", None: ""}[r["on_front"]]
        row = [r["name"] + size, bits, f"{r['images_per_s']:,.0f}", *cost]
        cells.append([*row, f"{100 * r['same_for_all']:.0f}%", front])
    return cells


def draw(rows: list[dict[str, Any]]) -> Figure:
    """Draws bits/dim against images a second: a line for each depth, a point for each width."""
    known = [r for r in rows if r["bits_per_dim"] is not None]
    figure = chart(4.2, "Should a flow be deep or wide?")
    axis = figure.subplots()
    depths = sorted({r["depth"] for r in known})
    for depth, colour, marker in zip(depths, COLOURS, "os^D", strict=False):
        below = depth == depths[-1]  # where no other line is
        where = {"xytext": (7, -11) if below else (-6, 6), "ha": "left" if below else "right"}
        own = sorted((r for r in known if r["depth"] == depth), key=lambda r: r["hidden"])
        points = [(r["images_per_s"], r["bits_per_dim"]) for r in own]
        axis.plot(*zip(*points, strict=True), marker + "-", color=colour, label=f"depth {depth}")
        for r, point in zip(own, points, strict=True):
            axis.annotate(_width(r), point, textcoords="offset points", color=colour, **where)
    axis.set_xscale("log")
    plain(axis.xaxis)
    axis.grid()
    axis.margins(0.1)  # for the names
    axis.set_xlabel("images per second, encoded and decoded (right is better)")
    axis.set_ylabel("bits/dim on validation images (lower is better)")
    axis.legend(loc="upper left", title="number: width")
    return figure


def _width(row: dict[str, Any]) -> str:
    named = row["name"] in NAMED.values()
    return f"{row['hidden']} ({row['name']})" if named else str(row["hidden"])


def record(
    args: argparse.Namespace,
    argv: list[str] | None,
    c: TrainConfig,
    sizes: str,
    results: dict,
    busy: list[str],
) -> None:
    kept = ("config", "steps", "strength", "modes", "per_class", "threads", "device")
    write_result(
        "flow_pareto",
        {
            "benchmark": "flow_pareto",
            "claim": f"{', '.join(CLAIMED)} lie on the front of bits/dim and images a second",
            "command": command_line("benchmarks.analysis.flow_pareto", argv),
            "data": f"{c.data_name}: {sizes}",
            "seeds": [c.seed],
            "environment": environment(),
            "settings": {k: getattr(args, k) for k in kept} | {"disturbed": busy},
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
    c.data_name = c.data_name or images.name
    rows, busy = measure(args, images, require_val(val, args.data_dir))
    named = [row["on_front"] for row in rows if row["name"] in CLAIMED]
    results = {"rows": rows, "claim_met": all(named) if len(named) == len(CLAIMED) else None}
    sizes = f"{len(images)} training images, {len(val)} validation images"
    record(args, argv, c, sizes, results, busy)
    print(markdown_table(table(rows)))
    if args.plot:  # last: a changed picture would make the commit on record another one
        picture = render(lambda: draw(rows))
        write_atomically(args.plot, lambda p: picture.save(p, format="PNG", optimize=True))
    return 0


if __name__ == "__main__":
    sys.exit(main())
