"""LabelBandFlow: conditional encoding (CE), the baseline that writes the label into the image.

A band of code blocks below the image spells its label, and one Gaussian serves all classes. The
paper's baseline appends 8 rows (32 to 40) and reads a sample's label by the nearest code (Enescu &
Sahbi, ACCV 2024, supplementary, figure 39). A code here is two levels in 4 x 4 blocks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..config import FlowConfig
from ..pixels import levels_to_model
from .model import ConditionalFlow, _full_precision
from .prior import ClassGaussians

BLOCK = 4  # pixels, height and width of a block
LOW, HIGH = 64, 192  # uint8 levels of the two values
PATIENCE = 50  # batches of samples without any label that is still wanted


class LabelBandFlow(ConditionalFlow):
    """A flow of images with a band of `config.code_rows` rows below them that spells the label.

    As a `ConditionalFlow`, except: encoding takes the labels, all codes share one Gaussian,
    `class_logits` takes K passes, and densities are those of image and band together.

    Attributes:
        codes: (K, C, code_rows, W) uint8, the band of each label.

    >>> config = FlowConfig("linear", (3, 8, 8), num_classes=2, code_rows=4)
    >>> flow = ConditionalFlow.from_config(config)
    >>> type(flow).__name__, flow(torch.zeros(1, 3, 8, 8), torch.tensor([1]))[0].shape
    ('LabelBandFlow', torch.Size([1, 288]))
    """

    has_class_gaussians = False
    codes: Tensor

    def __init__(self, config: FlowConfig):
        super().__init__(config)
        c, _, w = config.input_size
        codes = label_codes(config.num_classes, c, config.code_rows, w)
        self.register_buffer("codes", codes, persistent=False)

    @staticmethod
    def _layout(config: FlowConfig) -> tuple[tuple[int, int, int], int]:
        if not config.code_rows:
            raise ValueError("a LabelBandFlow needs code_rows in its config, e.g. 8; got 0")
        c, h, w = config.input_size
        return (c, h + config.code_rows, w), 1

    @property
    def is_linear(self) -> bool:
        """False: the code is not the image alone."""
        return False

    def _network_input(self, x: Tensor, y: Tensor | None) -> Tensor:
        x = self._check_images(x)
        if y is None:
            raise ValueError("a flow with conditional encoding needs the labels: flow(x, y)")
        y = self._check_labels(y, len(x))
        return torch.cat([x, levels_to_model(self.codes[y]).to(x.dtype)], dim=2)

    @_full_precision
    def inverse(self, z: Tensor) -> Tensor:
        """Decodes codes (B, D) to images (B, C, H, W) without their band, not clamped to [-1, 1]."""
        return self._split(self._decode(z))[0]

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) and bands (B, C, code_rows, W) of what the network takes."""
        images, bands = x.split([self.config.input_size[1], self.config.code_rows], dim=2)
        return images, bands

    def encode(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Encodes images (B, C, H, W) with their labels as codes (B, D); gives the labels (B,), too.

        Args:
            y: labels (B,); None takes the most probable ones, of K passes more.
        """
        y = self.class_logits(x).argmax(1) if y is None else y
        return self(x, y)[0], y

    def gaussian_labels(self, y: Tensor, count: int | None = None) -> Tensor:
        """Checks labels (B,) and gives zeros (B,): the index of the one Gaussian."""
        return torch.zeros_like(self._check_labels(y, count))

    def class_logits(self, x: Tensor) -> Tensor:
        """(B, K) log p(x given y) + log prior in K passes, one with each label's band."""
        labels = torch.arange(self.num_classes, device=x.device).unsqueeze(1).expand(-1, len(x))
        return torch.stack([self.log_prob(x, y) for y in labels], dim=1) + self.log_prior

    def code_logits(self, z: Tensor) -> Tensor:
        """Raises: a code holds its label already. Ask `class_logits`."""
        raise ValueError(
            "codes of a flow with conditional encoding hold a label already; use class_logits(x)"
        )

    def with_prior(self, prior: ClassGaussians, class_names: Sequence[str] = ()) -> ConditionalFlow:
        """Raises: there are no class Gaussians to replace."""
        raise ValueError(
            "a flow with conditional encoding has one shared Gaussian; fit a flow with class Gaussians"
        )

    @_full_precision
    def sample(
        self,
        y: Tensor,
        temperature: float = 1.0,
        mean_scale: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draws images (B, C, H, W) until each label of y (B,) has its own, as read from their bands.

        Raises:
            RuntimeError: 50 batches in a row held none of the labels that are still wanted.
        """
        y = self._check_labels(y)
        out = torch.empty(len(y), *self.config.input_size, dtype=self.dtype, device=self.device)
        wanted = [torch.nonzero(y == k).flatten().tolist() for k in range(self.num_classes)]
        left, barren = len(y), 0
        while left:
            shared = torch.zeros(max(32, min(4 * left, 512)), dtype=torch.int64, device=self.device)
            z = self.prior.sample(shared, temperature, mean_scale, generator)
            images, bands = self._split(self._decode(z))
            found = _deal(images, nearest_label(bands, levels_to_model(self.codes)), wanted, out)
            left, barren = left - found, 0 if found else barren + 1
            if barren == PATIENCE:
                missing = [k for k in range(self.num_classes) if wanted[k]]
                raise RuntimeError(
                    f"{PATIENCE} batches of samples in a row held no label of {missing}; "
                    "train the flow further"
                )
        return out


def _deal(images: Tensor, labels: Tensor, wanted: list[list[int]], out: Tensor) -> int:
    """Puts images into the places of `out` that want their label; returns how many it took."""
    found = 0
    for image, k in zip(images, labels.tolist(), strict=True):
        if wanted[k]:
            out[wanted[k].pop()] = image
            found += 1
    return found


def label_codes(num_classes: int, channels: int, rows: int, width: int) -> Tensor:
    """Makes the bands (K, C, rows, W) of K labels in uint8, the same on every machine.

    They are chosen greedily, so that the closest two differ in many blocks.

    >>> label_codes(num_classes=10, channels=3, rows=8, width=32).shape
    torch.Size([10, 3, 8, 32])
    """
    if rows % BLOCK or width % BLOCK:
        raise ValueError(
            f"code_rows and the image width must be multiples of {BLOCK}, got {rows} and {width}"
        )
    bits = channels * (rows // BLOCK) * (width // BLOCK)
    if 2**bits < num_classes:
        raise ValueError(
            f"a band of {bits} blocks cannot spell {num_classes} labels; use more code_rows"
        )
    g = torch.Generator().manual_seed(0)
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
    """Reads the labels (B,) of bands (B, C, rows, W) by the nearest of codes (K, C, rows, W).

    >>> codes = label_codes(num_classes=3, channels=1, rows=4, width=16)
    >>> nearest_label(codes.float(), codes)
    tensor([0, 1, 2])
    """
    return torch.cdist(band.flatten(1), codes.flatten(1).to(band)).argmin(1)
