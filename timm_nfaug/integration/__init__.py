"""NFA in trainings: flags, loaders of timm and of one's own, and the fit to a dataset."""

from .._utils.notices import NFAError
from .factory import loader_factory
from .flags import add_args
from .loader import NFALoader
from .wrap import wrap_loader

__all__ = ["NFAError", "NFALoader", "add_args", "loader_factory", "wrap_loader"]
