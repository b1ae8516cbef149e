"""Backward without stored activations: inputs come from outputs (Gomez et al., RevNet, 2017).

Memory grows with the depth by the parameters alone; each coupling's network runs once more.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .base import Bijection
from .coupling import AffineCoupling


def run_reversibly(layers: Sequence[Bijection], x: Tensor) -> tuple[Tensor, Tensor]:
    """y and log_det (B,) of the layers in turn, as `Chain.forward`; first derivatives only.

    >>> layer = AffineCoupling(torch.nn.Conv2d(2, 4, 1), channels=4)
    >>> run_reversibly([layer], torch.ones(1, 4, 3, 3))[1].requires_grad
    True
    """
    return _Reversible.apply(x, layers, *(p for layer in layers for p in _trained(layer)))


class _Reversible(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, layers, *params):
        log_det = x.new_zeros(len(x))
        for layer in layers:
            x, ld = layer(x)
            log_det = log_det + ld
        ctx.layers = layers
        ctx.save_for_backward(x, *params)  # so that autograd sees a change of them in between
        return x, log_det

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, grad_log_det):
        y, found = ctx.saved_tensors[0].detach(), list[Tensor]()
        with torch.autocast(y.device.type, enabled=False):
            for layer in reversed(ctx.layers):
                step = _coupling_back if type(layer) is AffineCoupling else _layer_back
                y, grad, own = step(layer, y, grad, grad_log_det)
                found[:0] = own
        return (grad, None, *found)


def _layer_back(layer: Bijection, y: Tensor, grad: Tensor, grad_log_det: Tensor) -> tuple:
    """A layer's input, and the gradients for it and the parameters, from the output and its own."""
    with torch.no_grad():
        x = layer.inverse(y)
    with torch.enable_grad():
        outs = layer(x.requires_grad_())
    n = 2 if outs[1].requires_grad else 1
    grad, *own = _gradients(outs[:n], x, layer, (grad, grad_log_det)[:n])
    return x.detach(), grad, own


def _coupling_back(layer: AffineCoupling, y: Tensor, grad: Tensor, grad_log_det: Tensor) -> tuple:
    """The same for a coupling, whose network sees one half alone and so has to run once only."""
    (y1, y2), (grad1, grad2) = y.split(layer.sizes, dim=1), grad.split(layer.sizes, dim=1)
    with torch.enable_grad():
        x1 = y1.detach().requires_grad_()
        log_scale, shift = layer.log_scale_and_shift(x1)
    with torch.no_grad():
        scale, moved = log_scale.exp(), y2 - shift  # moved: x2 * scale
        grads = grad2 * moved + grad_log_det.view(-1, 1, 1, 1), grad2
    through, *own = _gradients((log_scale, shift), x1, layer, grads)
    x = torch.cat([y1, moved / scale], dim=1)
    return x, torch.cat([grad1 + through, grad2 * scale], dim=1), own


def _gradients(outs: Any, x: Tensor, layer: Bijection, grads: Any) -> tuple[Tensor, ...]:
    return torch.autograd.grad(outs, [x, *_trained(layer)], grads, allow_unused=True)


def _trained(layer: Bijection) -> list[Tensor]:
    return [p for p in layer.parameters() if p.requires_grad]
