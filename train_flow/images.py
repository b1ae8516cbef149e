"""What a flow learns from: images in memory (latents are in `latents`), as a step sees them."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from timm_nfaug import pixels

from .config import TrainConfig
from .distributed import Processes
from .schedule import generator

if TYPE_CHECKING:
    from typing_extensions import Self


class Examples(Protocol):
    """Images or latents of a dataset, with labels (N,) int64 and class names by label.

    Attributes:
        name: what a model card calls the dataset, where no setting does.
        shape: (C, H, W) of each.
        latent: `FlowConfig.latent` of a flow over them; empty for images.
        device: where they lie.

    >>> sorted(name for name in vars(Examples) if not name.startswith("_"))[:3]
    ['centres', 'device', 'drawn']
    """

    labels: Tensor
    class_names: list[str]
    name: str

    @property
    def shape(self) -> tuple[int, int, int]: ...

    @property
    def latent(self) -> dict[str, Any]: ...

    @property
    def device(self) -> torch.device: ...

    def __len__(self) -> int: ...

    def subset(self, indices: Tensor) -> Self:
        """Those at `indices`, or where a mask is true."""

    def to(self, device: torch.device) -> Self:
        """The same on a device, where they have room there."""

    def mirrored(self, where: Tensor) -> Self:
        """The same, left and right exchanged where a mask (N,) is true."""

    def centres(self) -> Tensor:
        """All of them as the flow takes them, (N, C, H, W), without noise."""

    def drawn(self, bits: int, generator: torch.Generator) -> Tensor:
        """All of them as the flow models them, (N, C, H, W): images are dequantised."""

    def sha256(self) -> str:
        """Hash of images or latents, labels and class names."""

    def without_labels(self) -> Self:
        """The same as one class."""


@dataclass
class Images:
    """Images of a dataset: levels (N, C, H, W) uint8, labels (N,) int64, class names by label.

    `name` is what a model card calls the dataset, where no setting does.

    >>> data = Images(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.arange(4) % 2, ["a", "b"])
    >>> len(data), data.subset(torch.tensor([0, 3])).labels.tolist()
    (4, [0, 1])
    """

    levels: Tensor
    labels: Tensor
    class_names: list[str]
    name: str = ""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        c, h, w = self.levels.shape[1:]
        return c, h, w

    @property
    def latent(self) -> dict[str, Any]:
        return {}

    @property
    def device(self) -> torch.device:
        return self.levels.device

    def subset(self, indices: Tensor) -> Images:
        """The images at `indices`, or where a mask is true."""
        indices = indices.to(self.levels.device)
        return dataclasses.replace(self, levels=self.levels[indices], labels=self.labels[indices])

    def to(self, device: torch.device) -> Images:
        """The images on `device`."""
        levels, labels = self.levels.to(device), self.labels.to(device)
        return dataclasses.replace(self, levels=levels, labels=labels)

    def mirrored(self, where: Tensor) -> Images:
        """The images, flipped horizontally where a mask (N,) is true."""
        levels = torch.where(where.view(-1, 1, 1, 1), self.levels.flip(3), self.levels)
        return dataclasses.replace(self, levels=levels)

    def centres(self) -> Tensor:
        """Floats in [-1, 1] at the centres of the levels."""
        return pixels.levels_to_model(self.levels)

    def drawn(self, bits: int, generator: torch.Generator) -> Tensor:
        """Floats in [-1, 1], dequantised at a depth of `bits`."""
        return pixels.dequantize(self.levels, bits, generator)

    def sha256(self) -> str:
        """Hash of images, labels and class names."""
        h = hashlib.sha256(repr((tuple(self.levels.shape), self.class_names)).encode())
        h.update(self.labels.cpu().numpy().tobytes())
        h.update(self.levels.cpu().contiguous().numpy().data)
        return h.hexdigest()

    def without_labels(self) -> Images:
        """The same images as one class."""
        labels = torch.zeros_like(self.labels)
        return dataclasses.replace(self, labels=labels, class_names=["image"])


class TrainingImages:
    """Images as a step of training sees them: flipped, shifted and dequantised at random.

    Args:
        config: its seed, bits, flip and shift are used.
        processes: each process makes its share of a batch.
        device: where the images go; they are made where those of `data` lie.
    """

    def __init__(
        self, data: Examples, config: TrainConfig, processes: Processes, device: torch.device
    ):
        self.data, self.config, self.processes, self.device = data, config, processes, device

    def __call__(
        self, indices: Tensor, step: int, purpose: int, whole: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Makes images x (B, C, H, W) for the flow, and labels y (B,), of this process's share.

        Args:
            indices: images of all processes together.
            step, purpose: key of the random numbers, see `schedule.generator`.
            whole: the images after so many are shifted; None: no image is.
        """
        c, part = self.config, self.data.subset(self.processes.share(indices))
        g = generator(c.seed, purpose, step, self.processes.rank, device=part.device)
        if c.flip:
            part = part.mirrored(torch.rand(len(part), generator=g, device=part.device) < 0.5)
        if whole is not None and isinstance(part, Images):
            shifted = random_shift(part.levels[whole:], c.shift, g)
            part = dataclasses.replace(part, levels=torch.cat([part.levels[:whole], shifted]))
        return part.drawn(c.bits, g).to(self.device), part.labels.to(self.device)


def random_shift(
    levels: Tensor, pixels: int, generator: torch.Generator, mode: str = "reflect"
) -> Tensor:
    """Shifts each image of (B, C, H, W) by up to `pixels` in both directions.

    Args:
        mode: what comes in at an edge, see `F.pad`.

    >>> levels = torch.zeros(5, 3, 8, 8, dtype=torch.uint8)
    >>> random_shift(levels, 2, torch.Generator().manual_seed(0)).shape
    torch.Size([5, 3, 8, 8])
    """
    b, _, h, w = levels.shape
    padded = F.pad(levels.float(), (pixels,) * 4, mode=mode).to(levels.dtype)
    size, device = (2, b, 1), generator.device
    start = torch.randint(0, 2 * pixels + 1, size, generator=generator, device=device)
    start = start.to(levels.device, non_blocking=True)
    rows = start[0] + torch.arange(h, device=levels.device)  # (B, H)
    columns = start[1] + torch.arange(w, device=levels.device)  # (B, W)
    image = torch.arange(b, device=levels.device).view(b, 1, 1)
    shifted = padded[image, :, rows.unsqueeze(2), columns.unsqueeze(1)]  # (B, H, W, C)
    return shifted.permute(0, 3, 1, 2)
