"""Measures what the pages claim again, at small size, in minutes; the aims that are not met are listed apart.

    python -m benchmarks.claims --data-dir DIR     # all; DIR is an ImageFolder tree of CIFAR-10's classes
    python -m benchmarks.claims --skip tangents rivals
    python -m benchmarks.claims --only augmentation memory

A claim is what README.md and benchmarks/README.md state today. The command ends with 1 where one of
those that were asked for falls short or could not be measured, and with 0 where all hold. An aim is
what we would like to state; none of them fails anything. What is measured in full, with its spread,
is in benchmarks/results; this is to see on one's own machine what holds there. A busy machine makes
figures fall short. Accuracy takes trainings: benchmarks.evidence.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from benchmarks.analysis import tangents
from benchmarks.core.common import ROOT, pin_threads, pinned, require_val, timed
from benchmarks.speed import augmentations, flow_memory, flow_speed, throughput
from benchmarks.speed.candidate import DIRECTIONS
from benchmarks.speed.rivals import BASELINE, OPPONENTS
from timm_nfaug import ConditionalFlow
from timm_nfaug.integration.pillow import guard_posterize
from train_flow.data import load_data

Figure = tuple[str, float, str, float]  # what, its figure, "at most" or "at least", the limit

FLOWS = ("conv_p4_small", "conv_p4_tiny")
TWICE = 2.0  # on every CPU tried; `flow_speed.CLAIMED_SPEEDUP` holds on that of the record alone
ONE_BY_ONE = ("NFA linear (PIL)", "NFA, cached tangents (PIL)")
# "one to two and a half times", "about as much": what rounds to that, and to three times on other machines
ONE_BY_ONE_LIMITS = {32: 3.5, 224: 1.5}
PEAK_SHARES = {"conv_p4_small": 0.75, "conv_p4_tiny": 0.6}
EQUAL_SPEEDUP = 3.0
DECODE_SHARE = 0.1


def augmentation() -> Iterator[Figure]:
    """What an augmentation costs, beside RandAugment."""
    guard_posterize()
    # of the others only tangents are claimed, which bring their own flow
    flows = {"linear": augmentations.augmentation("linear")}
    arms = throughput.CLAIMED + ONE_BY_ONE
    for size in throughput.CLAIMED_SIZES:
        calls = augmentations.candidates(size, flows, "cpu")
        cost = cost_of({name: calls[name] for name in (augmentations.BASE, *arms)}, 0.2)
        base = cost.pop(augmentations.BASE)
        for name, own in cost.items():
            limit = throughput.CLAIM if name in throughput.CLAIMED else ONE_BY_ONE_LIMITS[size]
            what = f"{name} over {augmentations.BASE}, us an image, {size} px"
            yield what, own / base, "at most", limit


def cost_of(calls: augmentations.Candidates, min_seconds: float) -> dict[str, float]:
    """Times candidates side by side; returns the seconds an image takes."""
    times = timed({name: call for name, (call, _) in calls.items()}, 5, min_seconds)
    return {name: times[name]["median"] / images for name, (_, images) in calls.items()}


def rivals() -> Iterator[Figure]:
    """The speed of our flow over normflows' as documented."""
    rows = measured("documented")
    for direction in DIRECTIONS:
        ratio = flow_speed.claimed_ratio(rows, direction)
        what = f"{flow_speed.CLAIMED_FLOW} over {BASELINE}, {direction}, images/s"
        yield what, ratio, "at least", TWICE


def memory() -> Iterator[Figure]:
    """The memory of a reversible training step over its depth, a process for each point."""
    flags, env = ["--repeats", "1", "--batch-size", "256"], flow_memory.RETURN_MEMORY
    half, whole = (flow_memory.run_point(depth, 1, flags, env)["mb"] for depth in (6, 12))
    what = "reversible training step, memory at depth 12 over depth 6"
    yield what, whole / half, "at most", flow_memory.LIMIT


