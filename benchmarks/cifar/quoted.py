"""The paired differences that the prose of the documents quotes, so that they too come from the record.

The table `cifar_quoted` of benchmarks/README.md shows them all; a test asks that every interval in the prose of README.md and of
benchmarks/README.md (``1.2 ± 0.8``) is one of them. Quoting a new one means adding its pair here.
"""

from __future__ import annotations

import json
from typing import Any

from benchmarks.cifar import comparison
from benchmarks.core.common import markdown_table

CIFAR, MODEL = "CIFAR-10 (JPEG)", "resnet10_quarter"
ALL, FEW, NONE = (
    ", conv_p4_small.cifar10_jpeg_unlabelled",
    ", conv_p4_tiny_glem.cifar10_jpeg",
    ", linear.cifar10_jpeg_unlabelled",
)
BEFORE, SHRUNK = "s1-k32-p0.5 before the crop", "s1-k32-p0.5 shrinkage 100 before the crop"
LONG = 0.01, 480, True
# fraction, epochs, whether in bfloat16, arm, less which other (@ its epochs, if others), as `comparison.label` has them, and the
# metric, if not top-1
QUOTED = [
    (*LONG, "trivial+linear s0.5-k32-p0.5 shrinkage 100", "trivial"),
    (*LONG, f"glem {SHRUNK}, conv_p4_small.cifar10_jpeg", f"linear {SHRUNK}"),
    (*LONG, f"glem {SHRUNK}, conv_p4_small.cifar10_jpeg", f"linear {SHRUNK}", "corrupted_top1"),
    (*LONG, f"glem {SHRUNK}, train:conv_p4_small.cifar10_jpeg_few", f"linear {SHRUNK}"),
    (*LONG, f"glem {SHRUNK}, train:conv_p4_small.cifar10_jpeg_few", f"linear {SHRUNK}", "corrupted_top1"),
    (0.01, 480, True, "sa+linear s0.5-k32-p0.5", "sa"),
    (0.01, 120, True, "sa+linear s0.5-k32-p0.5", "sa"),
    (0.01, 120, False, "sa+linear s0.5-k32-p0.5 shrinkage 100", "sa"),
    (0.01, 120, False, "linear s0.5-k32-p0.5 shrinkage 100", "baseline"),
    (0.01, 120, False, f"linear {SHRUNK}", "linear s0.5-k32-p0.5 shrinkage 100"),
    (0.01, 120, False, f"linear {SHRUNK}", f"linear {BEFORE}"),
    (0.01, 120, False, f"own-modes {BEFORE}{NONE}", f"linear {SHRUNK}"),
    (0.01, 120, False, f"own-modes {BEFORE}{NONE}", f"linear {BEFORE}"),
    (0.01, 120, False, f"own-modes {BEFORE}, linear.cifar10_jpeg", f"linear {BEFORE}"),
    (0.01, 120, False, f"own-modes {BEFORE}{FEW}", f"linear {BEFORE}"),
    (0.01, 120, False, f"ce {BEFORE}, conv_p4_tiny_ce.cifar10_jpeg", f"linear {BEFORE}"),
    (0.01, 120, False, f"linear {BEFORE}", f"glem {BEFORE}{FEW}"),
    (0.01, 120, False, f"linear {SHRUNK}", f"glem {SHRUNK}{FEW}"),
    (0.01, 120, False, f"linear {BEFORE}", f"deep {BEFORE}, resnet_ms3_4x48.cifar10_jpeg_unlabelled"),
    (0.01, 120, True, f"glem {BEFORE}{ALL}", f"glem s1-k32-p0.5{ALL}"),
    (0.01, 120, True, f"glem {BEFORE}{ALL}", "baseline@480"),
    (0.01, 120, True, f"linear {BEFORE}", "baseline@480"),
    (0.01, 120, True, "linear s1-k32-p0.5", "baseline@480"),
    (0.01, 120, False, "cutmix+linear s0.5-k32-p0.5 shrinkage 100", "cutmix"),
    (0.01, 120, False, "cutmix+linear s1-k32-p0.5 shrinkage 100", "cutmix"),
    (0.01, 120, False, "cutmix+linear s0.5-k32-p0.5 shrinkage 100", "linear s0.5-k32-p0.5 shrinkage 100"),
    (0.01, 120, False, "cutmix+linear s1-k32-p0.5 shrinkage 100", f"linear {SHRUNK}"),
    (0.01, 120, True, "cutmix+linear s1-k32-p0.5 shrinkage 100", "cutmix"),
    (0.01, 120, True, "cutmix+linear s1-k32-p0.5 shrinkage 100", "linear s1-k32-p0.5"),
    (0.05, 96, True, "cutmix+linear s0.5-k32-p0.5 shrinkage 100", "cutmix"),
    (0.05, 96, True, "cutmix+linear s0.5-k32-p0.5 shrinkage 100", "linear s0.5-k32-p0.5"),
    (0.1, 48, True, "cutmix+linear s0.5-k32-p0.5 shrinkage 100", "cutmix"),
    (0.1, 48, True, "cutmix+linear s0.5-k32-p0.5 shrinkage 100", "linear s0.5-k32-p0.5"),
    (0.1, 48, True, "linear s0.5-k32-p0.5", f"glem s0.5-k32-p0.5 before the crop{ALL}"),
]  # fmt: skip


def table(runs: list[dict[str, Any]]) -> str:
    """A line for each of `QUOTED`; of `runs`, those on the test images, it takes the small network's, trained from scratch.

    Raises:
        KeyError: no run on record is of such an arm.
    """
    found = {}
    for (data, _, fraction, recipe), arms in comparison.comparisons(runs).items():
        s = json.loads(recipe)
        if (data, s["model"], s["init"]) == (CIFAR, MODEL, None):
            found[fraction, s["bf16"]] = arms
    rows = [["images", "epochs", "arm", "less", "difference", "seeds"]]
    for fraction, epochs, bf16, arm, other, *of in QUOTED:
        less, _, longer = other.partition("@")
        arms = found[fraction, bf16]
        own, base = arms[arm][epochs], arms[less][int(longer or epochs)]
        images = f"{next(iter(own.values()))['training_images']:,}"
        length = f"{epochs}{'' if bf16 else ', float32'}"
        gain, seeds = (
            comparison.gain(comparison.metric(own, *of), comparison.metric(base, *of)),
            len(own.keys() & base.keys()),
        )
        gain += " corrupted" if of else ""
        rows.append(
            [images, length, arm, f"{less}, {longer} epochs" if longer else less, gain, str(seeds)]
        )
    return markdown_table(rows)
