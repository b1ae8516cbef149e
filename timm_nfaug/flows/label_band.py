"""LabelBandFlow: conditional encoding (CE), the baseline that writes the label into the image."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..config import FlowConfig
from ..pixels import levels_to_model
from .model import ConditionalFlow, Labels
from .prior import ClassGaussians

BLOCK = 4  # pixels, height and width of a block
LOW, HIGH = 64, 192  # uint8 levels of the two values
MAX_SEARCH, MAX_BITS = 2**30, 2**14  # keep the search for bands to seconds and 100 MB
PATIENCE = 50  # batches of samples in a row with no label that is still wanted


class LabelBandFlow(ConditionalFlow):
    """A flow of images above bands `codes` (K, C, code_rows, W), uint8, that spell their labels.

    One Gaussian serves all classes, and a sample's label is read by the nearest band (Enescu &
    Sahbi, ACCV 2024, supplementary, figure 39: 8 rows). It needs labels to encode, takes K passes
    for `class_logits`, and gives densities of image and band together.

    >>> flow = LabelBandFlow(FlowConfig("linear", (3, 8, 8), num_classes=2, code_rows=4))
    >>> flow(torch.zeros(1, 3, 8, 8), torch.tensor([1]))[0].shape  # 3 x 12 x 8
    torch.Size([1, 288])
    """

    has_class_gaussians = False

    def __init__(self, config: FlowConfig):
        if not config.code_rows:
            raise ValueError("a LabelBandFlow needs code_rows in its config, e.g. 8; got 0")
        super().__init__(config)
        c, _, w = config.input_size
        with torch.device("cpu"):  # even on the meta device, as no file holds them
            codes = _label_codes(config.num_classes, c, config.code_rows, w)
        self.codes = nn.Buffer(codes, persistent=False)

    def _network_input(self, x: Tensor, y: Labels) -> Tensor:
        x = super()._network_input(x, y)
        if y is None:
            raise ValueError("a flow with conditional encoding needs the labels: flow(x, y)")
        y = super().gaussian_labels(y, len(x))
        return torch.cat([x, levels_to_model(self.codes[y]).to(x.dtype)], dim=2)

    def inverse(self, z: Tensor) -> Tensor:
        """Decodes codes (B, D) to images (B, C, H, W) without bands, not clamped to [-1, 1]."""
        return self._decode(z)[0]

    def _decode(self, z: Tensor) -> tuple[Tensor, ...]:
        return super().inverse(z).tensor_split([self.config.input_size[1]], dim=2)

    def encode(self, x: Tensor, y: Labels = None) -> tuple[Tensor, Tensor]:
        """Encodes images: codes (B, D) and labels (B,), unless given by K more passes."""
        y = self.class_logits(x).argmax(1) if y is None else y
        return self(x, y)[0], y

    def gaussian_labels(self, y: Tensor, count: int | None = None) -> Tensor:
        """Checks labels (B,) as a `ConditionalFlow`; returns zeros (B,): there is one Gaussian."""
        return torch.zeros_like(super().gaussian_labels(y, count))

    def class_logits(self, x: Tensor) -> Tensor:
        """(B, K) log p(x given y) + log prior, in K passes, one with each label's band."""
        labels = torch.arange(self.num_classes, device=x.device).unsqueeze(1).expand(-1, len(x))
        return torch.stack([self.log_prob(x, y) for y in labels], dim=1) + self.log_prior

    def code_logits(self, z: Tensor) -> Tensor:
        """Raises: these codes hold a label already."""
        raise ValueError("codes with a band hold a label already; use class_logits(x)")

    def with_prior(self, prior: ClassGaussians, class_names=()) -> ConditionalFlow:
        """Raises: there are no class Gaussians."""
        raise ValueError("a band flow has one shared Gaussian; fit a flow with class Gaussians")

    def pooled(self) -> ConditionalFlow:
        """Raises: the label is part of what is encoded."""
        raise ValueError(
            "a flow with conditional encoding needs the class of each image: take "
            'labels="given" (nfa-lgiven), or labels="posterior" (nfa-lposterior)'
        )

    def _sample(self, y: Tensor, draw: Callable[[Tensor], Tensor]) -> Tensor:
        """Samples until each of the labels y (B,) has its image; raises if some never come."""
        y, barren = super().gaussian_labels(y), 0
        out = torch.empty(len(y), *self.config.input_size, dtype=self.dtype, device=self.device)
        wanted = [torch.nonzero(y == k).flatten().tolist() for k in range(self.num_classes)]
        while left := sum(map(len, wanted)):
            images, bands = self._decode(draw(y.new_zeros(max(32, min(4 * left, 512)))))
            labels = nearest_label(bands, levels_to_model(self.codes))
            for k, places in enumerate(wanted):
                for image in images[labels == k][: len(places)]:
                    out[places.pop()] = image
            barren = barren + 1 if sum(map(len, wanted)) == left else 0
            if barren == PATIENCE:
                missing = [k for k, places in enumerate(wanted) if places]
                found = f"{PATIENCE} batches of samples in a row held no label of {missing}"
                raise RuntimeError(f"{found}; train the flow further")
        return out


def _label_codes(num_classes: int, channels: int, rows: int, width: int) -> Tensor:
    """(K, C, rows, W) uint8 bands, chosen greedily: the closest two differ in many blocks."""
    if rows % BLOCK or width % BLOCK:
        raise ValueError(f"code_rows and width must be multiples of {BLOCK}, got {rows}, {width}")
    shape = (channels, rows // BLOCK, width // BLOCK)
    bits = math.prod(shape)
    if 2**bits < num_classes:
        raise ValueError(f"{bits} blocks cannot spell {num_classes} labels; use more code_rows")
    if num_classes**2 * bits > MAX_SEARCH or bits > MAX_BITS:
        raise ValueError(
            f"a band of {bits} blocks cannot be found for {num_classes} labels in time"
        )
    g = torch.Generator().manual_seed(0)  # the same bands on every machine
    chosen = torch.randint(0, 2, (1, bits), generator=g)
    while len(chosen) < num_classes:
        candidates = torch.randint(0, 2, (256, bits), generator=g)
        new, old = candidates.float(), chosen.float()
        distance = (new @ (1 - old).T + (1 - new) @ old.T).amin(1).long()  # blocks that differ
        if distance.any():
            chosen = torch.cat([chosen, candidates[distance.argmax()][None]])
    levels = (LOW + (HIGH - LOW) * chosen).to(torch.uint8).view(-1, *shape)
    return levels.repeat_interleave(BLOCK, 2).repeat_interleave(BLOCK, 3)


def nearest_label(band: Tensor, codes: Tensor) -> Tensor:
    """Reads the labels (B,) of bands (B, C, rows, W): the nearest of codes (K, C, rows, W).

    >>> nearest_label(torch.ones(1, 3, 4, 8), torch.arange(2.0).view(2, 1, 1, 1).repeat(1, 3, 4, 8))
    tensor([1])
    """
    return torch.cdist(band.flatten(1), codes.flatten(1).to(band)).argmin(1)
