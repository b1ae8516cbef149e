"""The flags of a timm train.py that touch its images or labels, and what changes their meaning with NFA."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass
class Case:
    flags: str  # as one would type them
    note: str = ""  # what changes its meaning with NFA
    few: bool = False  # also of further versions
    distributed: bool = False


CASES = [
    Case("", few=True),
    Case("--aa rand-m9-mstd0.5-inc1", "runs before NFA"),
    Case("--aa augmix-m5-w4-d2", "runs before NFA"),
    Case(
        "--color-jitter 0.4 --color-jitter-prob 0.8 --grayscale-prob 0.2 --gaussian-blur-prob 0.2",
        "run before NFA",
    ),
    Case(
        "--scale 0.5 1 --ratio 0.8 1.2 --hflip 0.5 --vflip 0.5 --train-interpolation bicubic",
        "run before NFA",
    ),
    Case("--train-crop-mode rkrc", "runs before NFA"),
    Case("--no-aug", "NFA is off too"),
    Case(
        "--mixup 0.8",
        "leaves the loader's workers for the main process and runs after NFA",
        few=True,
    ),
    Case(
        "--mixup 0.8 --cutmix 1.0 --mixup-prob 0.8 --mixup-switch-prob 0.3 --mixup-mode pair",
        "as --mixup",
    ),
    Case("--cutmix 1.0 --mixup-mode elem", "as --mixup"),
    Case("--cutmix-minmax 0.2 0.8", "as --mixup"),
    Case(
        "--mixup 0.8 --mixup-mode half",
        "exists only in timm's collate function, before which no NFA can be",
    ),
    Case(
        "--mixup 0.8 --mixup-off-epoch 1 --epochs 2",
        "works with the prefetcher and workers too, where stock timm mixes on",
    ),
    Case(
        "--reprob 0.5 --remode pixel --recount 2",
        "runs after NFA, and after mixup with the prefetcher; on the batch, where stock timm erases image by image without it",
        few=True,
    ),
    Case("--reprob 0.5 --mixup 0.8", "as both"),
    Case("--smoothing 0.2"),
    Case("--bce-loss --bce-target-thresh 0.2 --mixup 0.2", "as --mixup"),
    Case(
        "--aug-splits 3 --jsd-loss --aa rand-m9-mstd0.5-inc1",
        "NFA leaves the first, clean split alone",
        few=True,
    ),
    Case(
        "--aug-splits 3 --split-bn --resplit --reprob 0.5",
        "NFA and erasing leave the first split alone",
    ),
    Case(
        "--aug-repeats 3",
        "two processes; ranks and repeats are moved differently",
        distributed=True,
    ),
    Case("--dist-bn reduce", "two processes", distributed=True, few=True),
    Case("--batch-size 25 --grad-accum-steps 2"),
    Case("--channels-last"),
    Case("--amp --amp-dtype bfloat16"),
    Case("--model-dtype bfloat16", "images are augmented in float32 and come back as bfloat16"),
    Case("--torchcompile aot_eager", "compiles the model; NFA stays outside"),
    Case("--model-ema --clip-grad 1.0"),
    Case(
        "--img-size 96",
        "larger than the flow's images: the change is made at the flow's size and brought up",
    ),
    Case("--input-size 3 40 56", "as --img-size"),
    Case(
        "--in-chans 1 --input-img-mode L",
        "linear takes any number of channels, other flows their own",
    ),
    Case("--mean 0.1 0.2 0.3 --std 0.3 0.2 0.4 --crop-pct 0.9"),
    Case(
        "--train-img-sizes 32 48 --train-size-schedule progressive --epochs 2",
        "as --img-size, batch by batch",
    ),
    Case("--use-multi-epochs-loader --epochs 2", "hides its epochs from the workers"),
    Case("--epoch-repeats 2"),
    Case("--start-epoch 1 --epochs 2", "draws the numbers of its own epochs"),
    Case("--worker-seeding part --workers 2 --pin-mem"),
    Case(
        "--naflex-loader --model naflexvit_base_patch16_gap --naflex-train-seq-lens 16 --naflex-max-seq-len 16",
        "its batches are patches",
    ),
]
# flags that every case has without naming them
ALSO = (
    "--data-dir",
    "--no-prefetcher",
    "--seed",
    "--lr",
    "--device",
    "--output",
    "--log-interval",
    "--checkpoint-hist",
)


def flag_names(text: str) -> set[str]:
    """Finds the long flags in a command line."""
    return set(re.findall(r"--[a-z][a-z-]*", text))


def named_flags() -> set[str]:
    """Lists every flag that some case has."""
    return flag_names(" ".join(case.flags for case in CASES)) | set(ALSO)
