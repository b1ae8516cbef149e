"""nf_augment_transform: makes an `NFAugment` from a string, as timm makes RandAugment."""

from typing import Any

from .augment import NFAugment
from .flows.model import ConditionalFlow
from .hub import COSINE, LINEAR
from .moves import usual_modes
from .spec import parse_config


def nf_augment_transform(
    config: str, flow: ConditionalFlow | str | None = None, mean=None, std=None, seed=None,
    strict: bool = False, data: Any = None, num_classes: int | None = None, value_range=None,
    autoencoder: Any = None, size: int | None = None,
) -> NFAugment:  # fmt: skip
    """Makes an `NFAugment` from a string, as timm's `rand_augment_transform` makes RandAugment.

    Args:
        config: ``nfa``, then any of s (strength), k (modes), p (probability), m (kind) and l
            (labels), e.g. ``nfa-s0.5-k32-p0.5-mpca-lnone``.
        flow: a flow, or the name of one; "linear", as everywhere, has the modes of `data`, "cosine"
            those of `NFAugment.from_cosine`; a saved augmentation brings the settings that the string
            does not name. By default "cosine", or "linear" where `data` is given.
        data: for "linear", a loader of batches (images, labels, ...); `num_classes` as for
            `NFAugment.from_data`.
        autoencoder, size: of latents, as for `NFAugment.from_data` and `from_pretrained`.

    >>> nf_augment_transform("nfa-s0.25-p1", "conv_p4_tiny.digits").strength
    0.25
    """
    values = dict(mean=mean, std=std, seed=seed, strict=strict, value_range=value_range)
    values |= {"autoencoder": autoencoder, "size": size} | parse_config(config)
    if isinstance(flow, ConditionalFlow):
        values.setdefault("modes", usual_modes(flow))
        return NFAugment(flow, **values)
    if flow is None:
        flow = COSINE if data is None else LINEAR
    if flow == COSINE:
        return NFAugment.from_cosine(**values)
    if flow != LINEAR:
        return NFAugment.from_pretrained(flow, **values)
    if data is None:
        raise ValueError(
            "linear takes its modes from your images: pass data=loader, or a trained flow by name, "
            "as in flow='conv_p4_small.cifar10'"
        )
    return NFAugment.from_data(data, num_classes, **values)
