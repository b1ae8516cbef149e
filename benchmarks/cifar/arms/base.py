"""An arm, its settings, the registry, and the combination of two arms.

An arm treats a batch by any of five parts: a policy on single PIL images, a change of uint8 batches
before the crop or after it, a step on normalised tensors (erasing, mixing), and a loss. Random
numbers come from the generator of the step or, in timm's and torchvision's parts, from the global
generators, which the training loop seeds from it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from PIL import Image
from timm.data import Mixup
from timm.data.random_erasing import RandomErasing
from torch import Tensor, nn
from torchvision.transforms import v2

import timm_nfaug as nfa
from timm_nfaug._utils.checks import check_choice
from timm_nfaug.augment import NFAugment
from timm_nfaug.change import Change
from timm_nfaug.fit import SHRINKAGE
from timm_nfaug.flows.model import ConditionalFlow
from timm_nfaug.moves import list_moves
from train_flow.data import Images

RANDAUGMENT = "rand-m9-mstd0.5-inc1"
Policy = Callable[[Image.Image], Image.Image]
LevelsStep = Callable[[Tensor, Tensor, torch.Generator], Tensor]


class NFAStep:
    """An `NFAugment` as a step on uint8 images (B, C, H, W)."""

    def __init__(self, augment: NFAugment):
        self.augment = augment

    def __call__(self, levels: Tensor, y: Tensor, g: torch.Generator) -> Tensor:
        return self.augment(levels, y, generator=g)[0]


class ClassifierChange(Change):
    """A change that asks the classifier as it stands, which `Arm.start` gives to it."""

    model: nn.Module

    @contextmanager
    def evaluated(self) -> Iterator[nn.Module]:
        """The classifier in evaluation mode: the statistics of batch norm do not learn from this."""
        self.model.eval()
        yield self.model
        self.model.train()


@dataclass
class Settings:
    """The settings of all arms; each arm names those that it uses. The defaults are NFAugment's and timm's."""

    strength: float = 0.5  # of a rotation: the largest angle, radians
    modes: int = 32
    p: float = 0.5  # probability that an image is moved
    move: str = "pca"  # of `timm_nfaug.moves.list_moves()`
    shrinkage: float = SHRINKAGE  # images, see `NFAugment.fit`
    place: str = "after"  # or "before" the crop and flip, on images as the flow knows them
    temperature: float = 0.7  # of samples
    randaugment: str = RANDAUGMENT
    reprob: float = 0.25  # probability of RandomErasing

    def __post_init__(self):
        if self.place not in ("after", "before"):
            raise ValueError(f"place must be after or before (the crop), got {self.place!r}")
        check_choice("move", self.move, list_moves())


ALWAYS = ("strength", "modes", "p", "temperature")  # on record at any value, others if not usual


class Arm:
    """No augmentation beyond crop and flip: the baseline, and what the other arms start from.

    Args:
        policy: PIL image to PIL image.
        levels: uint8 images (B, C, H, W), labels (B,), generator to uint8 images; runs after the
            policy.
        before: the same, before crop and flip.
        reprob: probability of timm's RandomErasing at the end.
        mix: timm's Mixup at the end.
    """

    name: ClassVar[str] = "baseline"
    label: ClassVar[str] = "crop and flip only"
    flow: ClassVar[str | None] = None  # the arm whose flow it uses, unless given one of its own
    on_linear: ClassVar[bool] = False  # it uses the linear flow of the run's own images
    label_band: ClassVar[bool] = False  # its flow has conditional encoding
    keeps_modes: ClassVar[bool] = False  # of its flow, instead of fitting them to the run's images
    flow_is_a_ruler: ClassVar[bool] = False  # its flow only says how far images are moved
    settings: ClassVar[tuple[str, ...]] = ()  # those of `Settings` that are on record
    only: ClassVar[tuple[str, str] | None] = None  # the only place it works in, and why

    def __init__(
        self,
        policy: Policy | None = None,
        levels: LevelsStep | None = None,
        before: LevelsStep | None = None,
        reprob: float = 0.0,
        mix: Mixup | None = None,
    ):
        self.policy, self.levels, self.before, self.mix = policy, levels, before, mix
        self.smoothing = 0.0  # of labels, as the recipe says
        self.erase = RandomErasing(reprob, mode="pixel", device="cpu") if reprob else None

    @classmethod
    def make(cls, data: Images, flow: ConditionalFlow | None, s: Settings) -> Arm:
        """The arm for training on `data`; see `make_arm`."""
        return cls()

    def start(self, model: nn.Module, steps: int) -> None:
        """Is called once before the first step; the classifier goes to the changes that ask it."""
        for step in (self.before, self.levels):
            if isinstance(step, NFAStep) and isinstance(step.augment.change, ClassifierChange):
                step.augment.change.model = model

    def take(self, data: Images, index: Tensor, g: torch.Generator) -> Tensor:
        """The uint8 images (B, C, H, W) at `index` (B,), before anything is done to them."""
        return data.levels[index]

    def images(self, levels: Tensor, y: Tensor, g: torch.Generator) -> Tensor:
        """uint8 images (B, C, H, W), cropped and under `policy` where there is one, to uint8 images."""
        return levels if self.levels is None else self.levels(levels, y, g)

    def tensors(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised images (B, C, H, W) and labels (B,) to images and labels or, if mixed, probabilities (B, K)."""
        if self.mix is not None:
            x, y = self.mix(x, y)
        if self.erase is not None:
            self.erase.device = x.device
            x = self.erase(x)
        return x, y

    def loss(self, model: nn.Module, x: Tensor, target: Tensor, step: int) -> Tensor:
        return F.cross_entropy(model(x), target, label_smoothing=self.smoothing)

    def put(self, step: LevelsStep, place: str) -> Arm:
        """Adds a step on uint8 images before the crop, or after the crop and the policy; returns the arm."""
        setattr(self, "before" if place == "before" else "levels", step)
        return self