def errors(data_dir: str) -> Iterator[Figure]:
    """The error of tangents on real images."""
    flow = ConditionalFlow.from_pretrained("conv_p4_small.cifar10").eval()
    data = require_val(load_data("folder", data_dir, image_size=32)[1], data_dir)
    some = data.subset(torch.arange(128) * len(data) // 128)
    for row in tangents.errors(flow, some, 0.5, 1.0, argparse.Namespace(modes=[32], seed=0)):
        what = f"tangents against conv_p4_small, {tangents.DEFAULT}, median error of the change"
        yield what, row["median"], "at most", tangents.LIMIT


def decoding() -> Iterator[Figure]:
    """The price of decoding alone, beside a training step."""
    size, name = 32, "conv_p4_tiny"
    flows = {flow: augmentations.augmentation(flow) for flow in ("linear", name)}
    own = augmentations.candidates(size, flows, "cpu")[f"NFA {name}, decode only (uint8 batch)"]
    steps = augmentations.training_steps(size, "cpu")
    decode, step = cost_of({"own": own, **steps}, 0.3).values()
    what = f"NFA {name}, decode only, over a {next(iter(steps))}, an image"
    yield what, decode / step, "at most", DECODE_SHARE


def peak() -> Iterator[Figure]:
    """How much of the machine our flows use."""
    rows = measured()
    for name, share in PEAK_SHARES.items():
        for direction in DIRECTIONS:
            what = f"{name}, {direction}, share of the convolution peak"
            yield what, rows[name][direction]["share_of_peak"], "at least", share


def equal() -> Iterator[Figure]:
    """The speed of our flows over rivals that are built with the FLOPs of ours."""
    rows = measured("equal")
    for direction in DIRECTIONS:
        for name in FLOWS:
            over = rows[name][direction]["speedup_over"]
            for opponent in OPPONENTS:
                what = f"{name} over {opponent} of equal FLOPs, {direction}, images/s"
                ratio = over[f"{opponent} of {name}"]["median"]
                yield what, ratio, "at least", EQUAL_SPEEDUP


def measured(*builds: str) -> dict[str, dict]:
    arguments = argparse.Namespace(
        threads=2, batch=64, repeats=3, min_seconds=0.2, flows=list(FLOWS), device="cpu", seed=0,
        compile=False, rivals=builds,
    )  # fmt: skip
    with torch.no_grad():
        return flow_speed.measure(arguments)[0]["flows"]


@dataclass
class Group:
    """Figures that are measured together, in a process of their own."""

    measure: Callable[..., Iterator[Figure]]
    threads: int
    packages: tuple[str, ...] = ()  # beside the package's own requirements
    needs_data: bool = False  # real images


CLAIMS = {
    "augmentation": Group(augmentation, 1),
    "rivals": Group(rivals, 2, ("normflows", "FrEIA")),
    "memory": Group(memory, 2),
    "tangents": Group(errors, 2, needs_data=True),
}
AIMS = {
    "decoding": Group(decoding, 2),
    "peak": Group(peak, 2),
    "equal": Group(equal, 2, ("normflows", "FrEIA")),
}
GROUPS = CLAIMS | AIMS


def holds(figure: float, sense: str, limit: float) -> bool:
    return figure <= limit if sense == "at most" else figure >= limit


def lacking(name: str, data_dir: str | None) -> str:
    """Says why a group cannot be measured and what helps; empty where it can."""
    group = GROUPS[name]
    packages = [package for package in group.packages if not importlib.util.find_spec(package)]
    if packages:
        return f"{' and '.join(packages)} not installed: pip install '.[bench]'"
    if group.needs_data and not data_dir:
        return "no images to measure them on: pass --data-dir"
    return ""


def run_group(name: str, data_dir: str | None) -> list[Figure]:
    """Measures a group in a process with its threads pinned.

    Raises:
        RuntimeError: it cannot be measured; says why.
    """
    if reason := lacking(name, data_dir):
        raise RuntimeError(reason)
    command = [sys.executable, "-m", "benchmarks.claims", "--group", name]
    command += ["--data-dir", data_dir] if data_dir else []
    # finding what pin_threads wants, the process need not start, and import everything, a second time
    env = os.environ | pinned(GROUPS[name].threads)
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env)
    if done.returncode:
        raise RuntimeError(f"the measurement ended with an error:\n{done.stderr[-2000:]}")
    line = next(s for s in done.stdout.splitlines() if s.startswith("FIGURES "))
    return json.loads(line.removeprefix("FIGURES "))


def print_group(name: str, data_dir: str | None) -> None:
    """Measures a group in this process, for `run_group`."""
    group = GROUPS[name]
    pin_threads(group.threads)
    torch.set_num_threads(group.threads)
    figures = group.measure(data_dir) if group.needs_data else group.measure()
    print("FIGURES " + json.dumps(list(figures)))


def judge_claims(names: list[str], data_dir: str | None) -> bool:
    """Prints a verdict for each claim; returns whether all of them were measured and hold."""
    short, unmeasured = 0, []
    for name in names:
        try:
            figures = run_group(name, data_dir)
        except RuntimeError as e:
            print(f"{name}: NOT MEASURED, {e}", flush=True)
            unmeasured.append(name)
            continue
        for what, figure, sense, limit in figures:
            met = holds(figure, sense, limit)
            short += not met
            verdict = "holds" if met else "FALLS SHORT"
            print(f"{what}: {figure:.3g}, {sense} {limit:g}: {verdict}", flush=True)
    if unmeasured:
        skip = f"without {' and '.join(unmeasured)}: --skip {' '.join(unmeasured)}"
        print(f"not everything was measured; {skip}")
    return not short and not unmeasured


def list_aims(names: list[str], data_dir: str | None) -> None:
    """Prints the aims, those that are not met apart."""
    lists: dict[str, list[str]] = {"met": [], "not met": [], "not measured": []}
    for name in names:
        try:
            figures = run_group(name, data_dir)
        except RuntimeError as e:
            lists["not measured"].append(f"{name}: {e}")
            continue
        for what, figure, sense, limit in figures:
            verdict = "met" if holds(figure, sense, limit) else "not met"
            lists[verdict].append(f"{what}: {figure:.3g}, {sense} {limit:g}")
    for verdict, lines in lists.items():
        if lines:
            print("\n".join([f"\naims {verdict}:", *(f"  {line}" for line in lines)]), flush=True)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.claims", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=list(GROUPS))
    parser.add_argument("--skip", nargs="+", choices=GROUPS, default=[])
    images = "of real images, for the claim about tangents: train/ and val/ inside"
    parser.add_argument("--data-dir", help=images)
    # the one that this process measures
    parser.add_argument("--group", choices=GROUPS, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.group:
        print_group(args.group, args.data_dir)
        return 0
    wanted = [name for name in args.only if name not in args.skip]
    all_hold = judge_claims([name for name in wanted if name in CLAIMS], args.data_dir)
    list_aims([name for name in wanted if name in AIMS], args.data_dir)
    return 0 if all_hold else 1


if __name__ == "__main__":
    sys.exit(main())
