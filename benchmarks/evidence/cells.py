"""The cells of the evidence: which images, how many a class, which network, and which arms."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from benchmarks.cifar.quick import QuickRecipe
from benchmarks.cifar.resnet import Recipe
from benchmarks.evidence.arms import ENTRIES, LINEAR, Flow, grid
from benchmarks.finetuning.recipe import FinetuneRecipe

SEEDS = (0, 1, 2, 3, 4)  # of what is reported
SEARCH_SEED = 100  # of what is chosen: other images, another start
BASELINE = "crop-flip"
SUITE = "evidence"  # of the record
HELD = 0.1  # share of the training images that choices are made on, and no training sees

CIFAR10 = "CIFAR-10"
TAEF2 = "taef2"
LABELLED = "all training images, with labels"
JOINT = Flow("conv_p4_small.cifar10", LABELLED)
GLEM = Flow("conv_p4_small_glem.cifar10", LABELLED)
CE = Flow("conv_p4_small_ce.cifar10", LABELLED)
ML = Flow("conv_p4_small_ml.cifar10", LABELLED)
SHUFFLED = Flow(JOINT.name, "nothing: its weights are in random order")
LATENT = Flow("conv_latent_64.cifar10", "all training images, without labels", autoencoder=TAEF2)
FLOWS = {
    **dict.fromkeys(("flow-joint", "flow-joint-long", "flow-joint-after"), JOINT),
    **dict.fromkeys(("flow-joint-axes", "flow-joint-axes-far"), JOINT),
    **dict.fromkeys(("randaugment+flow", "randaugment|flow", "randaugment|flow-long"), JOINT),
    "flow-shuffled": SHUFFLED,
    **dict.fromkeys(("glem", "glem-axes", "glem-axes-far"), GLEM), "flow-ml": ML, "ce": CE, "latent-deep": LATENT,
    "latent-linear": Flow(LINEAR, "the run's own images", autoencoder=TAEF2),
}  # fmt: skip
# for images of other datasets, on which they are a pretrained network like any other
ELSEWHERE = {
    arm: flow if flow.name == LINEAR or flow is SHUFFLED
    else dataclasses.replace(flow, trained_on=f"CIFAR-10: {flow.trained_on}")
    for arm, flow in FLOWS.items()
}  # fmt: skip


# what reviews asked for after the first results
LONGER = ("randaugment-long", "flow-joint-long", "randaugment|flow-long")
CONTROLS = (
    *LONGER,
    "flow-joint-axes-far",
    "glem-axes-far",
    "flow-shuffled",
    "flow-joint-after",
    "cosine-after",
)
# ce is the paper's baseline, for its network
ARMS = tuple(arm for arm in ENTRIES if arm not in ("ce", *CONTROLS))


@dataclass(frozen=True)
class Cell:
    """One line of the comparison.

    Attributes:
        data: the name of the images.
        per_class: training images of a class; None for all.
        recipe: how the network is trained, before the tuning.
        tuning: settings of the recipe that crop and flip is tuned over.
        arms: those of `ENTRIES` that apply.
        flows: of the arms that take one, by arm.
        tuned_in: the cell whose recipe and searches serve this one, where it has none of its own.
    """

    name: str
    data: str
    per_class: int | None
    fraction: float  # of the training images
    network: str  # in words
    recipe: Any
    tuning: tuple[dict[str, float], ...] = ({},)
    arms: tuple[str, ...] = ARMS
    flows: dict[str, Flow] = field(default_factory=dict)
    seeds: tuple[int, ...] = SEEDS
    tuned_in: str = ""
    size: int = 32  # pixels at which images are read
    by_track: bool = False  # frames of one track are near-copies
    corrupted: int = 1000  # test images under every corruption

    @property
    def key(self) -> str:
        """What its tables and files are called."""
        return self.name.replace("-", "_")

    @property
    def side(self) -> int:
        """Pixels of the network's images."""
        return getattr(self.recipe, "side", self.size)


