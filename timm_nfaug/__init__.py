"""timm_nfaug: learned augmentation for timm by class-conditional normalizing flows."""

from .flows.model import ConditionalFlow
from .flows.registry import create_flow, list_flows

__version__ = "0.1.0"

__all__ = ["ConditionalFlow", "create_flow", "list_flows"]
