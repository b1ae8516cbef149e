"""The arms of the evidence: how each is made, and the settings that its search tries.

These are four, six for RandAugment.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from timm.data import Mixup
from torchvision.transforms import v2

import timm_nfaug as nfa
from benchmarks.cifar.arms import Arm, NFAStep, Policy, Settings, fitted, kept_modes, linear_flow
from benchmarks.cifar.arms import randaugment as timm_randaugment
from benchmarks.evidence import changes
from benchmarks.evidence.copies import CopiesArm, copies_of
from benchmarks.evidence.either import EitherOr
from timm_nfaug.augment import NFAugment
from train_flow.data import Images

Values = dict[str, float]
Make = Callable[[Images, Values, "Flow | None"], Arm]
LINEAR = "linear"


@dataclass(frozen=True)
class Flow:
    """The flow of an arm, or the autoencoder of one that moves latents.

    Attributes:
        name: what the record calls it.
        trained_on: what its network has seen.
        where: what `from_pretrained` loads.
        autoencoder: of a flow over latents; with `name` "linear" its latents have the modes.
    """

    name: str
    trained_on: str
    where: str = ""
    autoencoder: str = ""


@dataclass(frozen=True)
class Entry:
    """An arm of the evidence.

    Attributes:
        label: what the tables call it.
        make: from the training images, a setting of `grid` and the flow to the arm.
        grid: the settings that the search tries; the first is the usual one.
        flow: whether it takes a deep flow or an autoencoder.
        longer: times the epochs of the recipe.
    """

    label: str
    make: Make
    grid: tuple[Values, ...] = ({},)
    flow: bool = False
    longer: float = 1.0

    def epochs(self, usual: int) -> int:
        """How many epochs this arm trains for where the recipe says `usual`: so many, or more."""
        return round(usual * self.longer)


def grid(**values: tuple[float, ...]) -> tuple[Values, ...]:
    """All combinations: ``grid(p=(0.5, 1.0), strength=(0.5, 1.0))`` has four."""
    found: list[Values] = [{}]
    for name, options in values.items():
        found = [{**setting, name: value} for setting in found for value in options]
    return tuple(found)


MOVES = grid(strength=(0.5, 1.0), p=(0.5, 1.0))
FAR = grid(strength=(2.5, 5.0), p=(0.5, 1.0))  # of axes, which move an image less far than modes
NEAR = grid(strength=(0.2, 0.4), p=(0.5, 1.0))  # of a shuffled flow, which moves it further
BOTH = grid(magnitude=(9, 5), strength=(0.5, 1.0))
RANDAUGMENTS = grid(magnitude=(9, 5, 3), reprob=(0.25, 0.0))


def randaugment(data: Images, s: Values, flow: Flow | None) -> Arm:
    return Arm(policy(data, s["magnitude"]), reprob=s["reprob"])


def policy(data: Images, magnitude: float) -> Policy:
    return timm_randaugment(f"rand-m{magnitude:g}-mstd0.5-inc1", data.levels.shape[-1])


def some_randaugment(data: Images, s: Values, flow: Flow | None) -> Arm:
    """RandAugment for a share of the images, as either-or has it."""
    return Arm(v2.RandomApply([policy(data, s["magnitude"])], s["p"]))


def trivial(data: Images, s: Values, flow: Flow | None) -> Arm:
    always = v2.TrivialAugmentWide()
    some = always if s["p"] == 1 else v2.RandomApply([always], s["p"])
    return Arm(some, reprob=s["reprob"])


def jitter(data: Images, s: Values, flow: Flow | None) -> Arm:
    return Arm(v2.RandomApply([v2.ColorJitter(*3 * [s["amount"]])], s["p"]))


def mixup(data: Images, s: Values, flow: Flow | None) -> Arm:
    return mixed(data, mixup_alpha=s["alpha"], cutmix_alpha=0.0, prob=s["p"])


def cutmix(data: Images, s: Values, flow: Flow | None) -> Arm:
    return mixed(data, mixup_alpha=0.0, cutmix_alpha=s["alpha"], prob=s["p"])


def mixed(data: Images, **amounts: float) -> Arm:
    # labels are smoothed by the loss, as in every arm
    return Arm(mix=Mixup(**amounts, label_smoothing=0.0, num_classes=len(data.class_names)))


def erasing(data: Images, s: Values, flow: Flow | None) -> Arm:
    return Arm(reprob=s["reprob"])


def moved(augment: NFAugment) -> Arm:
    return Arm(before=NFAStep(augment))


def loaded(data: Images, flow: Flow) -> nfa.ConditionalFlow:
    base = nfa.ConditionalFlow.from_pretrained(flow.where).to(data.levels.device).eval()
    return base.set_net_dtype(changes.NET_DTYPE)


def modes(data: Images, s: Values, flow: Flow | None, labels: str, move: str = "pca") -> NFAugment:
    """NFA with modes of the run's own images: of its pixels or, with a flow, of its codes."""
    base = linear_flow(data) if flow is None else loaded(data, flow)
    return fitted(base, data, Settings(strength=s["strength"], p=s["p"], move=move), labels)


