"""The paired differences that the pages quote, so that prose too comes from the record.

`QUOTED` holds those of the prose (table `cifar_quoted`): a test asks that every ``1.2 ± 0.8``
outside of the tables is one of them, so that quoting a new one means adding it here. `WINS` and
`LOSSES` are the two tables of benchmarks/README.md.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from benchmarks.cifar import comparison
from benchmarks.core.common import markdown_table

CIFAR, TINY = "CIFAR-10 (JPEG)", "Tiny ImageNet (100 classes)"
CLASSES = {CIFAR: 10, TINY: 100}
NETWORKS = {"resnet10_quarter": "quarter-width ResNet10", "resnet18": "ResNet18"}
MEASURES = {
    "top1": "top-1, points",
    "corrupted_top1": "top-1 under corruptions, points",
    "ece": "ECE, points (lower is better)",
    "nll": "NLL, nats (lower is better)",
}


@dataclass(frozen=True)
class Cell:
    """What a difference is measured in: a dataset, a share of it, a network and a length of training."""

    data: str
    fraction: float
    epochs: int
    bf16: bool = True
    model: str = "resnet10_quarter"
    tuned: bool = False  # fine-tuned from weights of another dataset


@dataclass(frozen=True)
class Difference:
    """`arm` less `other`, by the labels of `comparison.label`, paired by seed."""

    cell: Cell
    arm: str
    other: str
    measure: str = "top1"
    other_epochs: int | None = None  # if not those of the cell


FEW, FEW32 = Cell(CIFAR, 0.01, 120), Cell(CIFAR, 0.01, 120, bf16=False)
LONG, TUNED = Cell(CIFAR, 0.01, 480), Cell(CIFAR, 0.01, 60, bf16=False, tuned=True)
MIDDLE, MANY = Cell(CIFAR, 0.05, 96), Cell(CIFAR, 0.1, 48)
HUNDRED = Cell(TINY, 0.1, 24)
BIG, WHOLE = (Cell(CIFAR, f, e, model="resnet18") for f, e in ((0.1, 120), (1.0, 30)))

UNLABELLED = ", conv_p4_small.cifar10_jpeg_unlabelled"
GLEM = ", conv_p4_tiny_glem.cifar10_jpeg"
PIXELS = ", linear.cifar10_jpeg_unlabelled"
DEEP = ", resnet_ms3_4x48.cifar10_jpeg_unlabelled"
BUNDLED, OWN = ", conv_p4_small.cifar10_jpeg", ", train:conv_p4_small.cifar10_jpeg_few"
HALF, ONE = "s0.5-k32-p0.5", "s1-k32-p0.5"
BEFORE, SHRUNK = f"{ONE} before the crop", f"{ONE} shrinkage 100 before the crop"
HALF_100, ONE_100 = f"{HALF} shrinkage 100", f"{ONE} shrinkage 100"

QUOTED = [
    Difference(LONG, f"trivial+linear {HALF_100}", "trivial"),
    Difference(LONG, f"glem {SHRUNK}{BUNDLED}", f"linear {SHRUNK}"),
    Difference(LONG, f"glem {SHRUNK}{BUNDLED}", f"linear {SHRUNK}", "corrupted_top1"),
    Difference(LONG, f"glem {SHRUNK}{OWN}", f"linear {SHRUNK}"),
    Difference(LONG, f"glem {SHRUNK}{OWN}", f"linear {SHRUNK}", "corrupted_top1"),
    Difference(LONG, f"glem {SHRUNK}{OWN}", f"linear {ONE}", "corrupted_top1"),
    Difference(LONG, f"sa+linear {HALF}", "sa"),
    Difference(FEW, f"sa+linear {HALF}", "sa"),
    Difference(FEW32, f"sa+linear {HALF_100}", "sa"),
    Difference(FEW32, f"linear {HALF_100}", "baseline"),
    Difference(FEW32, f"linear {SHRUNK}", f"linear {HALF_100}"),
    Difference(FEW32, f"linear {SHRUNK}", f"linear {BEFORE}"),
    Difference(FEW32, f"own-modes {BEFORE}{PIXELS}", f"linear {SHRUNK}"),
    Difference(FEW32, f"own-modes {BEFORE}{PIXELS}", f"linear {BEFORE}"),
    Difference(FEW32, f"own-modes {BEFORE}, linear.cifar10_jpeg", f"linear {BEFORE}"),
    Difference(FEW32, f"own-modes {BEFORE}{GLEM}", f"linear {BEFORE}"),
    Difference(FEW32, f"ce {BEFORE}, conv_p4_tiny_ce.cifar10_jpeg", f"linear {BEFORE}"),
    Difference(FEW32, f"linear {BEFORE}", f"glem {BEFORE}{GLEM}"),
    Difference(FEW32, f"linear {SHRUNK}", f"glem {SHRUNK}{GLEM}"),
    Difference(FEW32, f"linear {BEFORE}", f"deep {BEFORE}{DEEP}"),
    Difference(FEW, f"glem {BEFORE}{UNLABELLED}", f"glem {ONE}{UNLABELLED}"),
    Difference(FEW, f"glem {BEFORE}{UNLABELLED}", "baseline", other_epochs=480),
    Difference(FEW, f"linear {BEFORE}", "baseline", other_epochs=480),
    Difference(FEW, f"linear {ONE}", "baseline", other_epochs=480),
    Difference(FEW32, f"cutmix+linear {HALF_100}", "cutmix"),
    Difference(FEW32, f"cutmix+linear {ONE_100}", "cutmix"),
    Difference(FEW32, f"cutmix+linear {HALF_100}", f"linear {HALF_100}"),
    Difference(FEW32, f"cutmix+linear {ONE_100}", f"linear {SHRUNK}"),
    Difference(FEW, f"cutmix+linear {ONE_100}", "cutmix"),
    Difference(FEW, f"cutmix+linear {ONE_100}", f"linear {ONE}"),
    Difference(MIDDLE, f"cutmix+linear {HALF_100}", "cutmix"),
    Difference(MIDDLE, f"cutmix+linear {HALF_100}", f"linear {HALF}"),
    Difference(MANY, f"cutmix+linear {HALF_100}", "cutmix"),
    Difference(MANY, f"cutmix+linear {HALF_100}", f"linear {HALF}"),
    Difference(MANY, f"linear {HALF}", f"glem {HALF} before the crop{UNLABELLED}"),
    Difference(FEW, f"linear {ONE}", "baseline"),
    Difference(FEW, f"linear-pooled {ONE}", "baseline"),
    Difference(FEW, f"linear-pooled {ONE}", f"linear {ONE}"),
    Difference(FEW, f"linear-pooled {ONE}", f"linear {ONE}", "ece"),
    Difference(HUNDRED, f"linear-pooled {ONE}", f"linear {ONE}"),
    Difference(HUNDRED, f"linear-pooled {ONE}", f"linear {ONE}", "ece"),
    Difference(HUNDRED, f"linear {HALF}", "baseline"),
]
WINS = [
    Difference(FEW, f"linear {ONE}", "baseline"),
    Difference(FEW, f"linear-pooled {ONE}", "baseline"),
    Difference(LONG, f"linear {ONE}", "baseline"),
    Difference(MIDDLE, f"linear {HALF}", "baseline"),
    Difference(FEW, f"linear {ONE}", "sa"),
    Difference(FEW, f"linear {ONE}", "trivial"),
    Difference(FEW, f"linear {ONE}", "cutmix"),
    Difference(MANY, f"linear {HALF}", "sa"),
    Difference(LONG, f"sa+linear {HALF}", "sa"),
    Difference(LONG, f"trivial+linear {HALF_100}", "trivial"),
    Difference(FEW, f"cutmix+linear {ONE_100}", "cutmix"),
    Difference(FEW, f"cutmix+linear {ONE_100}", "cutmix", "ece"),
    Difference(FEW, f"linear {ONE}", "baseline", "ece"),
    Difference(MIDDLE, f"linear {HALF}", "baseline", "ece"),
    Difference(FEW, f"linear-pooled {ONE}", f"linear {ONE}", "ece"),
    Difference(HUNDRED, f"linear-pooled {ONE}", f"linear {ONE}", "ece"),
    Difference(FEW, f"linear {ONE}", "baseline", "corrupted_top1"),
    Difference(LONG, f"glem {SHRUNK}{OWN}", f"linear {SHRUNK}", "corrupted_top1"),
    Difference(WHOLE, f"glem {HALF_100} before the crop{BUNDLED}", "baseline"),
]
LOSSES = [
    Difference(HUNDRED, f"linear {HALF}", "baseline"),
    Difference(HUNDRED, f"glem {HALF} before the crop{UNLABELLED}", "baseline"),
    Difference(MANY, f"linear {HALF}", "baseline"),
    Difference(MANY, f"linear {ONE}", "baseline"),
    Difference(WHOLE, f"linear {HALF_100}", "baseline"),
    Difference(LONG, f"linear {ONE}", "sa"),
    Difference(TUNED, f"linear {HALF}", "sa"),
    Difference(TUNED, f"sa+linear {HALF}", "sa"),
    Difference(FEW, f"sa+linear {HALF}", "sa"),
    Difference(MIDDLE, f"sa+linear {HALF}", "sa"),
    Difference(MANY, f"sa+linear {HALF}", "sa"),
    Difference(BIG, f"linear {HALF_100}", "sa"),
    Difference(BIG, f"linear {HALF_100}", "trivial"),
    Difference(WHOLE, f"sa+linear {HALF_100}", "sa"),
    Difference(FEW, f"cutmix+linear {ONE_100}", f"linear {ONE}"),
    Difference(FEW, f"glem {ONE}{UNLABELLED}", f"linear {ONE}"),
    Difference(FEW32, f"glem {SHRUNK}{GLEM}", f"linear {SHRUNK}"),
    Difference(FEW, f"linear {ONE}", "sa", "ece"),
    Difference(MIDDLE, f"linear {HALF}", "cutmix", "ece"),
    Difference(MANY, f"linear {HALF}", "cutmix", "ece"),
    Difference(MANY, f"linear {HALF}", "sa", "ece"),
    Difference(HUNDRED, f"linear {HALF}", "cutmix", "ece"),
    Difference(HUNDRED, f"linear {HALF}", "sa", "ece"),
    Difference(LONG, f"linear {ONE}", "sa", "nll"),
    Difference(LONG, f"linear {ONE}", "sa", "corrupted_top1"),
    Difference(MIDDLE, f"linear {HALF}", "sa", "corrupted_top1"),
    Difference(MIDDLE, f"linear {HALF}", "trivial", "corrupted_top1"),
    Difference(BIG, f"linear {HALF_100}", "sa", "corrupted_top1"),
    Difference(HUNDRED, f"linear-pooled {ONE}", "baseline", "corrupted_top1"),
]

# what readers call the arms of the two tables
NAMES = {
    "baseline": "crop and flip",
    "sa": "RandAugment + RandomErasing",
    "trivial": "TrivialAugment",
    "cutmix": "CutMix",
    "linear": "linear NFA, class modes",
    "linear-pooled": "linear NFA, pooled modes",
    "sa+linear": "RandAugment + RandomErasing + linear NFA",
    "trivial+linear": "TrivialAugment + linear NFA",
    "cutmix+linear": "CutMix + linear NFA",
}
# objective and images of the flows that run under the arm `glem`
FLOWS = {
    GLEM: "NFA by a flow trained by `glem` on all images and labels",
    BUNDLED: "NFA by the bundled flow, trained by `joint` on all images and labels",
    OWN: "NFA by a flow trained by `joint` on the run's own images",
    UNLABELLED: "NFA by a flow trained by `joint` on all images of CIFAR-10 (JPEG), no labels",
}


def runs_of(runs: list[dict[str, Any]], d: Difference) -> tuple[comparison.Runs, comparison.Runs]:
    """The runs of both sides by seed.

    Raises:
        KeyError: no run on record is of such an arm.
    """
    own, base = {}, {}
    for (data, _, fraction, recipe), arms in comparison.comparisons(runs).items():
        s = json.loads(recipe)
        tuned = s["init"] is not None
        if Cell(data, fraction, d.cell.epochs, s["bf16"], s["model"], tuned) == d.cell:
            own |= arms.get(d.arm, {}).get(d.cell.epochs, {})
            base |= arms.get(d.other, {}).get(d.other_epochs or d.cell.epochs, {})
    if not own.keys() & base.keys():
        raise KeyError(f"no seed on record has both {d.arm} and {d.other} in {d.cell}")
    return own, base


def table(runs: list[dict[str, Any]]) -> str:
    """A line for each of `QUOTED`, with the labels of the record."""
    rows = [["data", "images", "epochs", "arm", "less", "difference", "seeds"]]
    for d in QUOTED:
        own, base = runs_of(runs, d)
        what = {"top1": "", "corrupted_top1": " corrupted", "ece": " ECE"}[d.measure]
        rows.append([
            d.cell.data,
            f"{next(iter(own.values()))['training_images']:,}",
            f"{d.cell.epochs}{'' if d.cell.bf16 else ', float32'}",
            d.arm,
            f"{d.other}, {d.other_epochs} epochs" if d.other_epochs else d.other,
            _gain(own, base, d.measure) + what,
            str(len(own.keys() & base.keys())),
        ])  # fmt: skip
    return markdown_table(rows)


def verdicts(runs: list[dict[str, Any]], differences: list[Difference]) -> str:
    """A line for each difference, with the cell that it is of."""
    head = ["data", "images per class", "network", "epochs", "what", "over", "measure", "over has"]
    rows = [[*head, "difference", "seeds"]]
    for d in differences:
        own, base = runs_of(runs, d)
        images = next(iter(own.values()))["training_images"] // CLASSES[d.cell.data]
        its = fmean(v for s, v in comparison.metric(base, d.measure).items() if s in own)
        network = NETWORKS[d.cell.model] + ", fine-tuned" * d.cell.tuned
        rows.append([
            d.cell.data, f"{images:,}", network, str(d.cell.epochs), readable(d.arm), readable(d.other),
            MEASURES[d.measure], f"{its:.1f}" if d.measure != "nll" else f"{its:.2f}",
            _gain(own, base, d.measure), str(len(own.keys() & base.keys())),
        ])  # fmt: skip
    return markdown_table(rows)


def readable(label: str) -> str:
    """The name that readers know an arm by, with the strength where it is not the default 0.5."""
    arm, _, settings = label.partition(" ")
    flow = next((text for end, text in FLOWS.items() if label.endswith(end)), None)
    name = flow if arm == "glem" and flow else NAMES[arm]
    return name + ", strength 1" * settings.startswith("s1-")


def _gain(own: comparison.Runs, base: comparison.Runs, measure: str) -> str:
    return comparison.gain(comparison.metric(own, measure), comparison.metric(base, measure))