class Moved(Arm):
    """An arm that moves images by an `NFAugment`, which can be added to another arm, too."""

    flow = "glem"
    settings = ("strength", "modes", "p", "place", "shrinkage")

    @classmethod
    def make(cls, data: Images, flow: ConditionalFlow | None, s: Settings) -> Arm:
        return cls().put(cls.step(data, flow, s), s.place)

    @classmethod
    def step(cls, data: Images, flow: ConditionalFlow, s: Settings) -> LevelsStep:
        return NFAStep(cls.augment(data, flow, s))

    @classmethod
    def augment(cls, data: Images, flow: ConditionalFlow, s: Settings) -> NFAugment:
        raise NotImplementedError


class OnLinear:
    """Put before the class of an arm: the same on the linear flow, which is fitted to the run's own images."""

    flow = None
    on_linear = True


class Combination:
    """Two arms in one: the second moves images after the policy of the first and before its mixing or erasing.

    It has the class attributes of an arm; what concerns the flow is that of the second.
    """

    def __init__(self, first: type[Arm], second: type[Moved]):
        self.first, self.second = first, second
        self.name = f"{first.name}+{second.name}"
        self.label = f"{first.label}, then {second.label}"
        self.settings = second.settings + first.settings
        self.flow, self.on_linear = second.flow, second.on_linear
        self.label_band, self.keeps_modes = second.label_band, second.keeps_modes
        self.flow_is_a_ruler, self.only = second.flow_is_a_ruler, second.only

    def make(self, data: Images, flow: ConditionalFlow | None, s: Settings) -> Arm:
        return self.first.make(data, None, s).put(self.second.step(data, flow, s), s.place)


ARMS: dict[str, type[Arm]] = {"baseline": Arm}


def register(name: str) -> Callable[[type[Arm]], type[Arm]]:
    """Makes a class an arm of this name."""

    def add(cls: type[Arm]) -> type[Arm]:
        cls.name, ARMS[name] = name, cls
        return cls

    return add


def find(name: str) -> type[Arm] | Combination:
    """The arm of a name, or the combination of two: "sa+linear".

    Raises:
        ValueError: no arm has this name, or the two cannot be combined.
    """
    parts = name.split("+")
    if unknown := [part for part in parts if part not in ARMS]:
        raise ValueError(
            f"unknown arm {unknown[0]!r}; known: {', '.join(ARMS)}, and sa+linear etc."
        )
    first, *more = (ARMS[part] for part in parts)
    if not more:
        return first
    if len(more) > 1 or first is Arm or issubclass(first, Moved) or not issubclass(more[0], Moved):
        raise ValueError(f"cannot combine {name!r}; expected a policy and a move, as in sa+linear")
    return Combination(first, more[0])


def needs_flow(name: str) -> bool:
    """Whether an arm takes a flow by name; False for names that are no arm."""
    try:
        return find(name).flow is not None
    except ValueError:
        return False


def make_arm(name: str, data: Images, flow: ConditionalFlow | None, s: Settings) -> Arm:
    """Makes an arm for training on `data`.

    Args:
        flow: of the arms that need one. Its class Gaussians and modes are estimated anew on `data`,
            so that nothing but the network knows of other images; not in the arms that keep the
            modes of their flow (`ce`, `own-modes`).

    Raises:
        ValueError: the arm is unknown, or the flow or the place does not fit it.
    """
    arm = find(name)
    if arm.only and s.place != arm.only[0]:
        raise ValueError(f"arm {name} {arm.only[1]}: --place {arm.only[0]}")
    if arm.flow and flow is None:
        raise ValueError(f"arm {name} needs a flow: --flow {arm.flow}=NAME")
    if arm.flow and arm.label_band != bool(flow.config.code_rows):
        with_or_without = "with" if arm.label_band else "without"
        raise ValueError(
            f"arm {name} takes a flow {with_or_without} conditional encoding (code_rows)"
        )
    if arm.on_linear:
        flow = nfa.create_flow("linear", input_size=tuple(data.levels.shape[1:]))
    return arm.make(data, flow, s)


def apply_policy(policy: Policy | None, levels: Tensor) -> Tensor:
    """Each of the uint8 images (B, C, H, W) under `policy`, by way of PIL; without one as they are."""
    if policy is None:
        return levels
    moved = [
        v2.functional.pil_to_tensor(policy(v2.functional.to_pil_image(image)))
        for image in levels.cpu()
    ]
    return torch.stack(moved).to(levels.device)
