"""Changes: what is added to images, and how it is drawn and added."""

from .apply import add_change, draw, to_model
from .base import Change, Images
from .flow import FlowChange, LinearChange, change_of
from .latent import LatentChange

__all__ = [
    "Change", "FlowChange", "Images", "LatentChange", "LinearChange",
    "add_change", "change_of", "draw", "to_model",
]  # fmt: skip