FEW = Cell(
    "cifar10-50", CIFAR10, 50, 0.01, "quick classifier of half width",
    QuickRecipe(width=32, batch_size=100, views=2),
    tuning=grid(epochs=(60, 120), max_lr=(0.2, 0.4), weight_decay=(5e-3, 1e-2, 2e-2)),
    arms=ARMS + CONTROLS, flows=FLOWS,
)  # fmt: skip
TENTH = Cell(
    "cifar10-500", CIFAR10, 500, 0.1, "quick classifier", QuickRecipe(batch_size=250),
    tuning=grid(epochs=(20, 40), max_lr=(0.2, 0.4), weight_decay=(1.3e-3, 5e-3)),
    arms=(
        "crop-flip", "crop-flip-long", "randaugment", "randaugment-some", "trivialaugment",
        "cosine", "pooled", "flow-joint", "randaugment|pooled", "randaugment|flow",
    ), flows=FLOWS, seeds=(0, 1, 2),
)  # fmt: skip
WHOLE = Cell(
    "cifar10-all", CIFAR10, None, 1.0, "quick classifier", QuickRecipe(),
    arms=tuple(a for a in TENTH.arms if a != "crop-flip-long"), flows=FLOWS, seeds=(0, 1, 2),
    tuned_in="cifar10-500",
)  # fmt: skip

FEWEST_IMAGES = Cell(
    "cifar10-10", CIFAR10, 10, 0.002, "quick classifier of half width",
    QuickRecipe(width=32, batch_size=100, views=2),
    tuning=grid(epochs=(200, 400), max_lr=(0.2, 0.4), weight_decay=(5e-3, 1e-2, 2e-2)),
    arms=TENTH.arms, flows=FLOWS,
)  # fmt: skip
TWENTIETH = Cell(
    "cifar10-250", CIFAR10, 250, 0.05, "quick classifier", QuickRecipe(batch_size=250),
    tuning=grid(epochs=(30, 60), max_lr=(0.2, 0.4), weight_decay=(1.3e-3, 5e-3, 1e-2)),
    arms=TENTH.arms, flows=FLOWS,
)  # fmt: skip

TINY = Cell(
    "tiny-50", "Tiny ImageNet (100 classes, 32 px)", 50, 0.1, "quick classifier of half width",
    QuickRecipe(width=32, batch_size=250, views=2),
    tuning=grid(epochs=(20, 40), max_lr=(0.2, 0.4), weight_decay=(1.3e-3, 5e-3)),
    arms=(
        "crop-flip", "crop-flip-long", "randaugment", "randaugment-some", "cosine", "pooled",
        "flow-joint", "flow-shuffled", "randaugment|pooled", "randaugment|flow",
    ), flows=ELSEWHERE, corrupted=0,
)  # fmt: skip
RESNET18 = Cell(
    "cifar10-resnet18", CIFAR10, None, 1.0, "ResNet18, the paper's recipe", Recipe(),
    arms=("crop-flip", "randaugment", "pooled", "cosine", "flow-joint", "glem-axes", "ce"),
    flows=FLOWS, tuned_in="cifar10-500",
)  # fmt: skip
MOBILENET = "MobileNetV2 pretrained on ImageNet, 96 px"
FINETUNE = FinetuneRecipe(weights="mobilenetv2_100", test_bf16=True)
FINETUNE_TUNING = grid(epochs=(20, 40), lr=(1e-4, 2.5e-4, 5e-4), smoothing=(0.0, 0.1))
# of four times the images
FINETUNE_MORE = grid(epochs=(10, 20), lr=(1e-4, 2.5e-4, 5e-4), smoothing=(0.0, 0.1))
FINETUNE_CIFAR10 = Cell(
    "finetune-cifar10-25", CIFAR10, 25, 0.005, MOBILENET, FINETUNE,
    tuning=FINETUNE_TUNING, flows=FLOWS, corrupted=0,
)  # fmt: skip
FINETUNE_GTSRB = Cell(
    "finetune-gtsrb-25", "GTSRB (32 px copies)", 25, 43 * 25 / 39209, MOBILENET,
    dataclasses.replace(FINETUNE, flip=False),
    tuning=FINETUNE_MORE, arms=ARMS + LONGER, flows=ELSEWHERE, by_track=True, corrupted=0,
)  # fmt: skip

ALL = (
    FEW, TINY, TENTH, WHOLE, FINETUNE_CIFAR10, FINETUNE_GTSRB, FEWEST_IMAGES, TWENTIETH, RESNET18,
)  # fmt: skip
CELLS = {cell.name: cell for cell in ALL}
