"""Reads datasets in worker processes, so that this process opens none of their files."""

import pickle
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader

from .._utils.notices import NFAError

HANDED_ON = (
    "collate_fn", "timeout", "worker_init_fn", "multiprocessing_context", "prefetch_factor",
)  # fmt: skip


class WorkerLoader(DataLoader):
    """A loader with at least one worker: the dataset of this process stays as it is.

    Args:
        like: a loader whose workers these are like; its generator is left alone.
        settings: of torch's DataLoader, in place of those of `like`.

    >>> [x.tolist() for x in WorkerLoader([1, 2, 3], batch_size=2)]
    [[1, 2], [3]]
    """

    def __init__(self, dataset: Any, like: Any = None, **settings: Any):
        like = like if isinstance(like, DataLoader) else None
        own = {} if like is None else {name: getattr(like, name) for name in HANDED_ON}
        workers = settings.pop("num_workers", like.num_workers if like is not None else 1)
        own |= {"num_workers": max(1, workers), "generator": torch.Generator()}
        super().__init__(dataset, **own | settings)

    def __iter__(self) -> Iterator:  # type: ignore[override]
        try:
            return super().__iter__()
        except (TypeError, AttributeError, pickle.PicklingError) as e:
            raise NFAError(
                f"{type(self.dataset).__name__} cannot be sent to the worker process that reads it "
                f"({e}): start workers by fork, define its parts at the top of a module, or pass "
                "fit_dataset=, a dataset that can be pickled"
            ) from e


def message_of(error: Exception) -> str:
    """The message of an error, without the traceback that a worker puts before it.

    >>> message_of(ValueError("no label"))
    'no label'
    """
    text = str(error)
    if not text.startswith("Caught "):
        return text
    lines = text.rpartition("Traceback (most recent call last):")[2].splitlines()
    said = "\n".join(line for line in lines if line and not line.startswith(" "))
    return re.sub(r"^\S*NFAError: ", "", said)
