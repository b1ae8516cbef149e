"""timm_nfaug: learned augmentation for timm by class-conditional normalizing flows."""

import importlib
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._utils.notices import NFAError, NFAWarning
    from .augment import NFAugment, nf_augment_transform
    from .data import CachedNFADataset, NFACache, NFAugmentedDataset
    from .flows.model import ConditionalFlow
    from .flows.registry import create_flow, list_flows
    from .integration import add_args, wrap_loader
    from .moves import perturb

__version__ = "0.1.0"

__all__ = [
    "CachedNFADataset",
    "ConditionalFlow",
    "NFACache",
    "NFAError",
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

# where the public names are; imported when one is asked for, as torch takes the seconds that
# `timm-nfaug --help` should not
_MODULES = (
    "_utils.notices",
    "moves",
    "flows.model",
    "flows.registry",
    "augment",
    "data",
    "integration",
)


def __getattr__(name: str) -> Any:
    """Imports a public name, or a module of the package, at its first use."""
    if name in __all__:
        modules = (importlib.import_module(f".{m}", __name__) for m in _MODULES)
        value = next(getattr(m, name) for m in modules if hasattr(m, name))
    elif not name.startswith("_") and find_spec(f"{__name__}.{name}"):
        value = importlib.import_module(f".{name}", __name__)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
