"""The layers of a chain as evaluation runs them: fewer passes over memory for the same function.

Whitening, per-channel affine and 1x1 convolution between two couplings become one matrix and one bias, multiplied in
float64 and rounded once. The two halves of the channels that a coupling needs stay apart from one step to the next, so
that nothing is split and joined again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .base import Bijection
from .coupling import AffineCoupling
from .pixel_linear import PixelLinear


def fold(layers: Iterable[Bijection]) -> list:
    """`layers` with every run of [linear layers, coupling] replaced by a `FoldedRun`."""
    stages: list = []
    linear: list[PixelLinear] = []

    def close(coupling: AffineCoupling | None) -> None:
        if (
            stages
            and isinstance(stages[-1], FoldedRun)
            and stages[-1].steps[-1].coupling is not None
        ):
            stages[-1].steps.append(Step.of(linear, coupling))
        else:
            stages.append(FoldedRun([Step.of(linear, coupling)]))
        linear.clear()

    for layer in layers:
        if isinstance(layer, PixelLinear):
            linear.append(layer)
        elif linear and isinstance(layer, AffineCoupling):
            close(layer)
        else:
            if linear:
                close(None)
            stages.append(layer)
    if linear:
        close(None)
    return stages


@dataclass
class Step:
    """``y = W x + b`` at every pixel, then a coupling or none; log-det of W for one pixel, in nats."""

    forward: Affine
    inverse: Affine
    log_det: float
    coupling: AffineCoupling | None

    @classmethod
    @torch.no_grad()
    def of(cls, linear: Sequence[PixelLinear], coupling: AffineCoupling | None) -> Step:
        like = next(t for m in linear for t in (*m.parameters(), *m.buffers()))
        w, b = linear[0].matrix()
        for layer in linear[1:]:
            w2, b2 = layer.matrix()
            w, b = w2 @ w, w2 @ b + b2
        w_inv = torch.linalg.inv(w)
        sizes = coupling.sizes if coupling else (len(w) - len(w) // 2, len(w) // 2)
        maps = (
            Affine(m.to(like.dtype), v.to(like.dtype), sizes)
            for m, v in ((w, b), (w_inv, -(w_inv @ b)))
        )
        return cls(*maps, torch.linalg.slogdet(w)[1].item(), coupling)


class Affine:
    """W and b cut into the blocks that act between the halves of the channels."""

    def __init__(self, weight: Tensor, bias: Tensor, sizes: tuple[int, int]):
        self.biases = bias.split(sizes)
        self.blocks = [
            [block.T.contiguous() for block in rows.split(sizes, dim=1)]
            for rows in weight.split(sizes)
        ]

    def __call__(self, halves: Sequence[Tensor]) -> list[Tensor]:
        """Rows of pixels, (N, C1) and (N, C2), to the same."""
        blocks = zip(self.biases, self.blocks, strict=True)
        return [
            torch.addmm(bias, halves[0], one).addmm_(halves[1], other)
            for bias, (one, other) in blocks
        ]


class FoldedRun:
    """Consecutive steps on the halves of (B, C, H, W); called as the bijection that they are."""

    def __init__(self, steps: list[Step]):
        self.steps = steps

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        halves, shape = self._halves(x)
        log_det = x.new_zeros(x.shape[0])
        constant = 0.0
        for step in self.steps:
            with torch.autocast(x.device.type, enabled=False):
                halves = step.forward(halves)
            constant += step.log_det
            if step.coupling is not None:
                x1, x2 = (_images(h, shape) for h in halves)
                y2, log_scale = step.coupling.transform(x1, x2)
                log_det = log_det + log_scale.sum(dim=(1, 2, 3))
                halves = halves[0], _rows(y2)
        return _images(torch.cat(list(halves), dim=1), shape), log_det + constant * (
            shape[1] * shape[2]
        )

    def inverse(self, y: Tensor) -> Tensor:
        halves, shape = self._halves(y)
        for step in reversed(self.steps):
            if step.coupling is not None:
                y1, y2 = (_images(h, shape) for h in halves)
                halves = halves[0], _rows(step.coupling.restore(y1, y2))
            with torch.autocast(y.device.type, enabled=False):
                halves = step.inverse(halves)
        return _images(torch.cat(list(halves), dim=1), shape)

    def _halves(self, x: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[int, int, int]]:
        """Rows of pixels of both halves, in the dtype of the matrices, and (B, H, W)."""
        first = self.steps[0].forward
        sizes = [len(b) for b in first.biases]
        rows = _rows(x.to(first.biases[0].dtype))
        return rows.split(sizes, dim=1), (x.shape[0], x.shape[2], x.shape[3])


def _rows(x: Tensor) -> Tensor:
    """(B, C, H, W) to (B * H * W, C), a view where x is channels_last."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def _images(rows: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """(B * H * W, C) to (B, C, H, W) in channels_last, a view."""
    return rows.view(*shape, rows.shape[1]).permute(0, 3, 1, 2)
