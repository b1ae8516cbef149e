"""ConditionalFlow: a bijection, class Gaussians over its codes, and what one asks of the two."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from .. import pixels
from .._utils.checks import check_keys, check_labels
from ..config import FlowConfig
from ..hub import HubMixin
from .architectures import build_network, default_arguments
from .bijections.chain import Chain
from .bijections.coupling import AffineCoupling
from .label_band import label_codes, nearest_label
from .moments import ClassMoments
from .prior import ClassGaussians


def _full_precision(method):
    """Turns autocast off inside: states and log-dets in bfloat16 would break the inverse."""

    @functools.wraps(method)
    def wrapped(self, *args, **kwargs):
        with torch.autocast(self.device.type, enabled=False):
            return method(self, *args, **kwargs)

    return wrapped


class ConditionalFlow(HubMixin, nn.Module):
    """A class-conditional normalizing flow.

    Images x are (B, C, H, W) floats in [-1, 1] (see `timm_nfaug.pixels`), codes z are (B, D), labels y are (B,) int64.
    Build one with `timm_nfaug.create_flow` or load one with `ConditionalFlow.from_pretrained`.

    References:
        Enescu & Sahbi, "Learning Classwise Untangled Continuums for Conditional Normalizing Flows", ACCV 2024.
    """

    def __init__(self, config: FlowConfig):
        super().__init__()
        network, prior = default_arguments(config.architecture)
        network.update(config.network)
        prior.update(config.prior)
        check_keys(prior, {"a", "c", "num_modes", "low_rank"}, "prior")
        config.network, config.prior = network, prior
        self.config = config
        c, h, w = config.input_size
        self.network = build_network(config.architecture, (c, h + config.code_rows, w), network)
        dim = c * (h + config.code_rows) * w
        prior["num_modes"] = min(prior.get("num_modes", 0), dim)
        self.prior = ClassGaussians(1 if config.code_rows else config.num_classes, dim, **prior)
        self.register_buffer("log_prior", torch.zeros(config.num_classes).log_softmax(0))
        codes = torch.zeros(0, dtype=torch.uint8)
        if config.code_rows:
            codes = label_codes(config.num_classes, c, config.code_rows, w)
        self.register_buffer("codes", codes, persistent=False)
        self.to(memory_format=torch.channels_last)

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
    def dim(self) -> int:
        """D, length of a code."""
        return self.prior.dim

    @property
    def is_linear(self) -> bool:
        """True for the flow of depth 0, whose codes are the pixels."""
        return self.config.architecture == "linear" and not self.config.code_rows

    def set_net_dtype(self, dtype: torch.dtype | None) -> ConditionalFlow:
        """Runs the networks inside the couplings in `dtype` (bfloat16, float16) or, with None, in that of the parameters.

        The state stays in full precision, so the flow stays invertible; it becomes a slightly different flow.
        """
        for module in self.modules():
            if isinstance(module, AffineCoupling):
                module.net_dtype = dtype
        return self

    def set_reversible(self, reversible: bool = True) -> ConditionalFlow:
        """Trains without stored activations: backward computes them again from the output of the flow.

        Memory does not grow with the depth but for weights and gradients; each coupling's network is evaluated once more.
        Gradients are those of an exact inverse, so with the networks in bfloat16 they carry its rounding. Only first
        derivatives exist then.
        """
        for module in self.modules():
            if isinstance(module, Chain):
                module.reversible = reversible
        return self

    def _check_images(self, x: Tensor) -> Tensor:
        c, h, w = self.config.input_size
        if x.ndim != 4 or tuple(x.shape[1:]) != (c, h, w):
            raise ValueError(
                f"this flow takes images of shape (B, {c}, {h}, {w}) in [-1, 1], got {tuple(x.shape)}; "
                f"NFAugment brings images of any size to it"
            )
        if not x.is_floating_point():
            raise TypeError(
                f"this flow takes floats in [-1, 1], got {x.dtype}; see timm_nfaug.pixels.levels_to_model"
            )
        return x.to(self.dtype)

    def _append_codes(self, x: Tensor, y: Tensor | None) -> Tensor:
        if not self.config.code_rows:
            return x
        if y is None:
            raise ValueError("a flow with conditional encoding needs the labels: flow(x, y)")
        y = self._check_labels(y, len(x))
        return torch.cat([x, pixels.levels_to_model(self.codes[y]).to(x.dtype)], dim=2)

    def _check_labels(self, y: Tensor, count: int | None = None) -> Tensor:
        return check_labels(y, self.num_classes, self.device, count)

    @_full_precision
    def forward(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) in [-1, 1] to codes (B, D) and log abs det (B,) in nats.

        Args:
            y: labels (B,); only a flow with conditional encoding uses them, and needs them.
        """
        x = self._append_codes(self._check_images(x), y)
        if not len(x):  # reshapes to (B, -1) would not know D
            return x.new_zeros(0, self.dim), x.new_zeros(0)
        return self.network(x)

    @_full_precision
    def inverse(self, z: Tensor) -> Tensor:
        """Codes (B, D) to images (B, C, H, W); not clamped to [-1, 1]."""
        return self._decode(z)[:, :, : self.config.input_size[1]]

    def _decode(self, z: Tensor) -> Tensor:
        if z.ndim != 2 or z.shape[1] != self.dim:
            raise ValueError(f"codes of this flow have shape (B, {self.dim}), got {tuple(z.shape)}")
        return self.network.inverse(z.to(self.dtype))

    def gaussian_labels(self, y: Tensor, count: int | None = None) -> Tensor:
        """Checked labels (B,) to the indices of their Gaussians: 0 for all with conditional encoding.

        Args:
            count: B that they must have.
        """
        y = self._check_labels(y, count)
        return torch.zeros_like(y) if self.config.code_rows else y

    @_full_precision
    def log_prob(self, x: Tensor, y: Tensor) -> Tensor:
        """(B,) log p(x given y) over [-1, 1], in nats; with conditional encoding, of image and code band together."""
        z, log_det = self(x, y)
        return self.prior.log_prob(z, self.gaussian_labels(y, len(z))) + log_det

    def bits_per_dim(self, x: Tensor, y: Tensor) -> Tensor:
        """(B,) bits per dimension of dequantised images x at the flow's bit depth (`pixels.dequantize`)."""
        return pixels.bits_per_dim(self.log_prob(x, y), self.dim, self.config.bits)

    @_full_precision
    def class_logits(self, x: Tensor) -> Tensor:
        """(B, K) log p(z given y) + log prior, up to a constant for each image: the flow as a classifier.

        With conditional encoding it takes K passes, one with each label's code.
        """
        if self.config.code_rows:
            labels = torch.arange(self.num_classes, device=x.device).unsqueeze(1).expand(-1, len(x))
            return torch.stack([self.log_prob(x, y) for y in labels], dim=1) + self.log_prior
        return self.code_logits(self(x)[0])

    def encode(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Codes (B, D) and labels (B,), the flow's own guess where y is None."""
        if self.config.code_rows and y is None:
            y = self.class_logits(x).argmax(1)
        z, _ = self(x, y)
        if y is None and self.num_classes == 1:
            y = torch.zeros(len(z), dtype=torch.int64, device=z.device)
        return z, self.code_logits(z).argmax(1) if y is None else y

    @_full_precision
    def code_logits(self, z: Tensor) -> Tensor:
        """`class_logits` from codes (B, D); not with conditional encoding, whose codes hold a label already."""
        return self.prior.log_prob_all(z) + self.log_prior

    def with_prior(self, prior: ClassGaussians, class_names: list[str] = ()) -> ConditionalFlow:
        """A flow that shares this one's network but owns other class Gaussians."""
        if self.config.code_rows:
            raise ValueError(
                "a flow with conditional encoding has one shared Gaussian; fit a flow with class Gaussians"
            )
        flow = copy.copy(self)
        flow._modules, flow._buffers = dict(self._modules), dict(self._buffers)
        flow.config = copy.deepcopy(self.config)
        flow.config.num_classes, flow.config.class_names = prior.num_classes, list(class_names)
        flow.config.prior = {
            "a": prior.a,
            "c": prior.c,
            "num_modes": prior.num_modes,
            "low_rank": prior.low_rank,
        }
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
        """Images (B, C, H, W) of labels y (B,), in [-1, 1] up to the tails of the model; not clamped.

        With conditional encoding the label of a sample is read from its band, and sampling goes on until every label
        asked for has its images; a flow that cannot make one of them raises.
        """
        y = self._check_labels(y)
        if not self.config.code_rows:
            return self._decode(self.prior.sample(y, temperature, mean_scale, generator))
        out = torch.empty(len(y), *self.config.input_size, dtype=self.dtype, device=self.device)
        wanted = [torch.nonzero(y == k).flatten().tolist() for k in range(self.num_classes)]
        left, barren = len(y), 0
        while left:
            shared = torch.zeros(max(32, min(4 * left, 512)), dtype=torch.int64, device=self.device)
            x, labels = self._sample_with_labels(shared, temperature, mean_scale, generator)
            before = left
            for image, k in zip(x, labels.tolist(), strict=True):
                if wanted[k]:
                    out[wanted[k].pop()] = image
                    left -= 1
            barren = barren + 1 if left == before else 0
            if barren == 50:
                missing = [k for k in range(self.num_classes) if wanted[k]]
                raise RuntimeError(
                    f"50 batches of samples in a row held no label of {missing}; train the flow further"
                )
        return out

    def _sample_with_labels(
        self, shared, temperature, mean_scale, generator
    ) -> tuple[Tensor, Tensor]:
        x = self._decode(self.prior.sample(shared, temperature, mean_scale, generator))
        h = self.config.input_size[1]
        return x[:, :, :h], nearest_label(x[:, :, h:], pixels.levels_to_model(self.codes))

    @_full_precision
    def interpolate(
        self,
        x0: Tensor,
        x1: Tensor,
        steps: int = 8,
        y0: Tensor | None = None,
        y1: Tensor | None = None,
    ) -> Tensor:
        """(B, steps, C, H, W): from x0 to x1 along a line in the codes whose norms are interpolated too.

        Without the rescaling the middle of the line falls inside the shell where the codes live (Huang et al. 2020).

        Args:
            y0, y1: labels, for a flow with conditional encoding.
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
        """Sets the data-dependent parameters (whitening, affine) from dequantised images (B, C, H, W)."""
        self.network.initialize(self._append_codes(self._check_images(x), y))

    @torch.no_grad()
    def moments(
        self,
        batches: Iterable[tuple[Tensor, Tensor]],
        num_classes: int | None = None,
        num_modes: int = 0,
        allow_empty: bool = False,
        shrinkage: float = 0.0,
    ) -> ClassMoments:
        """Mean, variance and principal components of the codes of each class, in one pass.

        Args:
            batches: pairs of images (B, C, H, W) in [-1, 1] and labels (B,).
            num_classes: K of these labels, where they are of another data set than the flow's own.
            num_modes: principal components to estimate for each class.
            allow_empty, shrinkage: of `ClassMoments`.
        """
        found = ClassMoments(
            num_classes or self.prior.num_classes, self.dim, num_modes, allow_empty, shrinkage
        )
        for x, y in batches:
            x, y = (
                x.to(self.device),
                check_labels(y, num_classes or self.num_classes, self.device, len(x)),
            )
            z = self(x, y)[0]
            found.update(z, torch.zeros_like(y) if self.config.code_rows else y)
        return found
