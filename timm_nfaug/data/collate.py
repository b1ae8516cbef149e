"""NFACollate: the augmentation of whole batches in the loader's workers, as a collate_fn."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.data import default_collate, get_worker_info

from .._utils.random import keyed_generator, process_rank
from ..augment import NFAugment
from .transforms import for_workers


class NFACollate:
    """A collate_fn that joins samples to a batch and augments it, in the loader's workers.

    Random numbers follow from the transform's seed, torch's seed of the pass, the rank and the
    number of the batch. So `torch.manual_seed`, or the loader's `generator`, repeats a training
    exactly, for any number of workers from 1 on. Persistent workers keep torch's seed: from the
    second pass on, their number counts, too. Without workers it draws from the transform's own
    stream.

    Args:
        augment: takes what `collate` gives: (images (B, C, H, W), labels (B,), ...) or a dict.
        collate: makes a batch of a list of samples. Mixup and CutMix come after NFA, not in here.

    >>> augment = NFAugment.from_pretrained("conv_p4_tiny.digits", p=1.0, labels="given")
    >>> data = [(torch.zeros(1, 8, 8), 3), (torch.ones(1, 8, 8), 7)]
    >>> loader = torch.utils.data.DataLoader(data, 2, collate_fn=NFACollate(augment))
    >>> images, labels = next(iter(loader))
    >>> images.shape, labels
    (torch.Size([2, 1, 8, 8]), tensor([3, 7]))
    """

    def __init__(self, augment: NFAugment, collate: Callable[[Any], Any] = default_collate):
        self.augment, self.collate = for_workers(augment), collate
        self._batches = 0  # that this worker has made

    def __call__(self, samples: Any) -> Any:
        return self.augment(self.collate(samples), generator=self._generator())

    def _generator(self) -> torch.Generator | None:
        if (worker := get_worker_info()) is None:
            return None
        batch = self._batches * worker.num_workers + worker.id  # torch deals them out in turns
        self._batches += 1
        base_seed, own = worker.seed - worker.id, self.augment.seed
        return keyed_generator(*([] if own is None else [own]), base_seed, process_rank(), batch)
