"""timm_nfaug: learned augmentation for timm by class-conditional normalizing flows."""

from .augment import NFAugment, nf_augment_transform
from .dataset import NFAugmentedDataset
from .flows.model import ConditionalFlow
from .flows.registry import create_flow, list_flows
from .perturb import perturb

__version__ = "0.1.0"

__all__ = [
    "ConditionalFlow",
    "NFAugment",
    "NFAugmentedDataset",
    "create_flow",
    "list_flows",
    "nf_augment_transform",
    "perturb",
]
