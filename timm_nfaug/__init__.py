"""timm_nfaug: learned augmentation for timm by class-conditional normalizing flows."""

from ._utils.notices import NFAError, NFAWarning
from .augment import NFAugment
from .data import (
    CachedNFADataset,
    NFACache,
    NFACollate,
    NFADataset,
    NFAExamples,
    NFAugmentedDataset,
)
from .flows.model import ConditionalFlow
from .flows.registry import create_flow, list_flows
from .from_string import nf_augment_transform
from .integration import add_args, wrap_loader
from .moves import perturb

__version__ = "0.2.0"

__all__ = [
    "CachedNFADataset",
    "ConditionalFlow",
    "NFACache",
    "NFACollate",
    "NFADataset",
    "NFAError",
    "NFAExamples",
    "NFAWarning",
    "NFAugment",
    "NFAugmentedDataset",
    "add_args",
    "create_flow",
    "list_flows",
    "nf_augment_transform",
    "perturb",
    "wrap_loader",
]