def after_the_crop(augment: NFAugment) -> Arm:
    """NFA where timm's train.py has it."""
    return Arm(levels=NFAStep(augment))


def shuffled(data: Images, s: Values, flow: Flow | None) -> Arm:
    """A deep flow whose networks have learned nothing: their weights in random order."""
    assert flow is not None
    base = loaded(data, flow)
    changes.shuffle_networks(base)
    return moved(fitted(base, data, Settings(strength=s["strength"], p=s["p"]), "none"))


def nfa_arm(labels: str, move: str = "pca", place: Callable[[NFAugment], Arm] = moved) -> Make:
    return lambda data, s, flow: place(modes(data, s, flow, labels, move))


def conditional(data: Images, s: Values, flow: Flow | None) -> Arm:
    """The paper's conditional encoding, with the modes that its flow came with."""
    base = nfa.ConditionalFlow.from_pretrained(flow.where).to(data.levels.device)
    return moved(kept_modes(base.eval(), data, Settings(strength=s["strength"], p=s["p"])))


def with_change(
    make: Callable[[Images, float], Any], place: Callable[[NFAugment], Arm] = moved
) -> Make:
    """An arm of a change that needs no fit of modes, made from the images and a strength."""

    def arm(data: Images, s: Values, flow: Flow | None) -> Arm:
        change = make(data, s["strength"])
        return place(NFAugment.from_change(change, p=s["p"], labels="none"))

    return arm


def on_top(data: Images, s: Values, flow: Flow | None) -> Arm:
    arm = moved(modes(data, {"p": 0.5, **s}, flow, "none"))
    arm.policy = policy(data, s["magnitude"])
    return arm


def either(data: Images, s: Values, flow: Flow | None) -> Arm:
    """Each image gets RandAugment or a move, never both and never neither."""
    move = modes(data, {"p": 1.0, **s}, flow, "none")
    return EitherOr(NFAStep(move), policy(data, s["magnitude"]))


def either_cosine(data: Images, s: Values, flow: Flow | None) -> Arm:
    """Each image gets RandAugment or shading without data."""
    shading = NFAugment.from_change(changes.cosine(data, s["strength"]), p=1.0, labels="none")
    return EitherOr(NFAStep(shading), policy(data, s["magnitude"]))


def latent(data: Images, s: Values, flow: Flow | None) -> Arm:
    """Moved copies through an autoencoder, along pooled modes of the run's own latents."""
    assert flow is not None
    how = {"strength": s["strength"], "p": 1.0, "autoencoder": flow.autoencoder}
    pairs = list(zip(data.levels.split(100), data.labels.split(100), strict=True))
    if flow.name == LINEAR:
        augment = NFAugment.from_data(pairs, **how)
    else:
        augment = NFAugment.from_pretrained(flow.where, **how).fit(pairs)
    return CopiesArm(copies_of(data, augment), s["p"])


def adversarial(data: Images, s: Values, flow: Flow | None) -> Arm:
    """Moves along pooled modes, pushed up the loss; on what the classifier sees, after the crop."""
    inner = modes(data, {"strength": 0.5, "p": 1.0}, flow, "none").change
    change = changes.PushedChange(inner, s["step"], len(data.class_names))
    return after_the_crop(NFAugment.from_change(change, p=s["p"], labels="given"))


