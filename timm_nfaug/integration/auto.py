"""The settings of ``--aug nfa`` alone, which names none: they follow from the training set."""

import copy
from collections.abc import Callable, Iterable
from typing import Any

from PIL import Image
from torch.utils.data import IterableDataset
from torchvision.transforms.functional import pil_to_tensor

from .._utils.progress import say
from ..advice import advise, depends_on_size
from ..data.transforms import map_inside, without_transform
from ..hub import COSINE, LINEAR
from .classes import class_names, evenly
from .fit import _unwrapped

KNOWN = (None, COSINE, LINEAR)  # flows for which settings are known
LOOKED_AT = 16  # images, spread over the dataset


def leaves_open(args: Any) -> bool:
    """Whether flags name no setting of NFA, so that they follow from the training set.

    >>> from argparse import Namespace
    >>> leaves_open(Namespace(aug="nfa", nfa_flow="cosine")), leaves_open(Namespace(aug="nfa-s1", nfa_flow=None))
    (True, False)
    """
    own = ("nfa_autoencoder", "nfa_fit", "nfa_cache")
    named = any(getattr(args, name, None) for name in own) or args.nfa_flow not in KNOWN
    return args.aug == "nfa" and not named and getattr(args, "nfa_space", None) != "latent"


def with_advice(
    args: Any,
    dataset: Any,
    num_classes: int | None = None,
    size: Callable[[], tuple[int, ...] | None] = lambda: None,
) -> Any:
    """A copy of flags that leave settings open, with what `advise` has for a training set; says it.

    Args:
        num_classes: where the dataset does not know its classes.
        size: gives that of the images in the training, (C, H, W), or None where nobody knows;
            called only where the choice depends on it.

    >>> from torchvision.datasets import FakeData
    >>> from argparse import Namespace
    >>> with_advice(Namespace(aug="nfa", nfa_flow="cosine"), FakeData(80), 2).aug
    'nfa-s1-p0.5'
    """
    starts = ("pretrained", "pretrained_path", "initial_checkpoint")
    fine_tuned = any(bool(getattr(args, name, None)) for name in starts)
    per_class, flow = images_per_class(dataset, num_classes), args.nfa_flow
    if flow is None and is_grey(dataset):
        flow = LINEAR  # the others would tint them
    shape = size() if depends_on_size(per_class, flow) else None
    advice = advise(per_class, fine_tuned, flow, shape)
    few = "an unknown number of" if per_class is None else f"{per_class:,.0f}"
    start = "fine-tuned" if fine_tuned else "from scratch"
    say(
        f"NFA auto: {few} images per class, {start}: flow {advice.flow}, s {advice.strength:g}, "
        f"p {advice.p:g}, {advice.why}; name others by --aug nfa-s0.5-p0.5 --nfa-flow {COSINE} "
        "(docs/settings.md)"
    )
    args = copy.copy(args)
    args.aug, args.nfa_flow, args.nfa_fit = advice.aug, advice.flow, advice.fit
    return args


def is_grey(dataset: Any) -> bool:
    """Whether a few images of a dataset are all grey, though they may have three channels.

    >>> grey, red = Image.new("RGB", (4, 4), "grey"), Image.new("RGB", (4, 4), "red")
    >>> is_grey([(grey, 0)]), is_grey([(grey, 0), (red, 1)])
    (True, False)
    """
    if isinstance(base := _unwrapped(dataset), IterableDataset) or not hasattr(base, "__len__"):
        return False
    stored = map_inside(without_transform, base)
    try:
        return are_grey(stored[i][0] for i in evenly(list(range(len(stored))), LOOKED_AT))
    except Exception:  # of a dataset of the user's own, which may raise anything; the fit says it
        return False


def are_grey(images: Iterable[Any]) -> bool:
    """Whether all of these images, PIL or tensors (C, H, W), are the same in every channel.

    >>> are_grey([Image.new("RGB", (4, 4), "red")])
    False
    """
    pixels = (pil_to_tensor(x.convert("RGB")) if isinstance(x, Image.Image) else x for x in images)
    return all(bool((x == x[:1]).all()) for x in pixels)


def images_per_class(dataset: Any, num_classes: int | None = None) -> float | None:
    """How many images of a class there are on average; None where nobody knows.

    Args:
        num_classes: where the dataset does not know its classes.

    >>> images_per_class([0] * 80, 2), images_per_class(iter([])) is None
    (40.0, True)
    """
    base = _unwrapped(dataset)
    classes = len(class_names(base)) or len(getattr(base, "classes", ())) or num_classes
    count = getattr(getattr(base, "reader", None), "num_samples", None)  # of a stream's all shares
    if not count and hasattr(base, "__len__"):
        count = len(base)
    return count / classes if classes and count else None
