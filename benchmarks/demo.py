"""The demonstration behind ``make demo``: a small timm classifier with no augmentation, RandAugment, and NFA.

Without data it runs on the scikit-learn digits; with ``--data-dir`` on an ImageFolder tree of CIFAR's classes, with the
bundled CIFAR flow and a few images of each class. Everything goes through timm's own `create_loader`. Prints the table,
and writes it with a preview of the augmentation to demo/.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import timm
import torch
from PIL import Image
from timm.data import create_loader
from timm.utils import random_seed
from torch import nn
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional as TF

from benchmarks.core.common import command_line, environment, write_result
from timm_nfaug._utils.files import write_atomically
from timm_nfaug.augment import NFAugment
from timm_nfaug.integration import loader_factory
from timm_nfaug.integration.pillow import guard_posterize
from timm_nfaug.preview import preview_augmentation
from train_flow.data import Images, load_data

RANDAUGMENT = "rand-m9-mstd0.5-inc1"


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


def first_of_each_class(data: Images, count: int) -> Images:
    picks = [
        torch.nonzero(data.labels == k).flatten()[:count] for k in range(len(data.class_names))
    ]
    return data.subset(torch.cat(picks))


def make_model(channels: int, classes: int) -> nn.Module:
    """timm's smallest ResNet with the stem that small images need: 3x3, stride 1, no pooling."""
    model = timm.create_model("test_resnet", in_chans=channels, num_classes=classes)
    model.conv1 = nn.Conv2d(channels, model.bn1.num_features, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return model


def train_once(
    train: Images,
    val: Images,
    policy: str | None,
    augment: NFAugment | None,
    epochs: int,
    seed: int,
    flip: float,
):
    """Trains one classifier; returns its accuracy on `val` and the seconds of training."""
    random_seed(seed)  # timm's augmentations draw from Python's and numpy's generators too
    size = tuple(train.levels.shape[1:])
    common = {
        "input_size": size, "batch_size": 64, "mean": (0.5,) * size[0], "std": (0.25,) * size[0], "num_workers": 0,
        "device": torch.device("cpu"), "persistent_workers": False, "crop_pct": 1.0,
    }  # fmt: skip
    factory = create_loader if augment is None else loader_factory(create_loader, augment, seed)
    crop = (0.7, 1.0) if flip else (1.0, 1.0)
    loader = factory(
        PilImages(train), is_training=True, scale=crop, ratio=(1.0, 1.0), hflip=flip, color_jitter=0.0,
        auto_augment=policy, **common,
    )  # fmt: skip
    test_loader = create_loader(PilImages(val), **common)
    model = make_model(size[0], len(train.class_names))
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
    return correct / len(val), seconds


def run(
    data_dir: str | None,
    per_class: int,
    epochs: int,
    seeds: list[int],
    strength: float,
    p: float,
    out: Path,
) -> tuple[str, dict[str, list[dict[str, float]]]]:
    """All arms; returns the table and the accuracy (percent) and seconds of every run."""
    if data_dir is None:
        train, val = load_data("digits")
        what, flow = "scikit-learn digits", "conv_p4_tiny.digits"
        flip = 0.0
        note = (
            f"{len(train)} training images, the ones {flow} was trained on; {len(val)} test images."
        )
    else:
        train, val = load_data("folder", data_dir, image_size=32)
        if val is None:
            raise SystemExit(
                f"{data_dir} has no val/ folder beside train/; the demonstration tests on it"
            )
        train, val = first_of_each_class(train, per_class), first_of_each_class(val, 200)
        what, flow = str(Path(data_dir).name), "conv_p4_small.cifar10_jpeg"
        flip = 0.5
        note = (
            f"{len(train)} training images ({per_class} a class), {len(val)} test images. {flow} was trained on all 50,000 "
            "training images of CIFAR-10 (JPEG) with their labels, so its row knows more than the others."
        )
    guard_posterize()
    arms: list[tuple[str, str | None, NFAugment | None]] = [
        ("no augmentation", None, None),
        (f"timm RandAugment ({RANDAUGMENT})", RANDAUGMENT, None),
    ]
    deep = NFAugment.from_pretrained(flow, strength=strength, p=p)
    if deep.flow.config.class_names != train.class_names:
        raise SystemExit(
            f"the bundled flow knows {deep.flow.config.class_names}, {data_dir} has {train.class_names}"
        )
    arms.append(
        (f"NFA linear, fitted here (s{strength:g}-p{p:g})", None, fitted_linear(train, strength, p))
    )
    arms.append((f"NFA {flow} (s{strength:g}-p{p:g})", None, deep))
    found: dict[str, list[dict[str, float]]] = {}
    lines = [
        f"| {what} | test accuracy, mean of {len(seeds)} | each | seconds |",
        "| --- | --- | --- | --- |",
    ]
    for title, policy, augment in arms:
        results = [train_once(train, val, policy, augment, epochs, seed, flip) for seed in seeds]
        accuracy = [100 * a for a, _ in results]
        found[title] = [{"accuracy": 100 * a, "seconds": s} for a, s in results]
        each = ", ".join(f"{a:.1f}" for a in accuracy)
        mean, seconds = statistics.mean(accuracy), statistics.mean(s for _, s in results)
        lines.append(f"| {title} | {mean:.1f}% | {each} | {seconds:.0f} |")
        print(lines[-1], flush=True)
    table = "\n".join(lines) + f"\n\n{note}\n"
    write_atomically(out / "table.md", lambda p: p.write_text(table, encoding="utf-8"))
    shown = first_of_each_class(val, 1)
    pairs = [(TF.to_pil_image(x), int(y)) for x, y in zip(shown.levels, shown.labels, strict=True)]
    sheet = preview_augmentation(deep.flow, pairs, [0.25, 0.5, 1.0])
    write_atomically(out / "preview.png", lambda p: sheet.save(p, format="PNG"))
    return table, found


def fitted_linear(train: Images, strength: float = 0.5, p: float = 0.5) -> NFAugment:
    """Eigen-images of these classes, without any training."""
    images, classes = [(train.levels, train.labels)], len(train.class_names)
    augment = NFAugment.from_data(
        images, classes, tuple(train.levels.shape[1:]), strength=strength, p=p
    )
    augment.flow.config.class_names = train.class_names
    return augment


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.demo", description=__doc__.split("\n")[0]
    )
    parser.add_argument(
        "--data-dir",
        help="ImageFolder tree (train/, val/) of CIFAR-10's classes; without it the digits",
    )
    parser.add_argument(
        "--per-class", type=int, default=100, help="training images a class of --data-dir"
    )
    parser.add_argument("--epochs", type=int, help="default: 20 for the digits, 30 for --data-dir")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--strength", type=float, default=0.5)
    parser.add_argument("--p", type=float, default=0.5)
    parser.add_argument("--record", metavar="NAME", help="also write benchmarks/results/NAME.json")
    parser.add_argument(
        "--data-name", default="scikit-learn digits", help="how --record calls the data"
    )
    parser.add_argument("--out", type=Path, default=Path("demo"))
    args = parser.parse_args()
    epochs = args.epochs or (20 if args.data_dir is None else 30)
    table, found = run(
        args.data_dir, args.per_class, epochs, args.seeds, args.strength, args.p, args.out
    )
    print(f"\n{table}")
    if args.record:
        payload = {
            "benchmark": "demo",
            "command": command_line("benchmarks.demo"),
            "data": args.data_name + ": " + table.strip().rpartition("\n")[2],
            "seeds": args.seeds,
            "environment": environment(),
            "settings": {
                "epochs": epochs,
                "strength": args.strength,
                "p": args.p,
                "per_class": args.per_class,
            },
            "results": found,
        }
        write_result(args.record, payload)
    print(f"wrote {args.out / 'table.md'} and {args.out / 'preview.png'}")


if __name__ == "__main__":
    main()
