"""Backward without stored activations: each layer's input is computed again from its output (Gomez et al., RevNet, 2017).

The memory of a training step then does not grow with the depth but for the parameters. The price is one more evaluation of
every coupling's network, as with gradient checkpointing, which keeps the input of every layer.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .base import Bijection
from .coupling import AffineCoupling


def run_reversibly(layers: Sequence[Bijection], x: Tensor) -> tuple[Tensor, Tensor]:
    """y and log_det (B,) of the layers one after the other, as `Chain.forward`; first derivatives only."""
    params = [p for layer in layers for p in layer.parameters() if p.requires_grad]
    return _Reversible.apply(x, layers, *params)


class _Reversible(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, x: Tensor, layers: Sequence[Bijection], *params: Tensor
    ) -> tuple[Tensor, Tensor]:
        log_det = x.new_zeros(len(x))
        for layer in layers:
            x, ld = layer(x)
            log_det = log_det + ld
        ctx.layers = layers
        ctx.save_for_backward(
            x, *params
        )  # not used as such: a change of the parameters in between is told by autograd
        return x, log_det

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor, grad_log_det: Tensor) -> tuple[Tensor | None, ...]:
        y, *_ = ctx.saved_tensors
        y, found = y.detach(), []
        with torch.autocast(y.device.type, enabled=False):
            for layer in reversed(ctx.layers):
                step = _coupling_back if type(layer) is AffineCoupling else _layer_back
                y, grad, own = step(layer, y, grad, grad_log_det)
                found[:0] = own
        return (grad, None, *found)


Back = tuple[Tensor, Tensor, list[Tensor | None]]


def _layer_back(layer: Bijection, y: Tensor, grad: Tensor, grad_log_det: Tensor) -> Back:
    """Input of a layer, gradient for it and for the layer's parameters, from its output and the gradient for that."""
    params = [p for p in layer.parameters() if p.requires_grad]
    with torch.no_grad():
        x = layer.inverse(y)
    with torch.enable_grad():
        x.requires_grad_()
        out, log_det = layer(x)
        outs, grads = (
            ((out, log_det), (grad, grad_log_det)) if log_det.requires_grad else ((out,), (grad,))
        )
        grad, *own = torch.autograd.grad(outs, [x, *params], grads, allow_unused=True)
    return x.detach(), grad, own


def _coupling_back(layer: AffineCoupling, y: Tensor, grad: Tensor, grad_log_det: Tensor) -> Back:
    """The same for a coupling, whose network sees one half alone and so has to run once only."""
    params = [p for p in layer.parameters() if p.requires_grad]
    y1, y2 = y.split(layer.sizes, dim=1)
    grad1, grad2 = grad.split(layer.sizes, dim=1)
    with torch.enable_grad():
        x1 = y1.detach().requires_grad_()
        log_scale, shift = layer._log_scale_and_shift(x1)
    with torch.no_grad():
        scale = log_scale.exp()
        moved = y2 - shift  # x2 * scale
        for_log_scale = grad2 * moved + grad_log_det.view(-1, 1, 1, 1)
    through, *own = torch.autograd.grad(
        (log_scale, shift), [x1, *params], (for_log_scale, grad2), allow_unused=True
    )
    return (
        torch.cat([y1, moved / scale], dim=1),
        torch.cat([grad1 + through, grad2 * scale], dim=1),
        own,
    )
