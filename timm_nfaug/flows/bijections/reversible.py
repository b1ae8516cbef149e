"""Backward without stored activations: inputs come from outputs (Gomez et al., RevNet, 2017).

The memory of a training step then grows with the depth by the parameters alone. The price is one
more evaluation of each coupling's network, as with gradient checkpointing.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .base import Bijection
from .coupling import AffineCoupling

Back = tuple[Tensor, Tensor, Sequence[Tensor | None]]


def run_reversibly(layers: Sequence[Bijection], x: Tensor) -> tuple[Tensor, Tensor]:
    """y and log_det (B,) of the layers in turn, as `Chain.forward`; first derivatives only.

    >>> layer = AffineCoupling(torch.nn.Conv2d(2, 4, 1), channels=4)
    >>> run_reversibly([layer], torch.ones(1, 4, 3, 3))[1].requires_grad
    True
    """
    params = [p for layer in layers for p in layer.parameters() if p.requires_grad]
    return _Reversible.apply(x, layers, *params)


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
        y, found = ctx.saved_tensors[0].detach(), list[Tensor | None]()
        with torch.autocast(y.device.type, enabled=False):
            for layer in reversed(ctx.layers):
                step = _coupling_back if type(layer) is AffineCoupling else _layer_back
                y, grad, own = step(layer, y, grad, grad_log_det)
                found[:0] = own
        return (grad, None, *found)


def _layer_back(layer: Bijection, y: Tensor, grad: Tensor, grad_log_det: Tensor) -> Back:
    """A layer's input, and the gradients for it and the parameters, from the output and its own."""
    params = [p for p in layer.parameters() if p.requires_grad]
    with torch.no_grad():
        x = layer.inverse(y)
    with torch.enable_grad():
        out, log_det = layer(x.requires_grad_())
    n = 2 if log_det.requires_grad else 1
    outs, grads = (out, log_det)[:n], (grad, grad_log_det)[:n]
    grad, *own = torch.autograd.grad(outs, [x, *params], grads, allow_unused=True)
    return x.detach(), grad, own


def _coupling_back(layer: AffineCoupling, y: Tensor, grad: Tensor, grad_log_det: Tensor) -> Back:
    """The same for a coupling, whose network sees one half alone and so has to run once only."""
    params = [p for p in layer.parameters() if p.requires_grad]
    y1, y2 = y.split(layer.sizes, dim=1)
    grad1, grad2 = grad.split(layer.sizes, dim=1)
    with torch.enable_grad():
        x1 = y1.detach().requires_grad_()
        log_scale, shift = layer.log_scale_and_shift(x1)
    with torch.no_grad():
        scale, moved = log_scale.exp(), y2 - shift  # moved: x2 * scale
        grads = grad2 * moved + grad_log_det.view(-1, 1, 1, 1), grad2
    outs = log_scale, shift
    through, *own = torch.autograd.grad(outs, [x1, *params], grads, allow_unused=True)
    x = torch.cat([y1, moved / scale], dim=1)
    return x, torch.cat([grad1 + through, grad2 * scale], dim=1), own
