"""The demonstration behind ``make demo``: a small timm classifier, with and without NFA, on few images.

    python -m benchmarks.demo
    python -m benchmarks.demo --data-dir DIR

Claim: none; it shows the use, and says whether these runs tell a difference from noise. Data:
without arguments the scikit-learn digits, with ``--data-dir`` an ImageFolder tree at 32 px; a few
random images of each class, others for every seed. NFA comes by the flags of a training, through
timm's own `create_loader`. Prints the table, and writes it with a preview of the augmentation to
demo/.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import timm
import torch
from PIL import Image
from timm.data import create_loader
from timm.utils import random_seed
from torch import nn
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional as TF

from benchmarks.core.common import (
    command_line,
    environment,
    markdown_table,
    require_val,
    write_result,
)
from benchmarks.core.pages import result, source
from benchmarks.core.statistics import ALPHA, Difference, compare_all
from benchmarks.evidence import tables
from timm_nfaug._utils.files import write_atomically
from timm_nfaug.integration import add_args
from timm_nfaug.integration.pillow import guard_posterize
from timm_nfaug.pictures import preview_augmentation
from timm_nfaug.train import hook
from train_flow.data import Images, load_data

RANDAUGMENT = "rand-m9-mstd0.5-inc1"
NFA = "NFA, `--aug nfa`"
DIGITS = "conv_p4_tiny.digits"

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
    """The data, and what else than `--aug nfa` is shown of NFA."""

    name: str
    pool: Images
    val: Images
    other: str  # flags of NFA
    flip: float  # probability of a horizontal flip
    per_class: int
    note: str = ""

    @property
    def words(self) -> str:
        few = f"{self.per_class * len(self.pool.class_names)} training images ({self.per_class} a class)"
        return f"{few}, {len(self.val)} test images.{self.note}"

    def images(self, seed: int) -> Images:
        """The training images of a seed."""
        order = torch.randperm(len(self.pool), generator=torch.Generator().manual_seed(seed))
        return first_of_each_class(self.pool.subset(order), self.per_class)


def digits_task(per_class: int) -> Task:
    train, val = load_data("digits")
    assert val is not None
    flags = f"--aug nfa-s0.5 --nfa-flow {DIGITS}"
    known = (
        f" {DIGITS} was trained on all {len(train):,} training images with their labels, so its row "
        "knows more."
    )
    return Task("scikit-learn digits", train, val, flags, 0.0, per_class, known)


def folder_task(data_dir: str, per_class: int) -> Task:
    train, val = load_data("folder", data_dir, image_size=32)
    val = first_of_each_class(require_val(val, data_dir), 200)
    linear = "--aug nfa-s1-p0.5 --nfa-flow linear"
    return Task(Path(data_dir).name, train, val, linear, 0.5, per_class)


def first_of_each_class(data: Images, count: int) -> Images:
    members = [torch.nonzero(data.labels == k).flatten() for k in range(len(data.class_names))]
    return data.subset(torch.cat([own[:count] for own in members]))


def make_model(channels: int, classes: int) -> nn.Module:
    """Creates timm's smallest ResNet with the stem that small images need: 3x3, stride 1, no pooling."""
    model = timm.create_model("test_resnet", in_chans=channels, num_classes=classes)
    model.conv1 = nn.Conv2d(channels, model.bn1.num_features, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return model


def make_loaders(task: Task, images: Images, policy: str | None, flags: str, seed: int):
    """Creates timm's loaders of the training images, with NFA as flags ask for it, and of the test images."""
    size = tuple(images.levels.shape[1:])
    common = {
        "input_size": size,
        "batch_size": min(64, len(images)),
        "mean": (0.5,) * size[0],
        "std": (0.25,) * size[0],
        "num_workers": 0,
        "device": torch.device("cpu"),
        "persistent_workers": False,
        "crop_pct": 1.0,
    }
    own = {"scale": (0.7, 1.0), "ratio": (1.0, 1.0), "hflip": task.flip, "color_jitter": 0.0}
    create = with_nfa(flags, size, len(images.class_names), seed)
    loader = create(PilImages(images), is_training=True, auto_augment=policy, **own, **common)
    return loader, create_loader(PilImages(task.val), **common)


def with_nfa(flags: str, size: tuple[int, ...], classes: int, seed: int) -> Callable:
    """timm's `create_loader`, as the launcher makes it of the flags of a training."""
    add_args(parser := argparse.ArgumentParser())
    own = argparse.Namespace(input_size=size, num_classes=classes, seed=seed)
    script = ModuleType("demo")
    hook(script, {"create_loader": create_loader}, parser.parse_args(flags.split(), own))
    return script.create_loader


def train_once(
    task: Task, policy: str | None, flags: str, epochs: int, seed: int
) -> dict[str, float]:
    """Trains one classifier; returns its accuracy on the test images in percent, and the seconds of training."""
    images = task.images(seed)
    random_seed(seed)  # timm's augmentations draw from Python's and numpy's generators too
    loader, test_loader = make_loaders(task, images, policy, flags, seed)
    model = make_model(images.levels.shape[1], len(images.class_names))
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


def arms(task: Task) -> dict[str, tuple[str | None, str]]:
    """Title to timm's policy and the flags of NFA of each arm."""
    return {
        "crop and flip" if task.flip else "crop": (None, ""),
        f"timm RandAugment ({RANDAUGMENT})": (RANDAUGMENT, ""),
        NFA: (None, "--aug nfa"),
        f"NFA, `{task.other}`": (None, task.other),
    }


def run(task: Task, epochs: int, seeds: list[int], out: Path) -> Found:
    """Trains all arms; writes their table and a preview, and returns their runs."""
    guard_posterize()
    found: Found = {}
    for title, (policy, flags) in arms(task).items():
        found[title] = [train_once(task, policy, flags, epochs, seed) for seed in seeds]
        mean, seconds = (
            statistics.mean(r[key] for r in found[title]) for key in ("accuracy", "seconds")
        )
        print(f"{title}: {mean:.1f}%, {seconds:.0f} s a training", flush=True)
    text = f"{task.name}: {task.words}\n\n{markdown_table(table(found))}\n\n{said(found)}\n"
    write_atomically(out / "table.md", lambda path: path.write_text(text, encoding="utf-8"))
    print(f"\n{text}")
    shown = first_of_each_class(task.val, 1)
    pairs = [(TF.to_pil_image(x), int(y)) for x, y in zip(shown.levels, shown.labels, strict=True)]
    loader, _ = make_loaders(task, task.images(seeds[0]), None, "--aug nfa", seeds[0])
    sheet = preview_augmentation(loader.augment.flow, pairs, [0.25, 0.5, 1.0], labels="none")
    write_atomically(out / "preview.png", lambda path: sheet.save(path, format="PNG"))
    return found


def differences(found: Found) -> dict[str, Difference]:
    """Each arm's difference to the first."""
    values = {arm: {i: r["accuracy"] for i, r in enumerate(runs)} for arm, runs in found.items()}
    return compare_all(values, next(iter(found)))


def table(found: Found) -> list[list[str]]:
    """Returns cells, a row for each arm."""
    base, against = next(iter(found)), differences(found)
    rows = [["", "test accuracy", f"over {base}", "each seed"]]
    for arm, runs in found.items():
        accuracy = [run["accuracy"] for run in runs]
        each = ", ".join(f"{a:.1f}" for a in accuracy)
        gain = tables.gain(against.get(arm))
        rows.append([arm, f"{statistics.mean(accuracy):.1f}%", gain, each])
    return rows


def said(found: Found) -> str:
    """What these runs say of `--aug nfa`."""
    base, default = next(iter(found)), differences(found)[NFA]
    gain = f"{tables.gain(default)} points with {default.seeds} seeds"
    if not default.p < ALPHA:  # NaN too
        return f"`--aug nfa` and {base} alone differ by no more than noise here: {gain}."
    return (
        f"`--aug nfa` is {'ahead of' if default.mean > 0 else 'behind'} {base} alone here: {gain}."
    )


def page(name: str) -> str:
    record = result(name)
    cells, found = markdown_table(table(record["results"])), said(record["results"])
    return f"{record['data']}\n\n{cells}\n\n{found}\n\n{source(name)}"


TABLES: dict[str, Callable[[], str]] = {
    "demo_digits": lambda: page("demo_digits"),
    "demo_tiny": lambda: page("demo_tiny"),
}


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.demo", description=__doc__.split("\n")[0]
    )
    add = parser.add_argument
    tree = "ImageFolder tree (train/, val/), taken at 32 px; without it the digits"
    add("--data-dir", help=tree)
    add("--per-class", type=int, default=20, help="training images")
    add("--epochs", type=int, default=40)
    add("--seeds", type=int, nargs="+", default=list(range(5)))
    add("--record", metavar="NAME", help="also write benchmarks/results/NAME.json")
    add("--data-name", default="scikit-learn digits", help="how --record calls the data")
    add("--out", type=Path, default=Path("demo"))
    return parser.parse_args(argv)


def record(args: argparse.Namespace, note: str, found: Found, argv: list[str] | None) -> None:
    write_result(
        args.record,
        {
            "benchmark": "demo",
            "command": command_line("benchmarks.demo", argv),
            "data": f"{args.data_name}: {note}",
            "seeds": args.seeds,
            "environment": environment(),
            "settings": {"epochs": args.epochs, "per_class": args.per_class},
            "results": found,
        },
    )


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    few = args.per_class
    task = folder_task(args.data_dir, few) if args.data_dir else digits_task(few)
    found = run(task, args.epochs, args.seeds, args.out)
    if args.record:
        record(args, task.words, found, argv)
    print(f"wrote {args.out / 'table.md'} and {args.out / 'preview.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
