"""ConditionalFlow: a bijection, class Gaussians over its codes, and what one asks of the two."""

import copy
import dataclasses
import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from .. import pixels
from .._utils.checks import check_keys, check_labels
from .._utils.notices import warn
from ..config import FlowConfig
from ..hub import HubMixin
from .architectures import build_network, find_architecture
from .bijections import AffineCoupling, Chain
from .moments import ClassMoments
from .prior import ClassGaussians, Random
from .sound import check_sound

PRIOR_KEYS = ("a", "c", "num_modes", "low_rank")
Labels = Tensor | None  # (B,) integers


class ConditionalFlow(HubMixin):
    """A class-conditional normalizing flow (Enescu & Sahbi, ACCV 2024).

    Images x are (B, C, H, W) floats in [-1, 1] (see `timm_nfaug.pixels`), codes z (B, D), labels y
    (B,) integers in 0..K-1. `network` is the bijection between images and codes, `prior` the class
    Gaussians, `log_prior` (K,) the log probabilities of the classes, uniform unless set.

    >>> flow = ConditionalFlow(FlowConfig("linear", (3, 8, 8), num_classes=10))
    >>> z, log_det = flow(torch.zeros(2, 3, 8, 8))
    >>> z.shape, log_det.shape, flow.inverse(z).shape
    (torch.Size([2, 192]), torch.Size([2]), torch.Size([2, 3, 8, 8]))
    """

    has_class_gaussians = True

    def __init__(self, config: FlowConfig):
        super().__init__()
        _, network, prior = find_architecture(config.architecture)
        network, prior = network | config.network, prior | config.prior
        check_keys(prior, PRIOR_KEYS, "prior")
        if config.code_rows and self.has_class_gaussians:
            raise ValueError(f"code_rows={config.code_rows} is for a LabelBandFlow: use that")
        (c, h, w), gaussians = config.input_size, 1 if config.code_rows else config.num_classes
        shape = (c, h + config.code_rows, w)
        self.dim = network.get("basis") or math.prod(shape)
        prior["num_modes"] = min(prior.get("num_modes", 0), self.dim)
        self.config = dataclasses.replace(config, network=network, prior=prior)
        self.network = build_network(config.architecture, shape, network)
        self.prior = ClassGaussians(gaussians, self.dim, **prior)
        self.log_prior: Tensor = nn.Buffer(torch.zeros(config.num_classes).log_softmax(0))
        self.to(memory_format=torch.channels_last)

    @classmethod
    def from_config(cls, config: FlowConfig) -> "ConditionalFlow":
        """Makes the flow of a config, untrained; a `LabelBandFlow` where it has `code_rows`."""
        from .label_band import LabelBandFlow  # a subclass of this one

        return (LabelBandFlow if config.code_rows else cls)(config)

    @property
    def device(self) -> torch.device:
        return self.prior.mu.device

    @property
    def dtype(self) -> torch.dtype:
        return self.prior.mu.dtype

    @property
    def num_classes(self) -> int:
        return self.config.num_classes

    @property
    def is_linear(self) -> bool:
        """Whether this is the flow of depth 0, whose codes are the pixels."""
        return self.config.architecture == "linear" and self.has_class_gaussians

    def set_net_dtype(self, dtype: torch.dtype | None) -> "ConditionalFlow":
        """Runs the couplings' networks in `dtype`, or their own; the flow stays invertible."""
        for module in self.modules():
            if isinstance(module, AffineCoupling):
                module.net_dtype = dtype
        return self

    def set_reversible(self, reversible: bool = True) -> "ConditionalFlow":
        """Trains without stored activations, by one more pass; there are first derivatives only."""
        for module in self.modules():
            if isinstance(module, Chain):
                module.reversible = reversible
        return self

    def check_sound(self) -> None:
        """Raises a ValueError that names a tensor where images do not come back (see `sound`)."""
        check_sound(self)

    def _apply(self, fn: Callable[[Tensor], Tensor], *args, **kwargs) -> "ConditionalFlow":
        """Moves and converts as every module does, but keeps at least float32."""
        lowered = False

        def keep(t: Tensor) -> Tensor:
            nonlocal lowered
            out = fn(t)
            if not out.is_floating_point() or out.dtype.itemsize >= 4:
                return out
            lowered = True
            return torch.empty_like(out, dtype=torch.promote_types(t.dtype, torch.float32)).copy_(t)

        super()._apply(keep, *args, **kwargs)
        if lowered:
            warn(
                "a flow stays in float32, as it would not invert in 16 bits; its networks run in "
                "bfloat16 after flow.set_net_dtype(torch.bfloat16)"
            )
        return self

    def _full_precision(self) -> torch.autocast:
        """Autocast off: states and log-dets in bfloat16 would break the inverse."""
        return torch.autocast(self.device.type, enabled=False)

    def _network_input(self, x: Tensor, y: Labels) -> Tensor:
        c, h, w = self.config.input_size
        if x.ndim != 4 or x.shape[1:] != (c, h, w):
            takes = f"this flow takes images of shape (B, {c}, {h}, {w}) in [-1, 1]"
            raise ValueError(f"{takes}, got {tuple(x.shape)}; NFAugment takes any size")
        if not x.is_floating_point():
            raise TypeError(f"expected floats in [-1, 1], got {x.dtype}: pixels.levels_to_model")
        return x.to(self.dtype)

    def forward(self, x: Tensor, y: Labels = None) -> tuple[Tensor, Tensor]:
        """Encodes images: codes (B, D) and log abs det (B,) in nats; y is for a `LabelBandFlow`."""
        x = self._network_input(x, y)
        if not len(x):  # reshapes to (B, -1) would not know D
            return x.new_zeros(0, self.dim), x.new_zeros(0)
        with self._full_precision():
            return self.network(x)

    def inverse(self, z: Tensor) -> Tensor:
        """Decodes codes (B, D) to images (B, C, H, W), not clamped to [-1, 1]."""
        if z.ndim != 2 or z.shape[1] != self.dim:
            raise ValueError(f"codes of this flow have shape (B, {self.dim}), got {tuple(z.shape)}")
        with self._full_precision():
            return self.network.inverse(z.to(self.dtype))

    def encode(self, x: Tensor, y: Labels = None) -> tuple[Tensor, Tensor]:
        """Encodes images: codes (B, D) and labels (B,), unless given the most probable ones."""
        z = self(x)[0]
        if y is None and self.num_classes == 1:
            y = torch.zeros(len(z), dtype=torch.int64, device=z.device)
        return z, self.code_logits(z).argmax(1) if y is None else y

    def gaussian_labels(self, y: Tensor, count: int | None = None) -> Tensor:
        """Checks labels (B,), of length `count` if given; returns the indices of Gaussians."""
        return check_labels(y, self.num_classes, self.device, count)

    def log_prob(self, x: Tensor, y: Tensor) -> Tensor:
        """(B,) log p(x given y) over [-1, 1], in nats."""
        z, log_det = self(x, y)
        with self._full_precision():
            return self.prior.log_prob(z, self.gaussian_labels(y, len(z))) + log_det

    def bits_per_dim(self, x: Tensor, y: Tensor) -> Tensor:
        """(B,) bits per dimension of images that `pixels.dequantize` made at the flow's depth."""
        low, high = (float(v) for v in x.aminmax()) if x.numel() else (0.0, 0.0)
        if not (low >= -1.01 and high <= 1.01):
            got = f"{low:.3g} to {high:.3g}"
            raise ValueError(f"expected floats in [-1, 1], got {got}: pixels.levels_to_model")
        return pixels.bits_per_dim(self.log_prob(x, y), self.dim, self.config.bits)

    def class_logits(self, x: Tensor) -> Tensor:
        """(B, K) log p(x given y) + log prior, up to a constant per image: classifies images."""
        return self.code_logits(self(x)[0])

    def code_logits(self, z: Tensor) -> Tensor:
        """`class_logits` from codes (B, D)."""
        with self._full_precision():
            return self.prior.log_prob_all(z) + self.log_prior

    def with_prior(self, prior: ClassGaussians, class_names=()) -> "ConditionalFlow":
        """Makes a flow that shares this one's network but has class Gaussians of its own."""
        flow = copy.copy(self)
        flow._modules, flow._buffers = dict(self._modules), dict(self._buffers)
        arguments, names = {key: getattr(prior, key) for key in PRIOR_KEYS}, list(class_names)
        flow.config = dataclasses.replace(
            self.config, num_classes=prior.num_classes, class_names=names, prior=arguments
        )
        flow.prior = prior.to(self.prior.mu)
        flow.log_prior = self.log_prior.new_zeros(prior.num_classes).log_softmax(0)
        return flow

    def pooled(self) -> "ConditionalFlow":
        """A flow that shares this one's network and has one Gaussian for all classes together.

        >>> from timm_nfaug import create_flow
        >>> create_flow("linear", num_classes=10).pooled().num_classes
        1
        """
        flow = self.with_prior(self.prior.pooled(self.log_prior.exp()).requires_grad_(False))
        info = {k: v for k, v in flow.config.info.items() if k != "metrics"}  # of the classes
        flow.config = dataclasses.replace(flow.config, info=info, augment={})
        return flow

    def sample(
        self, y: Tensor, temperature: float = 1.0, mean_scale: float = 1.0, generator: Random = None
    ) -> Tensor:
        """Draws images (B, C, H, W) of labels y (B,), from codes drawn by `ClassGaussians.sample`."""
        draw = lambda index: self.prior.sample(index, temperature, mean_scale, generator)
        with self._full_precision():
            return self._sample(y, draw)

    def _sample(self, y: Tensor, draw: Callable[[Tensor], Tensor]) -> Tensor:
        return self.inverse(draw(self.gaussian_labels(y)))

    def interpolate(
        self, x0: Tensor, x1: Tensor, steps: int = 8, y0: Labels = None, y1: Labels = None
    ) -> Tensor:
        """(B, steps, C, H, W): from x0 to x1 along a line between their codes.

        The norm is interpolated too: codes live in a shell (Huang et al., 2020).
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
    def initialize(self, x: Tensor, y: Labels = None) -> None:
        """Sets whitening and affine layers from dequantised images (B, C, H, W)."""
        with self._full_precision():
            self.network.initialize(self._network_input(x, y))

    @torch.no_grad()
    def moments(
        self, batches: Iterable, num_classes=None, num_modes=0, allow_empty=False, shrinkage=0.0
    ) -> ClassMoments:
        """Gathers `ClassMoments` of the codes of (images, labels), of its own classes or others."""
        count = num_classes or self.prior.num_classes
        found = ClassMoments(count, self.dim, num_modes, allow_empty, shrinkage)
        for x, y in batches:
            own = y if num_classes else self.gaussian_labels(y)
            own = check_labels(own, count, self.device, len(x))
            found.update(self(x.to(self.device), y)[0], own)
        return found
