"""ConditionalFlow: a bijection, class Gaussians over its codes, and what one asks of the two."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from .. import pixels
from .._utils.checks import check_keys, check_labels
from ..config import FlowConfig
from ..hub import HubMixin
from .architectures import build_network, default_arguments
from .bijections import AffineCoupling, Chain
from .moments import ClassMoments
from .prior import ClassGaussians

PRIOR_KEYS = ("a", "c", "num_modes", "low_rank")
Method = TypeVar("Method", bound=Callable[..., Any])


def _full_precision(method: Method) -> Method:
    """Turns autocast off inside: states and log-dets in bfloat16 would break the inverse."""

    @functools.wraps(method)
    def wrapped(self, *args, **kwargs):
        with torch.autocast(self.device.type, enabled=False):
            return method(self, *args, **kwargs)

    return cast(Method, wrapped)


class ConditionalFlow(HubMixin):
    """A class-conditional normalizing flow.

    Images x are (B, C, H, W) floats in [-1, 1] (see `timm_nfaug.pixels`), codes z are (B, D),
    labels y are (B,) integers from 0 to K - 1. `create_flow`, `from_pretrained` and `from_config`
    make one.

    Attributes:
        config: everything that rebuilds the flow but its weights; the flow's own copy.
        network: the bijection from images to codes.
        prior: the class Gaussians over the codes.
        log_prior: (K,) log probabilities of the classes, uniform unless set.
        has_class_gaussians: whether each class has a Gaussian; False for a `LabelBandFlow`.

    References:
        Enescu & Sahbi, "Learning Classwise Untangled Continuums for Conditional Normalizing
        Flows", ACCV 2024.

    >>> flow = ConditionalFlow(FlowConfig("linear", (3, 8, 8), num_classes=10))
    >>> z, log_det = flow(torch.zeros(2, 3, 8, 8))
    >>> z.shape, log_det.shape, flow.inverse(z).shape
    (torch.Size([2, 192]), torch.Size([2]), torch.Size([2, 3, 8, 8]))
    """

    has_class_gaussians = True
    log_prior: Tensor

    def __init__(self, config: FlowConfig):
        super().__init__()
        self.config = config = copy.deepcopy(config)
        network, prior = default_arguments(config.architecture)
        config.network, config.prior = network | config.network, prior | config.prior
        check_keys(config.prior, PRIOR_KEYS, "prior")
        shape, gaussians = self._layout(config)
        dim = math.prod(shape)
        self.network = build_network(config.architecture, shape, config.network)
        config.prior["num_modes"] = min(config.prior.get("num_modes", 0), dim)
        self.prior = ClassGaussians(gaussians, dim, **config.prior)
        self.register_buffer("log_prior", torch.zeros(config.num_classes).log_softmax(0))
        self.to(memory_format=torch.channels_last)

    @classmethod
    def from_config(cls, config: FlowConfig) -> ConditionalFlow:
        """Makes the flow of a config with random weights; a `LabelBandFlow` if it has `code_rows`."""
        from .label_band import LabelBandFlow  # a subclass of this one

        return (LabelBandFlow if config.code_rows else cls)(config)

    @staticmethod
    def _layout(config: FlowConfig) -> tuple[tuple[int, int, int], int]:
        """Shape of what the network takes and the number of Gaussians."""
        if config.code_rows:
            raise ValueError(
                f"code_rows={config.code_rows} is for a LabelBandFlow; "
                "ConditionalFlow.from_config(config) and create_flow choose the class"
            )
        return config.input_size, config.num_classes

    @property
    def device(self) -> torch.device:
        return self.prior.mu.device

    @property
    def dtype(self) -> torch.dtype:
        return self.prior.mu.dtype

    @property
    def num_classes(self) -> int:
        """K."""
        return self.config.num_classes

    @property
    def dim(self) -> int:
        """D, length of a code."""
        return self.prior.dim

    @property
    def is_linear(self) -> bool:
        """True for the flow of depth 0, whose codes are the pixels."""
        return self.config.architecture == "linear"

    def set_net_dtype(self, dtype: torch.dtype | None) -> ConditionalFlow:
        """Runs the couplings' networks in `dtype` (bfloat16, float16), or None: the parameters' own.

        The state stays in full precision, so the flow stays invertible; it becomes a slightly
        different flow.
        """
        for module in self.modules():
            if isinstance(module, AffineCoupling):
                module.net_dtype = dtype
        return self

    def set_reversible(self, reversible: bool = True) -> ConditionalFlow:
        """Trains without stored activations: backward recomputes them from the flow's output.

        Memory then does not grow with the depth but for weights and gradients; each coupling's
        network is evaluated once more. Gradients are those of an exact inverse, so with networks
        in bfloat16 they carry its rounding. Only first derivatives exist then.
        """
        for module in self.modules():
            if isinstance(module, Chain):
                module.reversible = reversible
        return self

    def _check_images(self, x: Tensor) -> Tensor:
        c, h, w = self.config.input_size
        if x.ndim != 4 or tuple(x.shape[1:]) != (c, h, w):
            raise ValueError(
                f"this flow takes images of shape (B, {c}, {h}, {w}) in [-1, 1], got "
                f"{tuple(x.shape)}; NFAugment brings images of any size to it"
            )
        if not x.is_floating_point():
            raise TypeError(
                f"this flow takes floats in [-1, 1], got {x.dtype}; see pixels.levels_to_model"
            )
        return x.to(self.dtype)

    def _check_labels(self, y: Tensor, count: int | None = None) -> Tensor:
        return check_labels(y, self.num_classes, self.device, count)

    def _network_input(self, x: Tensor, y: Tensor | None) -> Tensor:
        """Checked images as the network takes them."""
        return self._check_images(x)

    def _decode(self, z: Tensor) -> Tensor:
        """Codes (B, D) to what the network takes."""
        if z.ndim != 2 or z.shape[1] != self.dim:
            raise ValueError(f"codes of this flow have shape (B, {self.dim}), got {tuple(z.shape)}")
        return self.network.inverse(z.to(self.dtype))

    @_full_precision
    def forward(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Encodes images (B, C, H, W) as codes (B, D), with log abs det (B,) in nats.

        Args:
            y: labels (B,); only a `LabelBandFlow` uses them, and needs them.
        """
        x = self._network_input(x, y)
        if not len(x):  # reshapes to (B, -1) would not know D
            return x.new_zeros(0, self.dim), x.new_zeros(0)
        return self.network(x)

    @_full_precision
    def inverse(self, z: Tensor) -> Tensor:
        """Decodes codes (B, D) to images (B, C, H, W), not clamped to [-1, 1]."""
        return self._decode(z)

    def encode(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Encodes images (B, C, H, W) as codes (B, D) and gives their labels (B,).

        Args:
            y: labels (B,); None takes the flow's own most probable ones.
        """
        z = self(x)[0]
        if y is None and self.num_classes == 1:
            y = torch.zeros(len(z), dtype=torch.int64, device=z.device)
        return z, self.code_logits(z).argmax(1) if y is None else y

    def gaussian_labels(self, y: Tensor, count: int | None = None) -> Tensor:
        """Checks labels (B,) and gives the indices (B,) of their Gaussians.

        Args:
            count: B that they must have; None takes any.
        """
        return self._check_labels(y, count)

    @_full_precision
    def log_prob(self, x: Tensor, y: Tensor) -> Tensor:
        """(B,) log p(x given y) over [-1, 1], in nats."""
        z, log_det = self(x, y)
        return self.prior.log_prob(z, self.gaussian_labels(y, len(z))) + log_det

    def bits_per_dim(self, x: Tensor, y: Tensor) -> Tensor:
        """(B,) bits per dimension of images dequantised at the flow's depth (`pixels.dequantize`)."""
        return pixels.bits_per_dim(self.log_prob(x, y), self.dim, self.config.bits)

    def class_logits(self, x: Tensor) -> Tensor:
        """(B, K) log p(x given y) + log prior, up to a constant an image: the flow as a classifier."""
        return self.code_logits(self(x)[0])

    @_full_precision
    def code_logits(self, z: Tensor) -> Tensor:
        """`class_logits` from codes (B, D)."""
        return self.prior.log_prob_all(z) + self.log_prior

    def with_prior(self, prior: ClassGaussians, class_names: Sequence[str] = ()) -> ConditionalFlow:
        """Makes a flow that shares this one's network but has class Gaussians of its own."""
        flow = copy.copy(self)
        flow._modules, flow._buffers = dict(self._modules), dict(self._buffers)
        flow.config = copy.deepcopy(self.config)
        flow.config.num_classes, flow.config.class_names = prior.num_classes, list(class_names)
        flow.config.prior = {key: getattr(prior, key) for key in PRIOR_KEYS}
        flow.prior = prior.to(self.prior.mu)
        flow.log_prior = self.log_prior.new_zeros(prior.num_classes).log_softmax(0)
        return flow

    @_full_precision
    def sample(
        self,
        y: Tensor,
        temperature: float = 1.0,
        mean_scale: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draws images (B, C, H, W) of labels y (B,), in [-1, 1] up to the model's tails.

        Args:
            temperature, mean_scale: as for `ClassGaussians.sample`.
            generator: source of the noise; None takes torch's own.
        """
        y = self._check_labels(y)
        return self._decode(self.prior.sample(y, temperature, mean_scale, generator))

    @_full_precision
    def interpolate(
        self,
        x0: Tensor,
        x1: Tensor,
        steps: int = 8,
        y0: Tensor | None = None,
        y1: Tensor | None = None,
    ) -> Tensor:
        """(B, steps, C, H, W): from x0 to x1 along a line in the codes, their norms interpolated too.

        Without the rescaling the middle of the line falls inside the shell where the codes live
        (Huang et al. 2020).

        Args:
            y0, y1: labels (B,), for a `LabelBandFlow`.
        """
        if steps < 2:
            raise ValueError(f"interpolate needs at least 2 steps, got {steps}")
        z0, z1 = self(x0, y0)[0], self(x1, y1)[0]
        frames = []
        for t in torch.linspace(0, 1, steps).tolist():
            z = (1 - t) * z0 + t * z1
            norm = (1 - t) * z0.norm(dim=1) + t * z1.norm(dim=1)
            frames.append(self.inverse(z * (norm / z.norm(dim=1).clamp_min(1e-12)).unsqueeze(1)))
        return torch.stack(frames, dim=1)

    @torch.no_grad()
    @_full_precision
    def initialize(self, x: Tensor, y: Tensor | None = None) -> None:
        """Sets whitening and affine layers from dequantised images (B, C, H, W)."""
        self.network.initialize(self._network_input(x, y))

    @torch.no_grad()
    def moments(
        self,
        batches: Iterable[tuple[Tensor, Tensor]],
        num_classes: int | None = None,
        num_modes: int = 0,
        allow_empty: bool = False,
        shrinkage: float = 0.0,
    ) -> ClassMoments:
        """Gathers mean, variance and principal components of the codes of each class, in one pass.

        Args:
            batches: pairs of images (B, C, H, W) in [-1, 1] and labels (B,).
            num_classes: K of these labels; None: they are the flow's own.
            num_modes, allow_empty, shrinkage: as for `ClassMoments`.
        """
        count = num_classes or self.prior.num_classes
        found = ClassMoments(count, self.dim, num_modes, allow_empty, shrinkage)
        for x, y in batches:
            if num_classes is None:
                own = self.gaussian_labels(y, len(x))
            else:
                own = check_labels(y, num_classes, self.device, len(x))
            found.update(self(x.to(self.device), y)[0], own)
        return found
