"""LinearChange and FlowChange: images moved through the code space of a flow."""

import copy

import torch
from torch import Tensor, nn

from .. import lift
from ..flows.model import ConditionalFlow
from ..moves.base import STILL, Move
from .base import Change, Images

_ONLY_CLASS = torch.zeros(1, dtype=torch.int64)


class FlowChange(Change):
    """Encodes, moves, decodes, and subtracts: ``f^-1(f(x) + move) - x``.

    Args:
        flow: the flow; the change has its size and is made on its device. Where it has parameters
            that want gradients, a copy that shares its weights and wants none takes its place.
        move: how codes are moved.

    >>> import timm_nfaug as nfa
    >>> from timm_nfaug.moves import PCA
    >>> flow = nfa.create_flow("conv_p4_tiny", input_size=(3, 8, 8), num_classes=2, depth=1)
    >>> x, y, noise = torch.zeros(4, 3, 8, 8), torch.tensor([0, 1, 1, 0]), torch.randn(4, 8)
    >>> FlowChange(flow, PCA(modes=8)).change(lambda: x, y, noise).shape
    torch.Size([4, 3, 8, 8])
    """

    def __init__(self, flow: ConditionalFlow, move: Move):
        move.check(flow)
        self.flow, self.move = _frozen(flow), move
        self.still = bool(move.unmoved(flow).any())
        self.size = flow.config.input_size
        self.num_classes = flow.num_classes
        self.noise_size = move.noise_size(flow)

    @torch.no_grad()
    def change(self, images: Images, y: Tensor | None, noise: Tensor) -> Tensor:
        flow, x = self.flow, self._small(images)
        z, y = flow.encode(x, y if y is None else y.to(flow.device))
        y = flow.gaussian_labels(y, len(noise))
        with flow._full_precision():
            move = self.move.displacement(flow, y, noise.to(flow.log_prior), z)
        change = flow.inverse(z + move) - x
        if self.still:  # the flow's rounding must not change them either
            change[move.abs().amax(1) < STILL] = 0.0
        return change

    def with_part(self, name: str, part: nn.Module) -> "FlowChange":
        """A copy with another copy of a module, as "flow", on a device of its own."""
        change = copy.copy(self)
        setattr(change, name, part)
        return change

    def _small(self, images: Images) -> Tensor:
        return lift.down(images().to(self.flow.device), self.size[1:])


class LinearChange(FlowChange):
    """The same on the flow of depth 0, whose codes are the pixels: a weighted sum of eigen-images.

    It looks at the images only where it has to find their class, or the move needs their codes.

    >>> import timm_nfaug as nfa
    >>> from timm_nfaug.moves import PCA
    >>> flow = nfa.create_flow("linear", input_size=(3, 8, 8), num_classes=2)
    >>> change = LinearChange(flow, PCA(modes=8))
    >>> change.change(None, torch.tensor([0, 1]), torch.randn(2, 8)).shape  # no images needed
    torch.Size([2, 3, 8, 8])
    """

    def change(self, images: Images, y: Tensor | None, noise: Tensor) -> Tensor:
        flow, z, count = self.flow, None, noise.shape[0]  # len(noise) costs three times as much
        if y is None and flow.num_classes == 1:
            y = _ONLY_CLASS if count == 1 else _ONLY_CLASS.expand(count)
        if y is None or self.move.needs_code:
            with torch.no_grad():
                z, y = flow.encode(self._small(images), y if y is None else y.to(flow.device))
        single = y.shape[0] == count == 1 and y.dtype == torch.int64
        if not single or not 0 <= int(y) < flow.num_classes:
            y = flow.gaussian_labels(y, count)
        like = flow.log_prior
        if like.is_cpu and like.dtype == torch.float32 and noise.is_cpu and y.is_cpu:
            move = self.move.displacement(flow, y, noise, z)
        else:
            with flow._full_precision():
                move = self.move.displacement(flow, y.to(like.device), noise.to(like), z)
        # of pixels a code is the image; in a basis that classes share it has fewer coordinates
        whole = not flow.config.network.get("basis")
        return move.view(count, *self.size) if whole else flow.inverse(move)


def change_of(flow: ConditionalFlow, move: Move) -> FlowChange:
    """The change that suits a flow: `LinearChange` where its codes are what it is given.

    >>> import timm_nfaug as nfa
    >>> from timm_nfaug.moves import PCA
    >>> type(change_of(nfa.create_flow("linear"), PCA())).__name__
    'LinearChange'
    """
    return (LinearChange if flow.is_linear else FlowChange)(flow, move)


def _frozen(flow: ConditionalFlow) -> ConditionalFlow:
    """The flow itself if it wants no gradients, else a copy without, which shares its weights.

    A model around an augmentation must not train it, nor DistributedDataParallel wait for it.
    """
    if not any(p.requires_grad for p in flow.parameters()):
        return flow
    memo: dict = {id(b): b for b in flow.buffers()}
    memo |= {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in flow.parameters()}
    return copy.deepcopy(flow, memo)
