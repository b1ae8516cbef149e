"""Batch norm with fixed statistics as part of the convolution before it: less memory is moved.

A normalisation with fixed mean and variance is an affine function per channel, which the kernel and
the bias of the convolution take in (`torch.nn.utils.fusion`).
"""

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

# of the largest output: the same products in another order, through fifty layers of float32
TOLERANCE = 1e-3


@torch.no_grad()
def fold_batch_norms(model: nn.Module, x: Tensor) -> int:
    """Folds each batch norm that follows a convolution into it, in place, for evaluation and training.

    Args:
        x: images (B, C, H, W) that show which norm follows which convolution.

    Returns:
        How many were folded.

    Raises:
        ValueError: the model gives other outputs after it.
    """
    training = model.training
    before = model.eval()(x)
    pairs = conv_and_norm(model, x)
    for conv, norm in pairs:
        put(model, norm, activation_of(norm))
        folded = fuse_conv_bn_eval(conv, norm)
        folded.bias.requires_grad_(norm.affine)  # torch leaves a new bias untrained
        put(model, conv, folded)
    after = model(x)
    if (after - before).abs().max() > TOLERANCE * before.abs().max():
        raise ValueError(
            f"{type(model).__name__} gives other outputs with its batch norms folded; "
            "leave them where they are: norm='fixed'"
        )
    model.train(training)
    return len(pairs)


def conv_and_norm(model: nn.Module, x: Tensor) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Pairs of a convolution and the batch norm that takes its output, as images x (B, C, H, W) meet them."""
    made: dict[
        int, tuple[nn.Conv2d, Tensor]
    ] = {}  # the tensors are held, so that no id comes again
    pairs = []

    def after_conv(module, _, output):
        made[id(output)] = module, output

    def before_norm(module, inputs):
        if id(inputs[0]) in made:
            pairs.append((made[id(inputs[0])][0], module))

    hooks = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            hooks.append(module.register_forward_hook(after_conv))
        elif isinstance(module, nn.BatchNorm2d):
            hooks.append(module.register_forward_pre_hook(before_norm))
    model(x)
    for hook in hooks:
        hook.remove()
    return pairs


def activation_of(norm: nn.BatchNorm2d) -> nn.Module:
    """What a batch norm does after the normalisation: timm's BatchNormAct2d has an activation."""
    return nn.Sequential(norm.drop, norm.act) if hasattr(norm, "act") else nn.Identity()


def put(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Puts `new` where `old` is in `model`."""
    name = next(name for name, module in model.named_modules() if module is old)
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, new)
