"""The bijections, one a file; `folded` and `reversible` are faster ways to run a chain of them."""

from .actnorm import ActNorm
from .base import Bijection, PixelLinear
from .chain import Chain
from .conv1x1 import Conv1x1
from .coupling import AffineCoupling
from .flatten import Flatten
from .multiscale import Multiscale
from .squeeze import Squeeze
from .whiten import Whiten

__all__ = ["ActNorm", "AffineCoupling", "Bijection", "Chain", "Conv1x1", "Flatten", "Multiscale"]
__all__ += ["PixelLinear", "Squeeze", "Whiten"]
