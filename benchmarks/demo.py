"""The demonstration behind ``make demo``: a small timm classifier with no augmentation, RandAugment, and NFA.

    python -m benchmarks.demo
    python -m benchmarks.demo --data-dir DIR

Claim: none; it shows the use and not the worth. Data: without arguments the scikit-learn digits,
with ``--data-dir`` an ImageFolder tree of CIFAR's classes, of which a few images of each class,
with the bundled CIFAR flow; two seeds. Everything goes through timm's own `create_loader`. Prints
the table, and writes it with a preview of the augmentation to demo/.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image
from timm.data import create_loader
from timm.utils import random_seed
from torch import nn
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional as TF

from benchmarks.core.common import command_line, environment, markdown_table, write_result
from benchmarks.core.pages import result, source
from timm_nfaug import NFAugment
from timm_nfaug._utils.files import write_atomically
from timm_nfaug.integration import loader_factory
from timm_nfaug.integration.pillow import guard_posterize
from timm_nfaug.pictures import preview_augmentation
from train_flow.data import Images, load_data

RANDAUGMENT = "rand-m9-mstd0.5-inc1"

Found = dict[str, list[dict[str, float]]]  # arm to accuracy (percent) and seconds of every run


class PilImages(Dataset):
    """Images in memory as PIL, with the `transform` that timm's loader sets."""

    def __init__(self, data: Images):
        self.images = [TF.to_pil_image(x) for x in data.levels]
        self.labels = data.labels.tolist()
        self.transform = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Image.Image, int]:
        image = self.images[i]
        return (image if self.transform is None else self.transform(image)), self.labels[i]


@dataclass
class Task:
    """The data, and the bundled flow that fits them."""

    name: str
    train: Images
    val: Images
    flow: str
    flip: float  # probability of a horizontal flip; where there is one, crops too
    note: str


def digits_task() -> Task:
    train, val = load_data("digits")
    flow = "conv_p4_tiny.digits"
    note = f"{len(train)} training images, the ones {flow} was trained on; {len(val)} test images."
    return Task("scikit-learn digits", train, val, flow, 0.0, note)


def folder_task(data_dir: str, per_class: int) -> Task:
    train, val = load_data("folder", data_dir, image_size=32)
    if val is None:
        raise SystemExit(
            f"{data_dir} has no val/ folder beside train/; the demonstration tests on it"
        )
    train, val = first_of_each_class(train, per_class), first_of_each_class(val, 200)
    flow = "conv_p4_small.cifar10"
    note = (
        f"{len(train)} training images ({per_class} a class), {len(val)} test images. {flow} was trained on all 50,000 "
        "training images of CIFAR-10 with their labels, so its row knows more than the others."
    )
    return Task(str(Path(data_dir).name), train, val, flow, 0.5, note)


def first_of_each_class(data: Images, count: int) -> Images:
    members = [torch.nonzero(data.labels == k).flatten() for k in range(len(data.class_names))]
    return data.subset(torch.cat([own[:count] for own in members]))


def make_model(channels: int, classes: int) -> nn.Module:
    """Creates timm's smallest ResNet with the stem that small images need: 3x3, stride 1, no pooling."""
    model = timm.create_model("test_resnet", in_chans=channels, num_classes=classes)
    model.conv1 = nn.Conv2d(channels, model.bn1.num_features, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return model


def make_loaders(task: Task, policy: str | None, augment: NFAugment | None, seed: int):
    """Creates timm's loaders of the training and of the test images."""
    size = tuple(task.train.levels.shape[1:])
    common = {
        "input_size": size,
        "batch_size": 64,
        "mean": (0.5,) * size[0],
        "std": (0.25,) * size[0],
        "num_workers": 0,
        "device": torch.device("cpu"),
        "persistent_workers": False,
        "crop_pct": 1.0,
    }
    crop = (0.7, 1.0) if task.flip else (1.0, 1.0)
    own = {"scale": crop, "ratio": (1.0, 1.0), "hflip": task.flip, "color_jitter": 0.0}
    factory = create_loader if augment is None else loader_factory(create_loader, augment, seed)
    images = PilImages(task.train)
    loader = factory(images, is_training=True, auto_augment=policy, **own, **common)
    return loader, create_loader(PilImages(task.val), **common)


def train_once(
    task: Task, policy: str | None, augment: NFAugment | None, epochs: int, seed: int
) -> dict[str, float]:
    """Trains one classifier; returns its accuracy on the test images in percent, and the seconds of training."""
    random_seed(seed)  # timm's augmentations draw from Python's and numpy's generators too
    loader, test_loader = make_loaders(task, policy, augment, seed)
    model = make_model(task.train.levels.shape[1], len(task.train.class_names))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=epochs * len(loader))
    start = time.perf_counter()
    for _ in range(epochs):
        model.train()
        for x, y in loader:
            loss = nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    seconds = time.perf_counter() - start
    model.eval()
    with torch.no_grad():
        correct = sum(int((model(x).argmax(1) == y).sum()) for x, y in test_loader)
    return {"accuracy": 100 * (correct / len(task.val)), "seconds": seconds}


