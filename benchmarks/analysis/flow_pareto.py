"""Depth and width of the convolutional flows: bits/dim, and what their modes do, against images a second.

    python -m benchmarks.analysis.flow_pareto --data-dir DIR --plot docs/figures/flow_pareto.png

Claim: `conv_p4_tiny`, `conv_p4_small` and `conv_p4_base` lie on the front: no other depth and width has both fewer bits/dim and
more images a second.

Every point is trained from the same seed on the same images in the same order for the same number of steps, without labels;
its training time is on record, for steps of a larger network cost more. Images a second are of encoding and decoding, as NFA
asks for, in float32. "Same for all images" is the share of the change by class modes that all images of a class have in
common (`benchmarks.analysis.linearity`): what a flow does beyond its linear special case is the rest. `linear` is the control.

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
from benchmarks.core.common import (
    command_line,
    disturbed,
    environment,
    markdown_table,
    pin_threads,
    timed,
    write_result,
)
from timm_nfaug import ConditionalFlow, create_flow, pixels
from timm_nfaug._utils.files import write_atomically
from timm_nfaug.flows.architectures import ARCHITECTURES
from train_flow.config import load_config
from train_flow.data import Images, load_data
from train_flow.trainer import Trainer

NAMED = {  # (depth, hidden) of the architectures that have a name
    (network["depth"], network["hidden"]): name
    for name, (_, network, _) in ARCHITECTURES.items()
    if name.startswith("conv_p4")
}
CLAIMED = ("conv_p4_tiny", "conv_p4_small", "conv_p4_base")
BATCH = 64


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.analysis.flow_pareto", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--data-dir", required=True)
    parser.add_argument(
        "--config",
        default="conv_p4_small.cifar10_jpeg_unlabelled",
        help="of the trainings, and of the data",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a setting in every point",
    )
    parser.add_argument("--depths", type=int, nargs="+", default=[3, 6, 12, 24])
    parser.add_argument("--hidden", type=int, nargs="+", default=[32, 64, 128, 256])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--strength", type=float, default=0.5)
    parser.add_argument("--modes", type=int, default=32)
    parser.add_argument(
        "--per-class", type=int, default=16, help="images whose change is looked at"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--min-seconds", type=float, default=0.3)
    parser.add_argument("--runs", type=Path, default=Path("runs/pareto"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--plot", type=Path, help="also draw it into this PNG")
    args = parser.parse_args(argv)
    if args.device == "cpu" and argv is None:
        pin_threads(args.threads)
    torch.set_num_threads(args.threads)
    c = load_config(args.config, args.set)
    train, val = load_data(
        c.data, args.data_dir, c.image_size, c.in_chans, c.val_fraction, c.skip_unreadable
    )
    if val is None:
        raise SystemExit(
            f"{args.data_dir} has no validation images; expected train/ and val/ inside"
        )
    linear = create_flow("linear", input_size=tuple(val.levels.shape[1:]))
    flows = {"linear": linear.to(args.device)}
    rows = [
        {"name": "linear", "depth": 0, "hidden": 0, "bits_per_dim": None, "training_seconds": 0.0}
    ]
    for depth in args.depths:
        for hidden in args.hidden:
            network = {"depth": depth, "hidden": hidden}
            settings = [f"steps={args.steps}", f"network={network}"]
            trainer = Trainer(
                load_config(args.config, [*args.set, *settings]), train.without_labels(), val.without_labels(),
                args.runs / f"{depth}x{hidden}-{args.steps}", args.device, resume=True,
            )  # fmt: skip
            trainer.run()
            report = trainer.finish()
            name = NAMED.get((depth, hidden), f"{depth} x {hidden}")
            flows[name] = (
                ConditionalFlow.from_pretrained(trainer.out / "flow").to(args.device).eval()
            )
            measured = {"bits_per_dim": report["bits_per_dim"], "training_seconds": trainer.seconds}
            rows.append({"name": name, **network, **measured})
            print(
                f"{name}: {report['bits_per_dim']:.3f} bits/dim, {trainer.seconds:.0f} s",
                flush=True,
            )
    speeds, busy = images_per_second(flows, val, args)
    eigen = fitted(linear.cpu(), val, args.modes).prior.modes
    looked_at = argparse.Namespace(seed=0, images=args.per_class, draws=4, modes=args.modes)
    for row in rows:
        flow = flows[row["name"]].cpu()  # where the images are
        row["parameters"] = sum(p.numel() for p in flow.network.parameters())
        row["images_per_s"] = speeds[row["name"]]
        row |= shares(fitted(flow, val, args.modes), val, eigen, args.strength, looked_at)
    for row in rows:
        row["on_front"] = on_front(row, rows)
    named = [row for row in rows if row["name"] in CLAIMED]
    write_result("flow_pareto", {
        "benchmark": "flow_pareto",
        "claim": f"{', '.join(CLAIMED)} lie on the front of bits/dim and images a second",
        "command": command_line("benchmarks.analysis.flow_pareto", argv),
        "data": f"{c.data_name or c.data}: {len(train)} training images, {len(val)} validation images",
        "seeds": [c.seed],
        "environment": environment(),
        "settings": {k: getattr(args, k) for k in ("config", "steps", "strength", "modes", "per_class", "threads", "device")}
        | {"disturbed": busy},
        "results": {"rows": rows, "claim_met": all(row["on_front"] for row in named) if len(named) == len(CLAIMED) else None},
    })  # fmt: skip
    print(markdown_table(table(rows)))
    if args.plot:  # last: a changed picture would make the commit on record another one
        write_atomically(args.plot, lambda p: draw(rows).savefig(p, format="png", dpi=110))
    return 0


@torch.no_grad()
def images_per_second(
    flows: dict[str, ConditionalFlow], data: Images, args: argparse.Namespace
) -> tuple[dict, list[str]]:
    """Of encoding and decoding, side by side in one run, and the flows whose timing something else disturbed."""
    x = pixels.levels_to_model(data.levels[:BATCH]).to(args.device)

    def call(flow: ConditionalFlow):
        return lambda: flow.inverse(flow(x)[0]).sum().item()  # which waits for a GPU

    timings = timed(
        {name: call(flow) for name, flow in flows.items()}, args.repeats, args.min_seconds
    )
    busy = [
        name
        for name, t in timings.items()
        if args.device == "cpu" and name != "linear" and disturbed(t, args.threads)
    ]
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
    """Cells, the quickest first."""
    head = [
        "depth x width",
        "bits/dim",
        "images/s",
        "parameters",
        "training, s",
        "same for all images",
        "on the front",
    ]
    cells = [head]
    for r in sorted(rows, key=lambda r: -r["images_per_s"]):
        size = f" ({r['depth']} x {r['hidden']})" if r["name"] in NAMED.values() else ""
        cells.append([
            r["name"] + size, "" if r["bits_per_dim"] is None else f"{r['bits_per_dim']:.3f}", f"{r['images_per_s']:,.0f}",
            f"{r['parameters'] / 1e6:.2f} M", f"{r['training_seconds']:.0f}", f"{100 * r['same_for_all']:.0f}%",
            {True: "yes", False: "no", None: ""}[r["on_front"]],
        ])  # fmt: skip
    return cells


def draw(rows: list[dict[str, Any]]) -> Figure:
    """Bits/dim against images a second, the front as a line."""
    points = sorted(
        (r for r in rows if r["bits_per_dim"] is not None), key=lambda r: r["images_per_s"]
    )
    figure = Figure((7, 4.2), layout="constrained")
    axis = figure.subplots()
    front = [r for r in points if r["on_front"]]
    axis.plot(
        [r["images_per_s"] for r in front],
        [r["bits_per_dim"] for r in front],
        color="C0",
        linewidth=1,
        zorder=1,
    )
    for r in points:
        colour = "C0" if r["on_front"] else "0.6"
        axis.scatter(
            r["images_per_s"],
            r["bits_per_dim"],
            color=colour,
            zorder=2,
            s=40 if r["name"] in NAMED.values() else 16,
        )
        axis.annotate(
            r["name"],
            (r["images_per_s"], r["bits_per_dim"]),
            (5, 4),
            textcoords="offset points",
            fontsize=8,
        )
    axis.set_xscale("log")
    axis.margins(x=0.12)  # for the names
    axis.set_xlabel("images a second, encoded and decoded")
    axis.set_ylabel("bits/dim on the validation images")
    return figure


if __name__ == "__main__":
    sys.exit(main())
