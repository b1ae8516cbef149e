"""Generation: FID, Coverage, class accuracy and time of what flows of every objective sample, at one equal budget.

    python -m benchmarks.generation.generation --data-dir DIR --steps 1500
    python -m benchmarks.generation.generation --data-dir DIR --flows glem=conv_p4_small.cifar10_jpeg --record generation_bundled

Claim: none beforehand. Every arm trains the same network from the same seed for the same number of steps; `ce` on 8 more
rows, its label code. `linear` is the control, class means and eigen-images without any training, and the floor is what
training images score against the reference. All temperatures and mean scales are reported, none is chosen.

FID (Heusel et al. 2017) and Coverage (Naeem et al. 2020, k = 5) compare samples with the validation images, on the
penultimate features of a ResNet18 (512 numbers) that is trained here on the training images at 5 bits, apart from all
flows; class accuracy is how often its prediction is the label that was asked for. Every image, real or made, is cut to 5
bits first; the classifier computes in bfloat16 unless told otherwise. Samples are clamped to [-1, 1]; those with a value
that is not finite are counted and left out. FID falls and Coverage rises with the number of samples: compare figures of one
number only. The extractor was trained on the images of the floor, so another draw of the data would score a little better
than they do.

bits/dim is at the flow's own depth; that of `ce` counts the label band too, so it compares with no other. Time is that of
sampling as many images as the training set has; it is extrapolated from warm batches unless so many were sampled.

Runs live under --runs: trainings, the feature extractor once trained, and every row are kept and not made again.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from sklearn.neighbors import NearestNeighbors
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from benchmarks.analysis.flow_report import check_classes
from benchmarks.cifar.arms import Arm
from benchmarks.cifar.classifier import (
    MODELS,
    Recipe,
    make_classifier,
    normalize,
    penultimate,
    train,
)
from benchmarks.core.common import (
    command_line,
    disturbed,
    environment,
    markdown_table,
    pin_threads,
    timed,
    write_result,
)
from timm_nfaug import ConditionalFlow, pixels
from timm_nfaug._utils.files import write_atomically
from timm_nfaug.hub import WEIGHTS_NAME, resolve
from train_flow.config import load_config
from train_flow.data import Images, load_data
from train_flow.evaluate import evaluate, evenly
from train_flow.schedule import generator
from train_flow.trainer import Trainer

ARMS = {
    "glem": ["objective=glem"],
    "ml": ["objective=ml"],
    "random": ["objective=random"],
    "ce": ["objective=ce", "discriminative=0", "shift=0"],
    "joint": ["objective=joint"],
    "linear": [
        "objective=moments",
        "flow=linear",
        "network={}",
        "prior={num_modes: 32}",
        "mode_images=0",
    ],
}
NEIGHBOURS = 5
BATCH = 500
LABELS, SAMPLES = range(300, 302)  # purposes of random numbers


def five_bits(levels: Tensor) -> Tensor:
    """uint8 levels to the centre of the 5-bit level that they lie in."""
    return levels // 8 * 8 + 4


# -- the feature extractor ---------------------------------------------------------------------------------------------


def digest(*parts: Any) -> str:
    """A short hash of tensors, bytes and whatever has a repr."""
    h = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            part = part.cpu().contiguous().numpy().tobytes()
        h.update(part if isinstance(part, bytes) else repr(part).encode())
    return h.hexdigest()[:16]


def feature_extractor(images: Images, recipe: Recipe, path: Path) -> nn.Module:
    """A classifier trained on `images` at 5 bits on the device where they lie; kept in `path`."""
    settings, data = asdict(recipe), digest(images.levels, images.labels)
    if path.exists():
        kept = torch.load(path, map_location=images.levels.device, weights_only=True)
        if (kept["settings"], kept["data"]) != (settings, data):
            raise ValueError(
                f"{path} was made with other settings or data; choose another --runs, or remove it"
            )
        model = make_classifier(recipe.model, len(images.class_names)).to(images.levels.device)
        model.load_state_dict(kept["weights"])
    else:
        model, _ = train(
            Images(five_bits(images.levels), images.labels, images.class_names),
            Arm(),
            recipe,
            seed=0,
        )
        kept = {"settings": settings, "data": data, "weights": model.state_dict()}
        write_atomically(path, lambda p: torch.save(kept, p))
    return model.eval().requires_grad_(False)


@torch.no_grad()
def features_of(model: nn.Module, levels: Tensor, bf16: bool = False) -> tuple[Tensor, Tensor]:
    """uint8 images (N, 3, H, W) to penultimate features (N, F) and predicted labels (N,), both on the CPU."""
    features, predicted = [], []
    device = next(model.parameters()).device
    for part in levels.split(BATCH):
        x = normalize(five_bits(part.to(device)))
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            f = penultimate(model, x).float()
        features.append(f.cpu())
        predicted.append(model.get_classifier()(f).argmax(1).cpu())
    return torch.cat(features), torch.cat(predicted)


# -- the metrics -------------------------------------------------------------------------------------------------------


class Given(nn.Identity):
    """torchmetrics' FID is given features, not images, so that one pass of the network serves all metrics."""

    def __init__(self, num_features: int):
        super().__init__()
        self.num_features = num_features


