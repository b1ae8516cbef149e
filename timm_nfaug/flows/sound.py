"""check_sound: refuses a flow that does not invert, or whose modes move images to infinity."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .bijections import PixelLinear, Whiten

if TYPE_CHECKING:
    from .model import ConditionalFlow

LEVEL = 2 / 255  # in the range [-1, 1]
# Levels: a larger error shows in an image. Flows of every architecture, trained and random, stay
# below 0.01; a 1x1 matrix that is singular up to rounding gives millions.
TOLERANCE = 0.5
FAR = 3.0  # standard deviations, where the noise of the moves is cut


@torch.no_grad()
def check_sound(flow: ConditionalFlow) -> None:
    """Raises a ValueError that names a tensor where a flow in evaluation mode is not sound.

    Two samples of the flow, at temperature 0.5, must come back from their codes, and stay finite
    when all modes of the widest class move them by `FAR`. Whitening must fit its stored inverse.

    >>> from timm_nfaug import create_flow
    >>> check_sound(create_flow("linear", input_size=(3, 8, 8)).eval())
    """
    for name, layer in flow.named_modules():
        if isinstance(layer, Whiten) and not layer.is_consistent():
            raise ValueError(f"{name}.inverse_weight and log_det are not those of {name}.weight")
    flow.prior.check_covariances()
    y = torch.tensor([0, flow.num_classes - 1], device=flow.device)
    codes = flow.prior.sample(flow.gaussian_labels(y), 0.5, generator=_generator())
    try:
        x = flow.inverse(codes)
        z, log_det = flow(x, y)
        back, moved = flow.inverse(torch.cat([z, z + _far(flow)])).chunk(2)
    except torch.linalg.LinAlgError:
        raise ValueError(f"{_suspect(flow)} is singular") from None
    off = (back - x).abs().max().item() / LEVEL
    if not (off <= TOLERANCE and log_det.isfinite().all()):
        what = f"images come back {off:.3g} levels off, {TOLERANCE} is the most"
        raise ValueError(f"{what}; the likeliest cause is {_suspect(flow)}")
    if not moved.isfinite().all():
        raise ValueError("prior.modes and prior.mode_std move images out of all bounds")


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _far(flow: ConditionalFlow) -> Tensor:
    """(D,) a move along all modes of the class that has the widest."""
    std = flow.prior.mode_std
    k = int(std.sum(1).argmax())
    return FAR * (std[k] @ flow.prior.modes[k])


def _suspect(flow: ConditionalFlow) -> str:
    """The tensor of the linear layer that inverts worst, or else the largest of the network."""
    errors = {name: _error(m) for name, m in flow.named_modules() if isinstance(m, PixelLinear)}
    worst = max(errors, key=lambda name: errors[name], default="network")
    inside = worst + "." if errors and errors[worst] > LEVEL else "network."
    tensors = {
        k: v.abs().max().item() for k, v in flow.state_dict().items() if k.startswith(inside)
    }
    return max(tensors, key=lambda name: tensors[name])


def _error(layer: PixelLinear) -> float:
    x = torch.randn(4, len(layer.matrix()[1]), 1, 1, generator=_generator())
    try:
        off = (layer.inverse(layer(x)[0]) - x).abs().max()
    except torch.linalg.LinAlgError:
        return torch.inf
    return off.nan_to_num(torch.inf).item()
