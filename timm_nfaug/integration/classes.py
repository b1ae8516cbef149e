"""What a dataset tells of its classes without its images, and samples spread evenly over them."""

from typing import Any

import torch


def class_to_idx(dataset: Any) -> dict[str, int]:
    """Labels by class name, from timm's readers (also of tar files) and torchvision's datasets.

    >>> from torchvision.datasets import FakeData
    >>> class_to_idx(FakeData())
    {}
    """
    owners = (getattr(dataset, "reader", dataset), dataset)
    found = (getattr(o, n, None) for o in owners for n in ("class_to_idx", "class_name_to_idx"))
    return next(filter(None, found), {})


def class_names(dataset: Any) -> list[str]:
    """The names of the classes in the order of their labels; none where the dataset has none.

    >>> class_names([])
    []
    """
    return [str(k) for k, _ in sorted(class_to_idx(dataset).items(), key=lambda kv: kv[1])]


def stored_labels(dataset: Any) -> list[int] | None:
    """Label of each sample, where timm's reader or torchvision's dataset holds them, or None.

    >>> stored_labels([0, 1]) is None
    True
    """
    if getattr(dataset, "target_transform", None) is not None:
        return None
    reader = getattr(dataset, "reader", dataset)
    try:
        if (found := getattr(reader, "targets", None)) is None:  # timm's for the Hub gives each one
            one_by_one = hasattr(reader, "iter_targets")
            found = list(reader.iter_targets()) if one_by_one else [k for _, k in reader.samples]
        labels = [int(k) for k in torch.as_tensor(found).tolist()]
    except (AttributeError, TypeError, ValueError, RuntimeError):  # none, or no integers
        return None
    return labels if len(labels) == len(dataset) else None


def spread(labels: list[int], count: int) -> list[int]:
    """Indices of up to `count` samples of each label, evenly spaced among its own, in order.

    >>> spread([0, 0, 0, 1], count=2)
    [0, 1, 3]
    """
    members: dict[int, list[int]] = {}
    for i, k in enumerate(labels):
        members.setdefault(k, []).append(i)
    return sorted(i for own in members.values() for i in evenly(own, count))


def evenly(items: list, count: int) -> list:
    """Up to `count` items, evenly spaced over a list.

    >>> evenly([0, 1, 2, 3, 4, 5], count=3)
    [0, 2, 4]
    """
    n = min(count, len(items))
    return [items[i * len(items) // n] for i in range(n)]
