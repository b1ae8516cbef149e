"""Random generators that follow from keys, and the global ones kept apart."""

import contextlib
import hashlib
import os
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.utils.data import get_worker_info


def keyed_generator(*key: int) -> torch.Generator:
    """Makes a generator on the CPU that follows from the numbers of `key` alone.

    >>> a, b = (torch.rand(1, generator=keyed_generator(0, 7)) for _ in range(2))
    >>> bool(a == b)
    True
    """
    digest = hashlib.sha256(" ".join(map(str, key)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") % 2**63)


class Stream:
    """The random numbers of one object, different in each process and replica.

    Each DataLoader worker has a generator of its own in every epoch, which follows from the seed and
    the worker's; so has each rank but the first, and each forked process, which is keyed by its
    number and cannot be repeated.

    Args:
        seed: None takes torch's initial seed.

    >>> Stream(3).generator().initial_seed()
    3
    """

    def __init__(self, seed: int | None):
        self.seed = seed
        self._process = os.getpid()
        self._own: tuple[Any, torch.Generator] | None = None

    def generator(self) -> torch.Generator:
        """The generator of this process and worker, made at the first call in each."""
        worker, process = get_worker_info(), os.getpid()
        key = process if worker is None else (worker.id, worker.seed)
        if self._own is None or self._own[0] != key:
            forked = process if worker is None and process != self._process else 0
            seeds = (self.seed, None if worker is None else worker.seed)
            keys = [k for k in seeds if k is not None]
            self._own = (key, _generator(keys or [torch.initial_seed()], process_rank(), forked))
        return self._own[1]

    def branch(self) -> "Stream":
        """A stream of its own for a replica in this process."""
        return Stream(int(torch.randint(2**62, (), generator=self.generator())))

    def __getstate__(self) -> dict:
        return {"seed": self.seed}  # generators do not pickle for a worker

    def __setstate__(self, state: dict) -> None:
        self.__init__(**state)  # type: ignore[misc]


def process_rank() -> int:
    """Rank by torch.distributed once that runs, before it and in workers by torchrun's RANK, or 0.

    >>> process_rank()
    0
    """
    running = dist.is_available() and dist.is_initialized()
    return dist.get_rank() if running else int(os.environ.get("RANK", 0))


def _generator(keys: list[int], *others: int) -> torch.Generator:
    """That of a single process, whose `others` are zero, is seeded as torch's would be."""
    if len(keys) == 1 and not any(others):
        return torch.Generator().manual_seed(keys[0] % 2**63)
    return keyed_generator(*keys, *(others if any(others) else ()))


@contextlib.contextmanager
def random_numbers_apart() -> Iterator[None]:
    """Seeds the CPU's global generators, the same in every process, and restores them after.

    Crops and the like draw from them.

    >>> before = torch.get_rng_state()
    >>> with random_numbers_apart():
    ...     _ = torch.rand(1)
    >>> torch.equal(torch.get_rng_state(), before)
    True
    """
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002