def fid(real: Tensor, made: Tensor) -> float:
    """Fréchet distance between Gaussians fitted to features (N, F) and (M, F)."""
    metric = FrechetInceptionDistance(feature=Given(real.shape[1]))
    metric.update(real.double(), real=True)
    metric.update(made.double(), real=False)
    return metric.compute().item()


def coverage(real: Tensor, made: Tensor, k: int = NEIGHBOURS) -> float:
    """Share of real features (N, F) with one of made (M, F) nearer than their own k-th neighbour among the real."""
    if len(real) <= k:
        raise ValueError(f"coverage with k = {k} needs more than {k} real images, got {len(real)}")
    real, made = real.double().numpy(), made.double().numpy()
    radius = (
        NearestNeighbors(n_neighbors=k, algorithm="brute").fit(real).kneighbors()[0][:, -1]
    )  # a point is not its own
    nearest = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(made).kneighbors(real)[0][:, 0]
    return float((nearest < radius).mean())


def score(
    real: Tensor, model: nn.Module, levels: Tensor, labels: Tensor, bf16: bool = False
) -> dict[str, float]:
    """fid, coverage and class_accuracy of images against real features."""
    features, predicted = features_of(model, levels, bf16)
    return {
        "fid": fid(real, features),
        "coverage": coverage(real, features),
        "class_accuracy": (predicted == labels).double().mean().item(),
    }


# -- the samples -------------------------------------------------------------------------------------------------------


