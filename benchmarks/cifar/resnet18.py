"""ResNet18 on CIFAR with every augmentation: the paper's first comparison, with the controls a reviewer asks for.

    python -m benchmarks.cifar.resnet18 --data cifar10 --data-dir DIR --arms baseline sa glem --flow glem=NAME

The recipe is the paper's (Enescu & Sahbi, ACCV 2024): 30 epochs of batch 128 on CIFAR-10, 50 of 198 on CIFAR-100. At a
fraction of the training set each seed draws its own stratified subset, the same for every arm, so arms are compared seed
by seed. Class Gaussians and modes of a flow are estimated on the run's own training images; what its network was trained
on is stated by `--flow-trained-on` and recorded, and `--flow glem=train:CONFIG` trains it on the run's own images alone, once
for each seed, in runs/. Runs are appended to benchmarks/results/cifar_resnet18.jsonl and those
on record are skipped, so the command goes on where it stopped. A small network leaves most of a GPU idle: `--jobs` trains
several classifiers at once, each in a process of its own.

Settings are chosen with `--split held`: 10% held out of the training set, which no training at a fraction below 1 sees. With
`--split held test` a training is reported on both.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import os
import re
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import torch
from safetensors.torch import save_model
from torch import multiprocessing

from benchmarks.cifar.arms import ARMS, LINEAR, NEEDS_FLOW, SHRINKS_NOT, Settings, make_arm
from benchmarks.cifar.classifier import MODELS, Recipe, test, train
from benchmarks.core import records
from benchmarks.core.common import ROOT, command_line, environment, flow_title
from timm_nfaug._utils.files import write_atomically
from timm_nfaug.flows.model import ConditionalFlow
from train_flow.config import load_config
from train_flow.data import Images, load_data, stratified_split
from train_flow.trainer import Trainer

SUITE = "cifar_resnet18"
PAPER = {"cifar10": (30, 128), "cifar100": (50, 198)}  # epochs, batch size
HELD = 0.1
TRAIN = "train:"
STOPPED = "time limit reached; the same command goes on"
_process: dict = {}  # of a process that trains: args, images (both for all its runs) and the seconds of its slowest epoch so far


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    torch.set_num_threads(args.threads)
    data, vals, name = read_data(args)
    path = args.record or records.suite_file(SUITE)
    done = {records.key(r) for r in records.read(path)}
    pending = []
    for seed in args.seeds:
        for arm in args.arms:
            for epochs in args.epochs:
                recipe = Recipe(
                    args.model,
                    epochs,
                    args.batch_size,
                    args.max_lr,
                    bf16=args.bf16,
                    compile=args.compile,
                    init=args.init,
                )
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
                    "a training process died, killed or out of memory; the same command goes on"
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
    threading.Thread(
        target=lambda: (multiprocessing.parent_process().join(), os._exit(1)), daemon=True
    ).start()
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


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cifar.resnet18", description=__doc__.split("\n")[0]
    )
    parser.add_argument(
        "--data",
        required=True,
        help="cifar10, cifar100 or an ImageFolder tree with train/ and val/",
    )
    parser.add_argument("--data-dir", help="where CIFAR lies or is downloaded to")
    parser.add_argument("--data-name", help="how the record calls the data; required for a tree")
    parser.add_argument("--image-size", type=int, default=32, help="of a tree's images")
    parser.add_argument(
        "--arms", nargs="+", choices=ARMS, default=ARMS[:3], metavar="ARM", help=", ".join(ARMS)
    )
    parser.add_argument(
        "--flow",
        nargs="+",
        default=[],
        metavar="ARM=NAME",
        help="of the arms: glem=NAME_OR_DIR ce=train:CONFIG",
    )
    parser.add_argument(
        "--flow-trained-on",
        help="on record, what the networks have seen, e.g. 'all images, without labels'",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--fraction", type=float, default=1.0, help="of the training set, above 0")
    parser.add_argument(
        "--split",
        nargs="+",
        choices=("test", "held"),
        default=["test"],
        help="what is reported on; held: to choose settings",
    )
    parser.add_argument("--model", choices=MODELS, default="resnet18")
    parser.add_argument(
        "--epochs",
        type=int,
        nargs="+",
        help="several make arms of equal time comparable; default: the paper's",
    )
    parser.add_argument("--batch-size", type=int, help="default: the paper's")
    parser.add_argument("--max-lr", type=float, default=Recipe.max_lr)
    parser.add_argument(
        "--init", default="", help="weights to start from, all but the head: a file of --save"
    )
    parser.add_argument("--save", type=Path, help="directory for the weights of each classifier")
    parser.add_argument(
        "--corrupted", type=int, default=0, help="test images for the corruptions; 0: none"
    )
    for field in dataclasses.fields(Settings):
        parser.add_argument(f"--{field.name}", type=type(field.default), default=field.default)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, help="default: the cores, over --jobs")
    parser.add_argument(
        "--no-bf16",
        dest="bf16",
        action="store_false",
        help="all in float32: faster on a CPU without AVX-512",
    )
    parser.add_argument("--compile", action="store_true")
    parser.add_argument(
        "--workers",
        type=int,
        default=0,
        help="processes beside each training, for PIL policies after the crop",
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=1,
        help="classifiers trained at once, whose seconds tell nothing",
    )
    parser.add_argument(
        "--time-limit", type=float, default=float("inf"),
        help="seconds; no run is begun that would take longer, at the pace of those before",
    )  # fmt: skip
    parser.add_argument("--record", type=Path, help="another file for the runs")
    args = parser.parse_args(argv)
    if not 0 < args.fraction <= 1:
        parser.error(f"--fraction must be above 0 and at most 1, got {args.fraction:g}")
    if args.fraction == 1 and len(args.split) > 1:
        parser.error(
            "at --fraction 1 no images are held out of what --split test trains on; choose one split"
        )
    if args.jobs < 1 or args.workers < 0:
        parser.error(
            f"--jobs must be at least 1 and --workers at least 0, got {args.jobs} and {args.workers}"
        )
    if args.threads is None:
        args.threads = max(1, torch.get_num_threads() // args.jobs)
    epochs, batch_size = PAPER.get(args.data, PAPER["cifar10"])
    args.epochs, args.batch_size = args.epochs or [epochs], args.batch_size or batch_size
    flows = dict(item.partition("=")[::2] for item in args.flow)
    unknown = set(flows) - set(NEEDS_FLOW)
    if unknown:
        parser.error(
            f"--flow takes ARM=NAME with an arm of {', '.join(NEEDS_FLOW)}; got {', '.join(sorted(unknown))}"
        )
    if args.jobs > 1 and any(f.startswith(TRAIN) for f in flows.values()):
        parser.error(
            f"--flow ARM={TRAIN}CONFIG trains a flow once for all arms of a seed, so it needs --jobs 1"
        )
    missing = [
        a for a in args.arms if a in NEEDS_FLOW and not (flows.get(a) or flows.get(NEEDS_FLOW[a]))
    ]
    if missing:
        parser.error(f"arm {missing[0]} needs --flow {NEEDS_FLOW[missing[0]]}=NAME")
    named = [f for f in flows.values() if not f.startswith(TRAIN)]
    if named and not args.flow_trained_on:
        parser.error(
            f"--flow-trained-on is needed with flow {Path(named[0]).name}: what images and labels its network has seen"
        )
    if args.data not in PAPER and not args.data_name:
        parser.error("--data-name is needed with an ImageFolder tree, e.g. 'CIFAR-10 (JPEG)'")
    args.flow = flows
    args.command = command_line("benchmarks.cifar.resnet18", argv)
    return args


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
    def placed(d: Images) -> Images:
        return Images(d.levels.to(device), d.labels.to(device), d.class_names)

    return placed(data), {split: placed(d) for split, d in vals.items()}


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
    """What identifies a run."""
    settings = dataclasses.asdict(recipe)
    if recipe.init:
        settings["init"] = Path(recipe.init).stem
    else:
        del settings["init"]
    flow = None
    if arm in NEEDS_FLOW:
        flow = args.flow.get(arm) or args.flow[NEEDS_FLOW[arm]]
        if Path(flow).is_dir():
            flow = flow_title(flow)
        if flow.startswith(TRAIN):
            flow = TRAIN + config_name(flow.removeprefix(TRAIN))
        settings["flow_trained_on"] = (
            "the run's own images" if flow.startswith(TRAIN) else args.flow_trained_on
        )
    usual = Settings()
    if arm in NEEDS_FLOW or arm in LINEAR:
        settings |= {name: getattr(args, name) for name in ("strength", "modes", "p")}
        if args.place != usual.place:
            settings["place"] = args.place
        if args.shrinkage and arm not in SHRINKS_NOT:
            settings["shrinkage"] = args.shrinkage
    if arm.partition("+")[0] == "sa":  # on record where they are not the usual
        settings |= {
            k: getattr(args, k)
            for k in ("randaugment", "reprob")
            if getattr(args, k) != getattr(usual, k)
        }
    if arm == "samples":
        settings = {k: v for k, v in settings.items() if k not in ("strength", "modes")} | {
            "temperature": args.temperature
        }
    return {
        "suite": SUITE, "data": name, "split": split, "fraction": args.fraction, "arm": arm, "seed": seed,
        "flow": flow, "settings": settings,
    }  # fmt: skip


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
    arm, flow_seconds = run["arm"], 0.0
    if args.device.startswith("cuda"):
        torch.backends.cudnn.benchmark = arm not in NEEDS_FLOW  # which see batches of many sizes
    flow, info = None, {}
    if arm in NEEDS_FLOW:
        name = args.flow.get(arm) or args.flow[NEEDS_FLOW[arm]]
        if name.startswith(TRAIN):
            name = train_flow_on(images, name.removeprefix(TRAIN), run["seed"], args.device)
        flow = ConditionalFlow.from_pretrained(name).to(args.device).eval()
        flow.set_net_dtype(
            torch.bfloat16 if args.bf16 else None
        )  # moves an image by less than one level
        info = flow.config.info
        flow_seconds += float(info.get("training_seconds") or 0.0)
    start = time.perf_counter()
    settings = Settings(**{f.name: getattr(args, f.name) for f in dataclasses.fields(Settings)})
    made = make_arm(arm, images, flow, settings)
    flow_seconds += time.perf_counter() - start if arm in NEEDS_FLOW or arm in LINEAR else 0.0
    model, cost = train(images, made, recipe, run["seed"], args.workers)
    if args.save:
        args.save.mkdir(parents=True, exist_ok=True)
        unique = hashlib.sha256(records.key(run).encode()).hexdigest()[:8]
        words = re.sub(
            r"\W+",
            "-",
            f"{run['data']} {recipe.model} {arm} {recipe.epochs} {run['seed']} {unique}",
        )
        write_atomically(args.save / f"{words}.safetensors", lambda p: save_model(model, p))
    e = environment()
    device = (
        e["machine"]["gpu"]
        if args.device.startswith("cuda")
        else f"{e['machine']['cpu']}, {args.threads} threads"
    )
    device += f", {args.jobs} at once" if args.jobs > 1 else ""
    for run in runs:
        run |= {
            "metrics": test(model, vals[run["split"]], recipe.bf16, args.corrupted), "training_images": len(images), **cost,
            "flow_seconds": flow_seconds, "flow_metrics": info.get("metrics", {}), "device": device,
            "versions": e["versions"], "commit": e["commit"], "dirty": e["dirty"], "date": e["date"], "command": args.command,
        }  # fmt: skip


def config_name(config: str) -> str:
    return Path(config).name.removesuffix(".yaml")


def train_flow_on(images: Images, config: str, seed: int, device: str) -> Path:
    """Directory of the flow that a config of train_flow gives on these images; a training cut short goes on."""
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
