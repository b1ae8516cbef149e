"""LabelBandFlow: conditional encoding (CE), the baseline that writes the label into the image.

A band of blocks below the image spells its label, one Gaussian serves all classes, and a sample's
label is read by the nearest band (Enescu & Sahbi, ACCV 2024, supplementary, figure 39: 8 rows).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..config import FlowConfig
from ..pixels import levels_to_model
from .architectures import Shape
from .model import ConditionalFlow, Labels
from .prior import ClassGaussians

BLOCK = 4  # pixels, height and width of a block
LOW, HIGH = 64, 192  # uint8 levels of the two values
PATIENCE = 50  # batches of samples in a row with no label that is still wanted


class LabelBandFlow(ConditionalFlow):
    """A flow of images above a band of `config.code_rows` rows that spells the label.

    Unlike a `ConditionalFlow` it needs labels to encode, has one Gaussian for all codes, and takes K
    passes for `class_logits`; densities are those of image and band (C, code_rows, W) together.
    `codes` (K, C, code_rows, W), uint8, are the bands.

    >>> flow = LabelBandFlow(FlowConfig("linear", (3, 8, 8), num_classes=2, code_rows=4))
    >>> flow(torch.zeros(1, 3, 8, 8), torch.tensor([1]))[0].shape  # 3 x 12 x 8
    torch.Size([1, 288])
    """

    has_class_gaussians = False

    def __init__(self, config: FlowConfig):
        super().__init__(config)
        c, _, w = config.input_size
        codes = label_codes(config.num_classes, c, config.code_rows, w)
        self.codes = nn.Buffer(codes, persistent=False)

    @staticmethod
    def _layout(config: FlowConfig) -> tuple[Shape, int]:
        if not config.code_rows:
            raise ValueError("a LabelBandFlow needs code_rows in its config, e.g. 8; got 0")
        c, h, w = config.input_size
        return (c, h + config.code_rows, w), 1

    def _network_input(self, x: Tensor, y: Labels) -> Tensor:
        x = super()._network_input(x, y)
        if y is None:
            raise ValueError("a flow with conditional encoding needs the labels: flow(x, y)")
        y = super().gaussian_labels(y, len(x))
        return torch.cat([x, levels_to_model(self.codes[y]).to(x.dtype)], dim=2)

    def inverse(self, z: Tensor) -> Tensor:
        """Decodes codes (B, D) to images (B, C, H, W) without their bands, not clamped to [-1, 1]."""
        return self.decode(z)[0]

    def decode(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Decodes codes (B, D) to images (B, C, H, W) and bands (B, C, code_rows, W), not clamped."""
        images, bands = super().inverse(z).tensor_split([self.config.input_size[1]], dim=2)
        return images, bands

    def encode(self, x: Tensor, y: Labels = None) -> tuple[Tensor, Tensor]:
        """Encodes images (B, C, H, W): codes (B, D) and labels (B,), by K more passes if y is None."""
        y = self.class_logits(x).argmax(1) if y is None else y
        return self(x, y)[0], y

    def gaussian_labels(self, y: Tensor, count: int | None = None) -> Tensor:
        """Checks labels (B,), of length `count` if given; returns zeros (B,): there is one Gaussian."""
        return torch.zeros_like(super().gaussian_labels(y, count))

    def class_logits(self, x: Tensor) -> Tensor:
        """(B, K) log p(x given y) + log prior, in K passes, one with each label's band."""
        labels = torch.arange(self.num_classes, device=x.device).unsqueeze(1).expand(-1, len(x))
        return torch.stack([self.log_prob(x, y) for y in labels], dim=1) + self.log_prior

    def code_logits(self, z: Tensor) -> Tensor:
        """Raises: these codes hold a label already."""
        raise ValueError("codes with a band hold a label already; use class_logits(x)")

    def with_prior(self, prior: ClassGaussians, class_names: Sequence[str] = ()) -> ConditionalFlow:
        """Raises: there are no class Gaussians."""
        raise ValueError(
            "a flow with conditional encoding has one shared Gaussian; fit a flow with class Gaussians"
        )

    def _sample(self, y: Tensor, draw: Callable[[Tensor], Tensor]) -> Tensor:
        """Samples until each of the labels y (B,) has its image; raises if some never come."""
        y = super().gaussian_labels(y)
        out = torch.empty(len(y), *self.config.input_size, dtype=self.dtype, device=self.device)
        wanted = [torch.nonzero(y == k).flatten().tolist() for k in range(self.num_classes)]
        left, barren = len(y), 0
        while left:
            images, bands = self.decode(draw(y.new_zeros(max(32, min(4 * left, 512)))))
            labels = nearest_label(bands, levels_to_model(self.codes))
            for k, places in enumerate(wanted):
                for image in images[labels == k][: len(places)]:
                    out[places.pop()] = image
            before, left = left, sum(len(places) for places in wanted)
            barren = barren + 1 if left == before else 0
            if barren == PATIENCE:
                missing = [k for k, places in enumerate(wanted) if places]
                found = f"{PATIENCE} batches of samples in a row held no label of {missing}"
                raise RuntimeError(f"{found}; train the flow further")
        return out


def label_codes(num_classes: int, channels: int, rows: int, width: int) -> Tensor:
    """(K, C, rows, W) uint8 bands, chosen greedily so that the closest two differ in many blocks.

    >>> label_codes(num_classes=10, channels=3, rows=8, width=32).shape
    torch.Size([10, 3, 8, 32])
    """
    if rows % BLOCK or width % BLOCK:
        raise ValueError(
            f"code_rows and width must be multiples of {BLOCK}, got {rows} and {width}"
        )
    bits = channels * (rows // BLOCK) * (width // BLOCK)
    if 2**bits < num_classes:
        raise ValueError(f"{bits} blocks cannot spell {num_classes} labels; use more code_rows")
    g = torch.Generator().manual_seed(0)  # the same bands on every machine
    chosen = torch.randint(0, 2, (1, bits), generator=g)
    while len(chosen) < num_classes:
        candidates = torch.randint(0, 2, (256, bits), generator=g)
        distance = (candidates[:, None] != chosen[None]).sum(2).min(1).values
        if int(distance.max()) > 0:
            chosen = torch.cat([chosen, candidates[distance.argmax()][None]])
    levels = (LOW + (HIGH - LOW) * chosen).to(torch.uint8)
    blocks = levels.view(num_classes, channels, rows // BLOCK, width // BLOCK)
    return blocks.repeat_interleave(BLOCK, 2).repeat_interleave(BLOCK, 3)


def nearest_label(band: Tensor, codes: Tensor) -> Tensor:
    """Reads the labels (B,) of bands (B, C, rows, W): the nearest of codes (K, C, rows, W).

    >>> codes = label_codes(num_classes=3, channels=1, rows=4, width=16)
    >>> nearest_label(codes.float(), codes)
    tensor([0, 1, 2])
    """
    return torch.cdist(band.flatten(1), codes.flatten(1).to(band)).argmin(1)