def arms(task: Task, strength: float, p: float) -> dict[str, tuple[str | None, NFAugment | None]]:
    """Returns title to timm's policy and NFA of each arm; the last has the bundled flow."""
    deep = NFAugment.from_pretrained(task.flow, strength=strength, p=p, labels="given")
    if deep.flow.config.class_names != task.train.class_names:
        raise SystemExit(
            f"the bundled flow knows {deep.flow.config.class_names}, the images are of {task.train.class_names}"
        )
    images = [(task.train.levels, task.train.labels)]
    linear = NFAugment.from_data(
        images, input_size=tuple(task.train.levels.shape[1:]), strength=strength, p=p
    )
    own = f"(s{strength:g}-p{p:g})"
    return {
        "no augmentation": (None, None),
        f"timm RandAugment ({RANDAUGMENT})": (RANDAUGMENT, None),
        f"NFA linear, fitted here {own}": (None, linear),
        f"NFA {task.flow} {own}": (None, deep),
    }


def run(task: Task, epochs: int, seeds: list[int], strength: float, p: float, out: Path) -> Found:
    """Trains all arms; writes their table and a preview, and returns their runs."""
    guard_posterize()
    found: Found = {}
    lines = [
        f"| {task.name} | test accuracy, mean of {len(seeds)} | each | seconds |",
        "| --- | --- | --- | --- |",
    ]
    compared = arms(task, strength, p)
    for title, (policy, augment) in compared.items():
        runs = [train_once(task, policy, augment, epochs, seed) for seed in seeds]
        found[title] = runs
        mean, seconds = (statistics.mean(r[key] for r in runs) for key in ("accuracy", "seconds"))
        each = ", ".join(f"{r['accuracy']:.1f}" for r in runs)
        lines.append(f"| {title} | {mean:.1f}% | {each} | {seconds:.0f} |")
        print(lines[-1], flush=True)
    text = "\n".join(lines) + f"\n\n{task.note}\n"
    write_atomically(out / "table.md", lambda path: path.write_text(text, encoding="utf-8"))
    print(f"\n{text}")
    *_, (_, deep) = compared.values()
    shown = first_of_each_class(task.val, 1)
    pairs = [(TF.to_pil_image(x), int(y)) for x, y in zip(shown.levels, shown.labels, strict=True)]
    sheet = preview_augmentation(deep.flow, pairs, [0.25, 0.5, 1.0])
    write_atomically(out / "preview.png", lambda path: sheet.save(path, format="PNG"))
    return found


def table(found: Found) -> list[list[str]]:
    """Returns cells, a row for each arm."""
    rows = [["", "test accuracy", "each seed"]]
    for arm, runs in found.items():
        accuracy = [run["accuracy"] for run in runs]
        each = ", ".join(f"{a:.1f}" for a in accuracy)
        rows.append([arm, f"{sum(accuracy) / len(accuracy):.1f}%", each])
    return rows


def page(name: str) -> str:
    record = result(name)
    return f"{record['data']}\n\n{markdown_table(table(record['results']))}\n\n{source(name)}"


TABLES: dict[str, Callable[[], str]] = {
    "demo_digits": lambda: page("demo_digits"),
    "demo_cifar": lambda: page("demo_cifar10_jpeg"),
}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.demo", description=__doc__.split("\n")[0]
    )
    add = parser.add_argument
    tree = "ImageFolder tree (train/, val/) of CIFAR-10's classes; without it the digits"
    add("--data-dir", help=tree)
    add("--per-class", type=int, default=100, help="training images a class of --data-dir")
    add("--epochs", type=int, help="default: 20 for the digits, 30 for --data-dir")
    add("--seeds", type=int, nargs="+", default=[0, 1])
    add("--strength", type=float, default=0.5)
    add("--p", type=float, default=0.5)
    add("--record", metavar="NAME", help="also write benchmarks/results/NAME.json")
    add("--data-name", default="scikit-learn digits", help="how --record calls the data")
    add("--out", type=Path, default=Path("demo"))
    args = parser.parse_args()
    args.epochs = args.epochs or (20 if args.data_dir is None else 30)
    return args


def record(args: argparse.Namespace, note: str, found: Found) -> None:
    settings: dict[str, Any] = {k: getattr(args, k) for k in ("epochs", "strength", "p")}
    write_result(
        args.record,
        {
            "benchmark": "demo",
            "command": command_line("benchmarks.demo"),
            "data": f"{args.data_name}: {note}",
            "seeds": args.seeds,
            "environment": environment(),
            "settings": {**settings, "per_class": args.per_class},
            "results": found,
        },
    )


def main() -> None:
    args = parse()
    task = folder_task(args.data_dir, args.per_class) if args.data_dir else digits_task()
    found = run(task, args.epochs, args.seeds, args.strength, args.p, args.out)
    if args.record:
        record(args, task.note, found)
    print(f"wrote {args.out / 'table.md'} and {args.out / 'preview.png'}")


if __name__ == "__main__":
    main()
