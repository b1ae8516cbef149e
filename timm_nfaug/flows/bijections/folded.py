"""The layers of a chain as evaluation runs them: fewer passes over memory for the same function."""

from collections.abc import Iterable

import torch
from torch import Tensor

from .base import Bijection, PixelLinear
from .coupling import AffineCoupling


class _FoldedRun:
    """Steps on (B, C, H, W), whose halves of the channels stay apart from one to the next."""

    def __init__(self) -> None:
        self.steps: list[_Step] = []

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        halves, log_det, of_pixel = self._halves(x), x.new_zeros(len(x)), 0.0
        for step in self.steps:
            halves = _affine(halves, step.forward)
            of_pixel += step.log_det
            if step.coupling is not None:
                halves[1], log_scale = step.coupling.transform(*halves)
                log_det = log_det + log_scale.sum(dim=(1, 2, 3))
        return torch.cat(halves, dim=1), log_det + of_pixel * (x.shape[2] * x.shape[3])

    def inverse(self, y: Tensor) -> Tensor:
        halves = self._halves(y)
        for step in reversed(self.steps):
            if step.coupling is not None:
                halves[1] = step.coupling.restore(*halves)
            halves = _affine(halves, step.inverse)
        return torch.cat(halves, dim=1)

    def _halves(self, x: Tensor) -> list[Tensor]:
        biases = [bias for bias, _, _ in self.steps[0].forward]
        x = x.to(biases[0].dtype).contiguous(memory_format=torch.channels_last)
        return list(x.split([len(b) for b in biases], dim=1))


class _Step:
    """Linear layers as one ``W x + b``, rounded once from float64; then a coupling or none."""

    @torch.no_grad()
    def __init__(self, linear: list[PixelLinear], coupling: AffineCoupling | None):
        w, b = linear[0].matrix()
        for layer in linear[1:]:
            w2, b2 = layer.matrix()
            w, b = w2 @ w, w2 @ b + b2
        w_inv = torch.linalg.inv(w)
        sizes = coupling.sizes if coupling else (len(w) - len(w) // 2, len(w) // 2)
        dtype = next(t.dtype for t in (*linear[0].parameters(), *linear[0].buffers()))
        self.forward = _blocks(w.to(dtype), b.to(dtype), sizes)
        self.inverse = _blocks(w_inv.to(dtype), -(w_inv @ b).to(dtype), sizes)
        self.log_det = torch.linalg.slogdet(w)[1].item()
        self.coupling = coupling


def _blocks(weight: Tensor, bias: Tensor, sizes: tuple[int, int]) -> list[tuple[Tensor, ...]]:
    """For each half of the output its bias, and transposed blocks for both halves of the input."""
    rows = zip(bias.split(sizes), weight.split(sizes))
    return [(b, *(w.T.contiguous() for w in row.split(sizes, dim=1))) for b, row in rows]


def _affine(halves: list[Tensor], blocks: list[tuple[Tensor, ...]]) -> list[Tensor]:
    """Maps both halves of images, (B, C1, H, W) and (B, C2, H, W), to channels_last ones."""
    b, _, h, w = halves[0].shape
    first, second = (x.permute(0, 2, 3, 1).reshape(-1, x.shape[1]) for x in halves)  # views
    with torch.autocast(first.device.type, enabled=False):
        out = [torch.addmm(v, first, m).addmm_(second, n) for v, m, n in blocks]
    return [rows.view(b, h, w, rows.shape[1]).permute(0, 3, 1, 2) for rows in out]


def fold(layers: Iterable[Bijection]) -> list:
    """Replaces every run of [linear layers, coupling] by a `_FoldedRun`.

    >>> from timm_nfaug.flows.bijections import ActNorm, Conv1x1, Squeeze
    >>> [type(stage).__name__ for stage in fold([Squeeze(2), ActNorm(12), Conv1x1(12)])]
    ['Squeeze', '_FoldedRun']
    """
    stages: list = []
    linear: list[PixelLinear] = []
    for layer in (*layers, None):  # None: the end
        if isinstance(layer, PixelLinear):
            linear.append(layer)
            continue
        coupling = layer if linear and isinstance(layer, AffineCoupling) else None
        if linear:
            if not (stages and isinstance(stages[-1], _FoldedRun)):
                stages.append(_FoldedRun())
            stages[-1].steps.append(_Step(linear, coupling))
            linear = []
        if layer is not None and coupling is None:
            stages.append(layer)
    return stages
