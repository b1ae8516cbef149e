"""Chain: the composition of bijections, which evaluates its linear layers folded together."""

from collections.abc import Iterable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from .base import Bijection, PixelLinear
from .folded import fold
from .reversible import run_reversibly


class Chain(Bijection):
    """Applies bijections from first to last; with `reversible`, trains without stored activations.

    Linear layers that need no gradient run as one matrix (see `folded`), kept until the version
    counter of a parameter changes; a write through ``.data`` shows after `train` or `eval` only.

    >>> from timm_nfaug.flows.bijections import Flatten, Squeeze
    >>> Chain([Squeeze(2), Flatten((12, 4, 4))]).output_shape((3, 8, 8))
    (192,)
    """

    def __init__(self, layers: Iterable[Bijection]):
        super().__init__()
        self.layers = cast(Sequence[Bijection], nn.ModuleList(layers))
        self.reversible = False
        self._kept: tuple[list, list] | None = None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        reversible = self.reversible and torch.is_grad_enabled()
        if reversible and any(p.requires_grad for p in self.parameters()):
            return run_reversibly(self.layers, x)
        log_det = x.new_zeros(len(x))
        for layer in self._stages():
            x, ld = layer(x)
            log_det = log_det + ld
        return x, log_det

    def inverse(self, y: Tensor) -> Tensor:
        for layer in reversed(self._stages()):
            y = layer.inverse(y)
        return y

    def _stages(self) -> Sequence:
        """The layers, those that can be folded replaced by their folded form."""
        linear = [m for m in self.layers if isinstance(m, PixelLinear)]
        tensors = [t for m in linear for t in (*m.parameters(), *m.buffers())]
        if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
            return self.layers
        key = [_version(t) for t in tensors]
        if self._kept is None or self._kept[0] != key:
            with torch.inference_mode(False):  # what is kept may be asked for gradients later
                self._kept = (key, fold(self.layers))
        return self._kept[1]

    @torch.no_grad()
    def initialize(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer.initialize(x)
        return x

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        for layer in self.layers:
            shape = layer.output_shape(shape)
        return shape

    def _apply(self, *args, **kwargs):
        self._kept = None  # a move can leave another weight at the old address and version
        return super()._apply(*args, **kwargs)

    def train(self, mode: bool = True) -> "Chain":
        self._kept = None  # a write through .data, as of a hand-written average
        return super().train(mode)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_kept": None}  # a copy or another process folds its own


def _version(t: Tensor) -> tuple:
    return None if t.is_inference() else t._version, t.data_ptr(), t.dtype, t.device
