"""Datasets that are augmented before their transform, and the cache of what a deep flow does."""

from .cache import NFACache
from .datasets import CachedNFADataset, NFAugmentedDataset
from .transforms import set_transform, without_transform

__all__ = [
    "CachedNFADataset", "NFACache", "NFAugmentedDataset", "set_transform", "without_transform",
]  # fmt: skip
