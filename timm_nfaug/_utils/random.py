"""Random generators that follow from keys, and the global ones kept apart."""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Iterator

import numpy as np
import torch


def keyed_generator(*key: int) -> torch.Generator:
    """A generator that follows from the numbers of `key` alone, on the CPU."""
    digest = hashlib.sha256(" ".join(map(str, key)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") % 2**63)


@contextlib.contextmanager
def random_numbers_apart() -> Iterator[None]:
    """Seeds the CPU's global generators, from which crops and the like draw, alike in every process; then puts them back."""
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
