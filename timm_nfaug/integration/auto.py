"""The settings of ``--aug nfa`` alone, which names none: they follow from the training set."""

from typing import Any

from .._utils.progress import say
from ..advice import Advice, advise
from ..hub import COSINE, LINEAR
from .classes import class_names
from .fit import _unwrapped


def is_fine_tuned(args: Any) -> bool | None:
    """Whether a training starts from pretrained weights; None where its flags name settings of NFA.

    >>> import argparse
    >>> is_fine_tuned(argparse.Namespace(aug="nfa", nfa_flow="linear", pretrained=True))
    True
    >>> is_fine_tuned(argparse.Namespace(aug="nfa-s1", nfa_flow="linear", pretrained=True)) is None
    True
    """
    own = ("nfa_autoencoder", "nfa_space", "nfa_fit", "nfa_cache")
    if (
        args.aug != "nfa"
        or args.nfa_flow not in (LINEAR, COSINE)
        or any(getattr(args, k, None) for k in own)
    ):
        return None
    starts = ("pretrained", "pretrained_path", "initial_checkpoint")
    return any(bool(getattr(args, k, None)) for k in starts)


def advised(dataset: Any, num_classes: int | None, fine_tuned: bool, flow: str = LINEAR) -> Advice:
    """What `advise` has for a training set; says it, and why.

    >>> from torchvision.datasets import FakeData
    >>> advised(FakeData(80), 2, fine_tuned=False).strength
    1.0
    """
    per_class = images_per_class(dataset, num_classes)
    advice = advise(per_class, fine_tuned, flow)
    few = "an unknown number of" if per_class is None else f"{per_class:,.0f}"
    start = "fine-tuned" if fine_tuned else "from scratch"
    why = f"the best in {advice.cell}" if advice.cell else "the default"
    say(
        f"NFA auto: {few} images per class, {start}: s {advice.strength:g}, p {advice.p:g}, {why}; "
        "name others in --aug, as in nfa-s0.5-p0.5 (docs/settings.md)"
    )
    return advice


def images_per_class(dataset: Any, num_classes: int | None = None) -> float | None:
    """How many images of a class there are on average; None where nobody knows.

    Args:
        num_classes: where the dataset does not know its classes.

    >>> images_per_class([0] * 80, 2), images_per_class(iter([])) is None
    (40.0, True)
    """
    base = _unwrapped(dataset)
    classes = len(class_names(base)) or len(getattr(base, "classes", ())) or num_classes
    return len(base) / classes if classes and hasattr(base, "__len__") else None
