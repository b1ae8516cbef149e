"""ResNet18 on CIFAR with every augmentation: the paper's first comparison, with the controls a reviewer asks for.

    python -m benchmarks.cifar.resnet18 --data cifar10 --data-dir DIR --arms baseline sa glem --flow glem=NAME

The recipe is the paper's (Enescu & Sahbi, ACCV 2024): 30 epochs of batch 128 on CIFAR-10, 50 of 198
on CIFAR-100. At a fraction of the training set each seed draws its own stratified subset, the same
for every arm, so arms are compared seed by seed. Class Gaussians and modes of a flow are estimated
on the run's own training images; what its network was trained on is stated by `--flow-trained-on`
and recorded, and `--flow glem=train:CONFIG` trains it on the run's own images alone, once for each
seed, in runs/. Runs are appended to benchmarks/results/cifar_resnet18.jsonl and those on record are
skipped, so the same command resumes where it stopped. A small network leaves most of a GPU idle:
`--jobs` trains several classifiers at once, each in a process of its own.

Settings are chosen with `--split held`: 10% held out of the training set, which no training at a
fraction below 1 sees. With `--split held test` a training is reported on both.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import itertools
import re
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import torch
from safetensors.torch import save_model
from torch import multiprocessing

from benchmarks.cifar.arms import ALWAYS, Settings, find, make_arm, needs_flow
from benchmarks.cifar.classifier import Recipe, test, train
from benchmarks.cifar.options import PAPER, TRAIN, parse
from benchmarks.core import records
from benchmarks.core.common import ROOT, environment, flow_title
from timm_nfaug._utils.files import write_atomically
from timm_nfaug._utils.processes import end_with_parent
from timm_nfaug.flows.model import ConditionalFlow
from train_flow.config import load_config
from train_flow.data import Images, load_data, stratified_split
from train_flow.trainer import Trainer

SUITE = "cifar_resnet18"
HELD = 0.1
STOPPED = "time limit reached; the same command resumes"
# of a process that trains: args and images, for all of its runs, and the seconds of its slowest epoch so far
_process: dict = {}


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    torch.set_num_threads(args.threads)
    data, vals, name = read_data(args)
    path = args.record or records.suite_file(SUITE)
    done = {records.key(r) for r in records.read(path)}
    pending = []
    for seed, arm, epochs in itertools.product(args.seeds, args.arms, args.epochs):
        recipe = Recipe(
            args.model, epochs, args.batch_size, args.max_lr,
            bf16=args.bf16, compile=args.compile, init=args.init,
        )  # fmt: skip
        runs = [describe(args, arm, seed, recipe, name, split) for split in args.split]
        runs = [run for run in runs if records.key(run) not in done]
        if runs:
            pending.append((runs, recipe))
    return (one_after_another if args.jobs == 1 else side_by_side)(pending, args, data, vals, path)


Pending = list[tuple[list[dict], Recipe]]


def one_after_another(
    pending: Pending, args: argparse.Namespace, data: Images, vals: dict[str, Images], path: Path
) -> int:
    init_process(args, data, vals)
    end = time.time() + args.time_limit
    for runs, recipe in pending:
        runs = execute_in_time(runs, recipe, end)
        if not runs:
            print(STOPPED)
            return 0
        record(runs, path)
    return 0


def side_by_side(
    pending: Pending, args: argparse.Namespace, data: Images, vals: dict[str, Images], path: Path
) -> int:
    """Each run in one of `--jobs` processes, which share the images in memory; one that raises does not stop the others."""
    end, failed, late = time.time() + args.time_limit, 0, False
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(args.jobs, context, init_worker, (args, data, vals))
    try:
        futures = {
            pool.submit(execute_in_time, runs, recipe, end): runs[0] for runs, recipe in pending
        }
        for future in as_completed(futures):
            try:
                runs = future.result()
            except BrokenProcessPool:
                raise SystemExit(
                    "a training process died, killed or out of memory; the same command resumes"
                ) from None
            except Exception as e:
                failed += 1
                run = futures[future]
                what = f"{run['arm']}, seed {run['seed']}, failed: {type(e).__name__}: {e}"
                print(
                    f"{what}\n{e.__cause__}", file=sys.stderr, flush=True
                )  # the cause holds where, in its process
                continue
            late |= not runs
            record(runs, path)
    finally:
        pool.shutdown(cancel_futures=True)
    if late:
        print(STOPPED)
    return int(failed > 0)


def init_worker(args: argparse.Namespace, data: Images, vals: dict[str, Images]) -> None:
    """Starts a process of `side_by_side`, which ends when the one that started it does."""
    end_with_parent()
    torch.set_num_threads(args.threads)
    init_process(args, data, vals)


def init_process(args: argparse.Namespace, data: Images, vals: dict[str, Images]) -> None:
    _process.update(args=args, images=on_device(data, vals, args.device), slowest=0.0)


def execute_in_time(runs: list[dict], recipe: Recipe, end: float) -> list[dict]:
    """The completed records; none if a run at the pace of the slowest so far would not be done by `end`, seconds since 1970."""
    start = time.time()
    if start + _process["slowest"] * recipe.epochs > end:
        return []
    execute(runs, _process["args"], *_process["images"], recipe)
    _process["slowest"] = max(_process["slowest"], (time.time() - start) / recipe.epochs)
    return runs


def record(runs: list[dict], path: Path) -> None:
    for run in runs:
        records.append(run, path)
        m, epochs = run["metrics"], run["settings"]["epochs"]
        print(
            f"{run['arm']}, {run['split']}, fraction {run['fraction']:g}, seed {run['seed']}, {epochs} epochs: "
            f"top-1 {m['top1']:.2f}, nll {m['nll']:.3f}, ece {m['ece']:.1f}, "
            f"{run['seconds']:.0f} s + flow {run['flow_seconds']:.1f} s",
            flush=True,
        )


def read_data(args: argparse.Namespace) -> tuple[Images, dict[str, Images], str]:
    """Training pool, the images that are reported on by split, and the name of the data."""
    if args.data in PAPER:
        data, val = load_data(args.data, args.data_dir)
        name = args.data_name or {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}[args.data]
    else:
        data, val = load_data("folder", args.data, args.image_size)
        name = args.data_name
    if val is None:
        raise SystemExit(
            f"{args.data} has no val/ folder beside train/; the comparison is reported on it"
        )
    args.total = len(data)
    vals = {"test": val}
    if args.fraction < 1 or "held" in args.split:
        rest, held = stratified_split(data.labels, HELD, seed=0)
        vals["held"], data = data.subset(held), data.subset(rest)
    return data, {split: vals[split] for split in args.split}, name


def on_device(
    data: Images, vals: dict[str, Images], device: str
) -> tuple[Images, dict[str, Images]]:
    to = torch.device(device)
    return data.to(to), {split: d.to(to) for split, d in vals.items()}


def subset(data: Images, total: int, fraction: float, seed: int) -> Images:
    """`fraction` of `total` images from `data`, stratified, another choice for every seed; all of `data` for 1."""
    share = fraction * total / len(data)
    if share >= 1:
        return data
    return data.subset(
        stratified_split(data.labels.cpu(), share, seed + 1)[1].to(data.levels.device)
    )


def describe(
    args: argparse.Namespace, arm: str, seed: int, recipe: Recipe, name: str, split: str
) -> dict:
    """The part of a record that identifies a run."""
    settings = dataclasses.asdict(recipe)
    if recipe.init:
        settings["init"] = Path(recipe.init).stem
    else:
        del settings["init"]
    flow = None
    if needs_flow(arm):
        flow = flow_name(args, arm)
        own = flow.startswith(TRAIN)
        settings["flow_trained_on"] = "the run's own images" if own else args.flow_trained_on
        if Path(flow).is_dir():
            flow = flow_title(flow)
        if own:
            flow = TRAIN + config_name(flow.removeprefix(TRAIN))
    settings |= on_record(arm, args)
    return {
        "suite": SUITE, "data": name, "split": split, "fraction": args.fraction, "arm": arm, "seed": seed,
        "flow": flow, "settings": settings,
    }  # fmt: skip


def flow_name(args: argparse.Namespace, arm: str) -> str:
    """The flow that --flow gives to an arm, or to the arm whose flow it uses."""
    return args.flow.get(arm) or args.flow[find(arm).flow]


def on_record(arm: str, args: argparse.Namespace) -> dict:
    """The settings that an arm uses: strength, modes, p and temperature at any value, others where unusual."""
    usual = dataclasses.asdict(Settings()) | {
        "shrinkage": 0.0
    }  # which came later than the first runs
    values = {name: getattr(args, name) for name in find(arm).settings}
    return {k: v for k, v in values.items() if k in ALWAYS or v != usual[k]}


def execute(
    runs: list[dict],
    args: argparse.Namespace,
    data: Images,
    vals: dict[str, Images],
    recipe: Recipe,
) -> None:
    """Trains one classifier, tests it on the split of each run, and completes their records."""
    run = runs[0]
    images = subset(data, args.total, args.fraction, run["seed"])
    name = run["arm"]
    flow, info = flow_for(name, images, args, run["seed"])
    start = time.perf_counter()
    settings = Settings(**{f.name: getattr(args, f.name) for f in dataclasses.fields(Settings)})
    arm = make_arm(name, images, flow, settings)
    fit = time.perf_counter() - start if find(name).flow or find(name).on_linear else 0.0
    model, cost = train(images, arm, recipe, run["seed"], args.workers)
    if args.save:
        save(model, run, args.save)
    e = environment()
    cuda = args.device.startswith("cuda")
    device = e["machine"]["gpu"] if cuda else f"{e['machine']['cpu']}, {args.threads} threads"
    for run in runs:
        run |= {
            "metrics": test(model, vals[run["split"]], recipe.bf16, args.corrupted),
            "training_images": len(images), **cost,
            "flow_seconds": fit + float(info.get("training_seconds") or 0.0),
            "flow_metrics": info.get("metrics", {}),
            "device": device + (f", {args.jobs} at once" if args.jobs > 1 else ""),
            "versions": e["versions"], "commit": e["commit"], "dirty": e["dirty"], "date": e["date"],
            "command": args.command,
        }  # fmt: skip


def flow_for(
    arm: str, images: Images, args: argparse.Namespace, seed: int
) -> tuple[ConditionalFlow | None, dict]:
    """The flow of an arm, trained on `images` where that is asked for, and what its config says of it."""
    if args.device.startswith("cuda"):
        torch.backends.cudnn.benchmark = not needs_flow(arm)  # which see batches of many sizes
    if not needs_flow(arm):
        return None, {}
    name = flow_name(args, arm)
    if name.startswith(TRAIN):
        name = train_flow_on(images, name.removeprefix(TRAIN), seed, args.device)
    flow = ConditionalFlow.from_pretrained(name).to(args.device).eval()
    # moves an image by less than one level
    flow.set_net_dtype(torch.bfloat16 if args.bf16 else None)
    return flow, flow.config.info


def save(model: torch.nn.Module, run: dict, folder: Path) -> None:
    """Writes the weights of a run's classifier to a file named after the run."""
    folder.mkdir(parents=True, exist_ok=True)
    s, unique = run["settings"], hashlib.sha256(records.key(run).encode()).hexdigest()[:8]
    words = f"{run['data']} {s['model']} {run['arm']} {s['epochs']} {run['seed']} {unique}"
    name = re.sub(r"\W+", "-", words)
    write_atomically(folder / f"{name}.safetensors", lambda p: save_model(model, p))


def config_name(config: str) -> str:
    return Path(config).name.removesuffix(".yaml")


def train_flow_on(images: Images, config: str, seed: int, device: str) -> Path:
    """Directory of the flow that a config of train_flow gives on these images; a training cut short is resumed."""
    settings = load_config(config, [f"seed={seed}"])
    out = ROOT / "runs" / "own" / f"{config_name(config)}-{images.sha256()[:12]}-{seed}"
    trainer = Trainer(
        settings,
        images if settings.labels else images.without_labels(),
        None,
        out,
        device,
        resume=True,
    )
    trainer.run()
    trainer.finish()
    return out / "flow"


if __name__ == "__main__":
    sys.exit(main())
