"""Measures every ratio that the README and the docs claim again, at small size, in minutes: claim, figure, verdict.

    python -m benchmarks.claims --data-dir DIR     # all; DIR is an ImageFolder tree of CIFAR-10's classes
    python -m benchmarks.claims --skip tangents rivals
    python -m benchmarks.claims --only augmentation memory

Ends with 1 where a figure falls short, and where one that was asked for could not be measured. What is measured in full, with
its spread, is in benchmarks/results; this is to see on one's own machine what holds there. A busy machine makes figures fall
short. Accuracy takes trainings: that claim is read from the runs on record.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import torch

from benchmarks.analysis import tangents
from benchmarks.cifar import comparison
from benchmarks.core import records
from benchmarks.core.common import ROOT, pin_threads, pinned, timed
from benchmarks.speed import flow_memory, flow_speed, throughput
from timm_nfaug import ConditionalFlow
from timm_nfaug.integration.pillow import guard_posterize
from train_flow.data import load_data

Claim = tuple[str, float, str, float]  # what, figure, "at most" or "at least", limit

ONE_BY_ONE = ("NFA linear (PIL)", "NFA, cached tangents (PIL)")
# "one to two and a half times", "about as much": what rounds to that, and to three times on other machines
ONE_BY_ONE_LIMITS = {32: 3.5, 224: 1.5}


def augmentation() -> Iterator[Claim]:
    """On one thread."""
    guard_posterize()
    flows = {
        "linear": throughput.augmentation("linear")
    }  # of the others only tangents are claimed, which bring their own
    for size in throughput.CLAIMED_SIZES:
        calls = throughput.candidates(size, flows, "cpu")
        wanted = {name: calls[name] for name in (throughput.BASE, *throughput.CLAIMED, *ONE_BY_ONE)}
        times = timed({name: call for name, (call, _) in wanted.items()}, 5, 0.2)
        base, *own = (times[name]["median"] / images for name, (_, images) in wanted.items())
        limits = [throughput.CLAIM] * len(throughput.CLAIMED) + [ONE_BY_ONE_LIMITS[size]] * len(
            ONE_BY_ONE
        )
        for name, cost, limit in zip(throughput.CLAIMED + ONE_BY_ONE, own, limits, strict=True):
            yield (
                f"{name} over {throughput.BASE}, us an image, {size} px",
                cost / base,
                "at most",
                limit,
            )


def decoding() -> Iterator[Claim]:
    """On two threads."""
    size, name = 32, "conv_p4_tiny"
    own = throughput.candidates(
        size,
        {"linear": throughput.augmentation("linear"), name: throughput.augmentation(name)},
        "cpu",
    )
    steps = throughput.training_steps(size, "cpu")
    calls = {"own": own[f"NFA {name}, decode only (uint8 batch)"], **steps}
    times = timed({k: call for k, (call, _) in calls.items()}, 5, 0.3)
    decode, step = (times[k]["median"] / images for k, (_, images) in calls.items())
    yield (
        f"NFA {name}, decode only, over a {next(iter(steps))}, an image",
        decode / step,
        "at most",
        0.1,
    )


def _measured(*rivals: str) -> dict[str, dict]:
    arguments = argparse.Namespace(
        threads=2, batch=64, repeats=3, min_seconds=0.2, flows=["conv_p4_small", "conv_p4_tiny"], device="cpu", seed=0,
        compile=False, rivals=rivals,
    )  # fmt: skip
    with torch.no_grad():
        return flow_speed.measure(arguments)[0]["flows"]


def flows() -> Iterator[Claim]:
    """On two threads."""
    rows = _measured()
    for name, share in (("conv_p4_small", 0.75), ("conv_p4_tiny", 0.6)):
        for direction in flow_speed.DIRECTIONS:
            yield (
                f"{name}, {direction}, share of the convolution peak",
                rows[name][direction]["share_of_peak"],
                "at least",
                share,
            )


def rivals() -> Iterator[Claim]:
    """On two threads."""
    rows = _measured("documented", "equal")
    for direction in flow_speed.DIRECTIONS:
        over = {
            name: rows[name][direction]["speedup_over"]
            for name in ("conv_p4_small", "conv_p4_tiny")
        }
        ratio = over[flow_speed.CLAIMED_FLOW][flow_speed.BASELINE]["median"]
        yield (
            f"conv_p4_small over {flow_speed.BASELINE}, {direction}, images/s",
            ratio,
            "at least",
            flow_speed.CLAIMED_SPEEDUP,
        )
        for name in over:
            for opponent in flow_speed.OPPONENTS:
                ratio = over[name][f"{opponent} of {name}"]["median"]
                yield (
                    f"{name} over {opponent} of equal FLOPs, {direction}, images/s",
                    ratio,
                    "at least",
                    3.0,
                )


def accuracy() -> Iterator[Claim]:
    """Read, not measured: runs that differ in nothing but tangents for the exact flow. The limit is their 95% interval."""
    runs = [
        run for run in records.read(records.suite_file("cifar_resnet18")) if run["split"] == "test"
    ]
    for name, tangent, exact in comparison.tangent_pairs(runs):
        gain, half, _, seeds = records.paired(tangent, exact)
        if seeds >= records.FEWEST:
            yield (
                f"{name}: top-1 off that of the exact flow, points, {seeds} seeds on record",
                abs(gain),
                "at most",
                half,
            )


def errors(data_dir: str) -> Iterator[Claim]:
    """On two threads."""
    flow = ConditionalFlow.from_pretrained("conv_p4_small.cifar10_jpeg").eval()
    _, data = load_data("folder", data_dir, image_size=32)
    if data is None:
        raise SystemExit(
            f"{data_dir} has no val/ folder beside train/; tangents are judged on its images"
        )
    some = data.subset(torch.arange(128) * len(data) // 128)
    for row in tangents.errors(flow, some, 0.5, 1.0, argparse.Namespace(modes=[32], seed=0)):
        what = f"tangents against conv_p4_small, {tangents.DEFAULT}, median error of the change"
        yield what, row["median"], "at most", tangents.LIMIT


def memory() -> Iterator[Claim]:
    """On two threads, a process each point."""
    flags = ["--repeats", "1", "--batch-size", "256"]
    mb = {
        depth: flow_memory.run_point(depth, 1, flags, flow_memory.RETURN_MEMORY)["mb"]
        for depth in (6, 12)
    }
    yield (
        "reversible training step, memory at depth 12 over depth 6",
        mb[12] / mb[6],
        "at most",
        flow_memory.LIMIT,
    )


# name: (threads, measure, packages it needs)
GROUPS: dict[str, tuple[int, Callable[..., Iterator[Claim]], tuple[str, ...]]] = {
    "augmentation": (1, augmentation, ()),
    "decoding": (2, decoding, ()),
    "flows": (2, flows, ()),
    "rivals": (2, rivals, ("normflows", "FrEIA")),
    "memory": (2, memory, ()),
    "tangents": (2, errors, ()),
    "accuracy": (1, accuracy, ()),
}


def holds(figure: float, sense: str, limit: float) -> bool:
    return figure <= limit if sense == "at most" else figure >= limit


def lacking(name: str, data_dir: str | None) -> str:
    """Why a group cannot be measured and what helps; empty where it can."""
    packages = [package for package in GROUPS[name][2] if not importlib.util.find_spec(package)]
    if packages:
        return f"{' and '.join(packages)} not installed: pip install '.[bench]'"
    return (
        "no images to measure them on: pass --data-dir"
        if name == "tangents" and not data_dir
        else ""
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.claims", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=list(GROUPS))
    parser.add_argument("--skip", nargs="+", choices=GROUPS, default=[])
    parser.add_argument(
        "--data-dir", help="of real images, for the claim about tangents: train/ and val/ inside"
    )
    parser.add_argument(
        "--group", choices=GROUPS, help=argparse.SUPPRESS
    )  # in a process with its threads pinned
    args = parser.parse_args(argv)
    if args.group:
        pin_threads(GROUPS[args.group][0])
        torch.set_num_threads(GROUPS[args.group][0])
        measure = GROUPS[args.group][1]
        print(
            "CLAIMS " + json.dumps(list(measure(args.data_dir) if measure is errors else measure()))
        )
        return 0
    short, unmeasured = 0, []
    for name in args.only:
        if name in args.skip:
            continue
        if remedy := lacking(name, args.data_dir):
            print(f"{name}: NOT MEASURED, {remedy}", flush=True)
            unmeasured.append(name)
            continue
        command = [sys.executable, "-m", "benchmarks.claims", "--group", name]
        command += ["--data-dir", args.data_dir] if args.data_dir else []
        # finding what pin_threads wants, the process need not start, and import everything, a second time
        env = os.environ | pinned(GROUPS[name][0])
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env)
        if done.returncode:
            raise SystemExit(f"{name}:\n{done.stderr[-2000:]}")
        line = next(s for s in done.stdout.splitlines() if s.startswith("CLAIMS "))
        for what, figure, sense, limit in json.loads(line.removeprefix("CLAIMS ")):
            met = holds(figure, sense, limit)
            short += not met
            print(
                f"{what}: {figure:.3g}, {sense} {limit:g}: {'holds' if met else 'FALLS SHORT'}",
                flush=True,
            )
    if unmeasured:
        print(
            f"not everything was measured; without {' and '.join(unmeasured)}: --skip {' '.join(unmeasured)}"
        )
    return int(short > 0 or unmeasured != [])


if __name__ == "__main__":
    sys.exit(main())
