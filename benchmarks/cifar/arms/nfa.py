"""NFA itself: images moved along principal modes, by the linear flow or by a deep one."""

from __future__ import annotations

from dataclasses import dataclass

import torch

import timm_nfaug as nfa
from timm_nfaug._utils.checks import check_choice
from timm_nfaug.augment import NFAugment
from timm_nfaug.fit import SHRINKAGE
from timm_nfaug.flows.model import ConditionalFlow
from timm_nfaug.moves import list_moves
from train_flow.data import Images
from train_flow.evaluate import batches


@dataclass
class Settings:
    """The settings of a move; the defaults are NFAugment's."""

    strength: float = 0.5
    modes: int = 32
    p: float = 0.5  # probability that an image is moved
    move: str = "pca"  # of `timm_nfaug.moves.list_moves()`
    shrinkage: float = SHRINKAGE  # images, see `NFAugment.fit`

    def __post_init__(self):
        check_choice("move", self.move, list_moves())


def linear_flow(data: Images) -> ConditionalFlow:
    """The linear flow of the size of `data`, up to 32 px as `from_data` has it; nothing is trained."""
    c, h, w = data.levels.shape[1:]
    return nfa.create_flow("linear", input_size=(c, min(32, h), min(32, w)))


def fitted(flow: ConditionalFlow, data: Images, s: Settings, labels: str = "given") -> NFAugment:
    """NFAugment with the Gaussians and modes of `data`, per class or, with labels "none", of all images.

    Raises:
        ValueError: a class has too few images for any mode.
    """
    flow = flow.to(data.levels.device).eval()
    if labels == "none":
        data = data.without_labels()
    count = torch.bincount(data.labels, minlength=len(data.class_names))
    rank = int((count - 1).clamp_min(0).sum() if s.shrinkage else count.min() - 1)
    modes = min(s.modes, rank)
    if modes < 1:
        raise ValueError(
            f"modes of a class need two images or more, one class has {int(count.min())}; take more images of it"
        )
    settings = {"strength": s.strength, "p": s.p, "kind": s.move, "labels": labels}
    return NFAugment.to_fit(flow, modes, **settings).fit(
        batches(data, 512), len(data.class_names), shrinkage=s.shrinkage
    )


def kept_modes(flow: ConditionalFlow, data: Images, s: Settings) -> NFAugment:
    """NFAugment with the modes that the flow came with, of its classes or, where it knows none, of all images.

    A flow of conditional encoding, the paper's baseline, has no classes to fit modes to.

    Raises:
        ValueError: the flow has other classes than `data`.
    """
    classes = len(data.class_names)
    if flow.num_classes not in (1, classes):
        raise ValueError(
            f"expected a flow of no classes or of the {classes} of the data, got one of {flow.num_classes}; "
            "take one that was trained on these classes"
        )
    labels = "none" if flow.num_classes == 1 else "given"
    return NFAugment(flow, s.strength, min(s.modes, flow.prior.num_modes), s.p, labels=labels)