def asked_labels(images: Images, count: int, seed: int) -> Tensor:
    """`count` labels in the shares of `images`, shuffled: a ce flow fills a batch fastest where all labels are in it."""
    labels = images.labels.cpu()[torch.arange(count) * len(images) // count]
    return labels[torch.randperm(count, generator=generator(seed, LABELS))]


@contextlib.contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Raises TimeoutError in the body after so many seconds."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f"no end after {seconds:g} seconds; raise --limit-seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@torch.no_grad()
def sample_levels(
    flow: ConditionalFlow, y: Tensor, temperature: float, mean_scale: float, seed: int, limit: float
) -> tuple[Tensor, Tensor, float]:
    """Samples of labels y (N,) as uint8 (M, C, H, W), which of the N are finite (N,) bool, and the seconds of sampling.

    Raises:
        RuntimeError, TimeoutError: a flow with conditional encoding makes some label not at all, or not in `limit` seconds.
    """
    g = generator(seed, SAMPLES)
    levels, finite, seconds = [], [], 0.0
    encodes = bool(
        flow.config.code_rows
    )  # such a flow batches by itself, and best with all labels before it
    with deadline(limit) if encodes else contextlib.nullcontext():
        for part in [y] if encodes else y.split(BATCH):
            start = time.perf_counter()
            x = flow.sample(part, temperature, mean_scale, g)
            good = x.flatten(1).isfinite().all(1).cpu()  # which waits for a GPU
            seconds += time.perf_counter() - start
            finite.append(good)
            levels.append(pixels.model_to_levels(x.cpu()[good].clamp(-1, 1)))
    return torch.cat(levels), torch.cat(finite), seconds


def row_of(
    flow: ConditionalFlow,
    y: Tensor,
    temperature: float,
    mean_scale: float,
    seed: int,
    limit: float,
    real: Tensor,
    model: nn.Module,
    bf16: bool = False,
) -> dict[str, Any]:
    """One row of the result: what `score` says of samples, or under `error` why there are none."""
    row: dict[str, Any] = {"temperature": temperature, "mean_scale": mean_scale}
    nothing = dict.fromkeys(("fid", "coverage", "class_accuracy"))
    try:
        levels, finite, seconds = sample_levels(flow, y, temperature, mean_scale, seed, limit)
    except (RuntimeError, TimeoutError) as e:
        if not flow.config.code_rows:
            raise
        return (
            row
            | {"images": 0, "non_finite": 0, "sampling_seconds": None, "error": str(e)}
            | nothing
        )
    row |= {
        "images": len(levels),
        "non_finite": len(y) - len(levels),
        "sampling_seconds": seconds,
        "error": None,
    }
    if len(levels) < 2:
        return row | {"error": f"{len(levels)} of {len(y)} samples are finite"} | nothing
    return row | score(real, model, levels, y[finite], bf16)


def settings_of(
    flow: ConditionalFlow, temperatures: list[float], mean_scales: list[float]
) -> list[tuple[float, float]]:
    """(temperature, mean scale) pairs; means that are all zero, as with ce, are scaled by 1 only."""
    scales = mean_scales if flow.prior.mu.any() else [1.0]
    return [(t, m) for m in scales for t in temperatures]


@torch.no_grad()
def speed(flow: ConditionalFlow, y: Tensor, threads: int) -> dict[str, Any]:
    """Images a second of warm batches at temperature 1; with conditional encoding None, as a batch may have no end."""
    if flow.config.code_rows:
        return {"images_per_s": None}
    g = torch.Generator().manual_seed(0)

    def sample() -> None:
        flow.sample(y, generator=g).sum().item()  # which waits for a GPU

    timing = timed({"sample": sample}, repeats=5)["sample"]
    return {
        "images_per_s": len(y) / timing["median"],
        "batch": len(y),
        "batch_seconds": timing["seconds"],
        "cpu_per_wall": timing["cpu_per_wall"],
        "disturbed": flow.device.type == "cpu" and disturbed(timing, threads),
    }


def training_set_time(rate: float | None, rows: list[dict[str, Any]], count: int) -> dict[str, Any]:
    """Seconds for `count` samples: of the row at temperature 1 where it made so many, else from images a second.

    Without a rate they are in proportion to the row's; None where that has none either.
    """
    rows = [r for r in rows if r["temperature"] == r["mean_scale"] == 1 and not r["error"]]
    if rows and (rate is None or rows[0]["images"] + rows[0]["non_finite"] == count):
        made = rows[0]["images"] + rows[0]["non_finite"]
        return {
            "training_set_seconds": rows[0]["sampling_seconds"] * count / made,
            "extrapolated": made != count,
        }
    return {"training_set_seconds": rate and count / rate, "extrapolated": True}


# -- the whole ---------------------------------------------------------------------------------------------------------


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.generation.generation", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--data-dir", required=True)
    parser.add_argument(
        "--config", default="conv_p4_tiny.cifar10_jpeg", help="of the trainings, and of the data"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a setting in every arm",
    )
    parser.add_argument("--steps", type=int, help="of every arm (default: the config's)")
    parser.add_argument(
        "--arms", nargs="+", choices=ARMS, help="to train (default: all, none with --flows)"
    )
    parser.add_argument(
        "--flows",
        nargs="+",
        default=[],
        metavar="ARM=NAME",
        help="trained flows: glem=NAME_OR_DIR ...",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument(
        "--samples", type=int, default=0, help="for every row; 0: as many as training images"
    )
    parser.add_argument("--temperatures", type=float, nargs="+", default=[1.0, 0.7, 0.5, 0.3, 0.1])
    parser.add_argument("--mean-scales", type=float, nargs="+", default=[1.0, 1.3])
    parser.add_argument(
        "--features-model", choices=MODELS, default="resnet18", help="resnet18 is the paper's"
    )
    parser.add_argument("--features-epochs", type=int, default=Recipe.epochs)
    parser.add_argument(
        "--no-bf16",
        dest="bf16",
        action="store_false",
        help="all in float32: faster on a CPU without AVX-512",
    )
    parser.add_argument(
        "--limit-seconds",
        type=float,
        default=600,
        help="of sampling for a row of ce, which may have no end",
    )
    parser.add_argument(
        "--runs",
        type=Path,
        default=Path("runs/generation"),
        help="where trainings and rows live, resumably",
    )
    parser.add_argument("--record", metavar="NAME", default="generation", help="the result's name")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args(argv)
    args.arms = args.arms or ([] if args.flows else list(ARMS))
    given = [item.partition("=") for item in args.flows]
    if any(not name for _, _, name in given):
        parser.error(f"--flows takes ARM=NAME, got {' '.join(args.flows)}")
    args.flows = {arm: name for arm, _, name in given}
    both = sorted(set(args.flows) & set(args.arms))
    if both or len(args.flows) < len(given):
        parser.error(
            f"an arm is trained or given once, got {', '.join(both) or ' '.join(a for a, _, _ in given)} twice"
        )
    if args.samples and args.samples < 2:
        parser.error(f"--samples must be at least 2, got {args.samples}")
    return args


def flows_of(
    args: argparse.Namespace, images: Images, val: Images
) -> Iterator[tuple[dict[str, Any], Path]]:
    """What is on record of a flow and its directory, one flow after the other; those not given are trained."""
    steps = [f"steps={args.steps}"] if args.steps else []
    dtype = [] if args.bf16 else ["net_dtype=float32"]
    for seed in args.seeds:
        for arm in args.arms:
            config = load_config(
                args.config, [*args.set, *steps, *dtype, *ARMS[arm], f"seed={seed}"]
            )
            out = args.runs / f"{arm}-{seed}"
            trainer = Trainer(config, images, val, out, args.device, resume=True)
            trainer.run()
            report = trainer.finish()
            about = {
                "flow": config.flow,
                "steps": trainer.steps,
                "training_seconds": trainer.seconds,
            }
            yield {"arm": arm, "seed": seed, **about, **report}, out / "flow"
    for arm, name in args.flows.items():
        directory = resolve(name)
        flow = ConditionalFlow.from_pretrained(directory).to(args.device)
        check_classes(flow, val, name)
        about = {
            "flow": Path(name).name,
            "steps": None,
            "training_seconds": flow.config.info.get("training_seconds"),
        }
        report = evaluate(flow, val)
        for seed in args.seeds:
            yield {"arm": arm, "seed": seed, **about, **report}, directory


def run(args: argparse.Namespace, images: Images, val: Images) -> dict[str, Any]:
    """Everything under `results`."""
    count = args.samples or len(images)
    recipe = Recipe(
        args.features_model,
        args.features_epochs,
        min(Recipe.batch_size, len(images)),
        bf16=args.bf16,
    )
    path = args.runs / f"features-{recipe.model}-{recipe.epochs}.pt"
    on_device = Images(
        images.levels.to(args.device), images.labels.to(args.device), images.class_names
    )
    model = feature_extractor(on_device, recipe, path)
    real, predicted = features_of(model, val.levels, args.bf16)
    held_out = (predicted == val.labels).double().mean().item()
    extractor = {**asdict(recipe), "features": real.shape[1], "held_out_accuracy": held_out}
    print(f"feature extractor: {100 * held_out:.1f}% of the validation images", flush=True)
    some = evenly(images, count)
    floor = {"images": len(some), **score(real, model, some.levels, some.labels, args.bf16)}
    made_from = digest(path.read_bytes(), images.labels, val.levels, count, args.bf16)
    flows, rows = [], []
    for about, directory in flows_of(args, images, val):
        flow = (
            ConditionalFlow.from_pretrained(directory).to(args.device).eval().requires_grad_(False)
        )
        weights, seed = (directory / WEIGHTS_NAME).read_bytes(), about["seed"]
        y = asked_labels(images, count, seed)
        own = []
        for temperature, mean_scale in settings_of(flow, args.temperatures, args.mean_scales):
            kept = (
                args.runs
                / "rows"
                / f"{digest(made_from, weights, temperature, mean_scale, seed)}.json"
            )
            if kept.exists():
                row = json.loads(kept.read_text(encoding="utf-8"))
            else:
                row = row_of(
                    flow,
                    y,
                    temperature,
                    mean_scale,
                    seed,
                    args.limit_seconds,
                    real,
                    model,
                    args.bf16,
                )
                if not row["error"]:  # which another limit may mend
                    text = json.dumps(row, allow_nan=False)
                    write_atomically(
                        kept, lambda p, text=text: p.write_text(text, encoding="utf-8")
                    )
            own.append({"arm": about["arm"], "seed": seed, **row})
            print(markdown_table(table([own[-1]])).splitlines()[-1], flush=True)
        timing = speed(flow, y[:BATCH], args.threads)
        flows.append(
            about
            | {"bits": flow.config.bits}
            | timing
            | training_set_time(timing["images_per_s"], own, len(images))
        )
        rows += own
    return {"feature_extractor": extractor, "floor": floor, "flows": flows, "rows": rows}


def table(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Cells, the header first."""
    cells = [
        [
            "arm",
            "seed",
            "temperature",
            "mean scale",
            "FID",
            "Coverage",
            "class accuracy",
            "left out",
        ]
    ]
    for r in rows:
        if r["error"]:
            scores = ["-", "-", "-"]
        else:
            scores = [
                f"{r['fid']:.2f}",
                f"{100 * r['coverage']:.1f}%",
                f"{100 * r['class_accuracy']:.1f}%",
            ]
        setting = [f"{r['temperature']:g}", f"{r['mean_scale']:g}"]
        cells.append(
            [r["arm"], str(r["seed"]), *setting, *scores, r["error"] or str(r["non_finite"])]
        )
    return cells


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    if args.device == "cpu" and argv is None:
        pin_threads(args.threads)
    torch.set_num_threads(args.threads)
    c = load_config(args.config, args.set)
    images, val = load_data(
        c.data, args.data_dir, c.image_size, c.in_chans, c.val_fraction, c.skip_unreadable
    )
    if val is None or c.in_chans != 3:
        raise SystemExit(
            f"{args.data_dir}: expected RGB images in train/ and val/; the reference are the validation images"
        )
    results = run(args, images, val)
    settings = {
        k: v for k, v in vars(args).items() if k not in ("data_dir", "flows", "runs", "record")
    }
    payload = {
        "benchmark": "generation",
        "command": command_line("benchmarks.generation.generation", argv),
        "data": f"{c.data_name or c.data}: {len(images)} training images, {len(val)} validation images",
        "seeds": args.seeds,
        "environment": environment(["torchmetrics", "scikit-learn"]),
        "settings": settings | {"samples": args.samples or len(images), "batch_size": c.batch_size},
        "results": results,
    }
    write_result(args.record, payload)
    print(
        f"\n{markdown_table(table(results['rows']))}\n\nwritten to benchmarks/results/{args.record}.json"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
