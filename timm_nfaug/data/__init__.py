"""Datasets that are augmented before their transform, and the cache of what a deep flow does."""

from .cache import NFACache
from .collate import NFACollate
from .datasets import CachedNFADataset, NFADataset, NFAugmentedDataset
from .examples import NFAExamples
from .transforms import set_transform, without_transform

__all__ = [
    "CachedNFADataset", "NFACache", "NFACollate", "NFADataset", "NFAExamples", "NFAugmentedDataset",
    "set_transform", "without_transform",
]  # fmt: skip
