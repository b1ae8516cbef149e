"""Random generators that follow from keys, and the global ones kept apart."""

import contextlib
import hashlib
import random
from collections.abc import Iterator

import numpy as np
import torch


def keyed_generator(*key: int) -> torch.Generator:
    """Makes a generator on the CPU that follows from the numbers of `key` alone.

    >>> a, b = (torch.rand(1, generator=keyed_generator(0, 7)) for _ in range(2))
    >>> bool(a == b)
    True
    """
    digest = hashlib.sha256(" ".join(map(str, key)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") % 2**63)


def own_generator(seed: int | None, worker_seed: int | None = None) -> torch.Generator:
    """A generator for this process; in a DataLoader worker its stream is the worker's and epoch's own.

    >>> own_generator(3).initial_seed()
    3
    """
    if seed is not None and worker_seed is not None:
        return keyed_generator(seed, worker_seed)
    found = next(s for s in (seed, worker_seed, torch.initial_seed()) if s is not None)
    return torch.Generator().manual_seed(found % 2**63)


@contextlib.contextmanager
def random_numbers_apart() -> Iterator[None]:
    """Seeds the CPU's global generators alike in every process, and puts their states back after.

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