ENTRIES: dict[str, Entry] = {
    "crop-flip": Entry("crop and flip", lambda data, s, flow: Arm()),
    "randaugment": Entry("RandAugment", randaugment, RANDAUGMENTS),
    "randaugment-some": Entry(
        "RandAugment for some images", some_randaugment, grid(magnitude=(9, 5), p=(0.5, 0.75))
    ),
    "trivialaugment": Entry("TrivialAugment", trivial, grid(p=(1.0, 0.5), reprob=(0.0, 0.25))),
    "colorjitter": Entry("ColorJitter", jitter, grid(amount=(0.4, 0.2), p=(1.0, 0.5))),
    "mixup": Entry("Mixup", mixup, grid(alpha=(1.0, 0.2), p=(1.0, 0.5))),
    "cutmix": Entry("CutMix", cutmix, grid(alpha=(1.0, 0.2), p=(0.5, 1.0))),
    "erasing": Entry("RandomErasing", erasing, grid(reprob=(0.25, 0.1, 0.5, 0.75))),
    "cosine": Entry("cosine shading, no data", with_change(changes.cosine), MOVES),
    "colour-pca": Entry(
        "colour PCA", with_change(changes.ColourPCA), grid(strength=(0.1, 0.5), p=(1.0, 0.5))
    ),
    "noise": Entry("white noise of equal energy", with_change(changes.WhiteNoise), MOVES),
    "pooled": Entry("NFA linear, pooled modes", nfa_arm("none"), MOVES),
    "class": Entry("NFA linear, class modes", nfa_arm("given"), MOVES),
    "flow-joint": Entry("NFA deep flow (joint), pooled modes", nfa_arm("none"), MOVES, flow=True),
    "flow-joint-axes": Entry(
        "NFA deep flow (joint), axes", nfa_arm("none", "axes"), MOVES, flow=True
    ),
    "flow-ml": Entry("NFA deep flow (ml), pooled modes", nfa_arm("none"), MOVES, flow=True),
    "glem": Entry("NFA deep flow (GLEM), class modes", nfa_arm("given"), MOVES, flow=True),
    "glem-axes": Entry(
        "NFA deep flow (GLEM), class axes, as the paper", nfa_arm("given", "axes"), MOVES, flow=True
    ),
    "flow-joint-axes-far": Entry(
        "NFA deep flow (joint), axes, five times as strong", nfa_arm("none", "axes"), FAR, flow=True
    ),
    "glem-axes-far": Entry(
        "NFA deep flow (GLEM), class axes, five times as strong",
        nfa_arm("given", "axes"),
        FAR,
        flow=True,
    ),
    "flow-shuffled": Entry(
        "NFA deep flow, shuffled weights, pooled modes", shuffled, NEAR, flow=True
    ),
    "flow-joint-after": Entry(
        "NFA deep flow (joint), after the crop",
        nfa_arm("none", place=after_the_crop),
        MOVES,
        flow=True,
    ),
    "cosine-after": Entry(
        "cosine shading, after the crop", with_change(changes.cosine, after_the_crop), MOVES
    ),
    "ce": Entry("NFA deep flow (conditional encoding)", conditional, MOVES, flow=True),
    "randaugment+pooled": Entry("RandAugment, on NFA linear", on_top, BOTH),
    "randaugment|pooled": Entry("RandAugment or NFA linear", either, BOTH),
    "randaugment|cosine": Entry("RandAugment or shading without data", either_cosine, BOTH),
    "randaugment+flow": Entry("RandAugment, on NFA deep flow (joint)", on_top, BOTH, flow=True),
    "randaugment|flow": Entry("RandAugment or NFA deep flow (joint)", either, BOTH, flow=True),
    "latent-linear": Entry("NFA latent linear, pooled modes, 8 copies", latent, MOVES, flow=True),
    "latent-deep": Entry("NFA latent deep flow, pooled modes, 8 copies", latent, MOVES, flow=True),
    "adversarial": Entry(
        "NFA linear, moves up the loss", adversarial, grid(step=(0.5, 2.0), p=(0.5, 1.0))
    ),
}
for _arm in ("crop-flip", "randaugment", "flow-joint", "randaugment|flow"):
    _label = f"{ENTRIES[_arm].label}, twice as long"
    ENTRIES[f"{_arm}-long"] = dataclasses.replace(ENTRIES[_arm], label=_label, longer=2.0)
