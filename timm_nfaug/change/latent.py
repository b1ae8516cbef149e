"""LatentChange: images changed through the latents of a pretrained autoencoder.

``D(E(x) + move) - D(E(x))`` for an encoder E and a decoder D: what the autoencoder loses of an
image cancels, and no move is no change. The paper augments ImageNet over such latents (Enescu &
Sahbi, ACCV 2024; Rombach et al., 2022).
"""

import copy

import torch
from torch import Tensor, nn

from .. import lift
from ..autoencoder import Autoencoder
from ..config import FlowConfig
from ..flows.model import ConditionalFlow
from ..moves.base import Move
from .base import Change, Images
from .flow import FlowChange


class LatentChange(Change):
    """Moves latents by the change of a flow over them, and decodes both.

    Args:
        inner: the change of latents, by a linear or a deep flow.
        autoencoder: whose latents they are.
        side: of the square that images are brought to, in pixels; by default that of the flow.
            The moves of a linear flow are resampled to other sides, a deep flow has its own alone.

    >>> import timm_nfaug as nfa
    >>> from timm_nfaug.moves import PCA
    >>> class Halves(torch.nn.Module):
    ...     def encode(self, x):
    ...         return torch.nn.functional.avg_pool2d(x, 2)
    ...     def decode(self, z):
    ...         return torch.nn.functional.interpolate(z, scale_factor=2)
    >>> flow = nfa.create_flow("linear", input_size=(3, 8, 8), num_classes=1, latent={"size": 16})
    >>> change = LatentChange(FlowChange(flow, PCA(modes=8)), Autoencoder(Halves()))
    >>> change.change(lambda: torch.zeros(2, 3, 40, 30), torch.zeros(2).long(), torch.ones(2, 8)).shape
    torch.Size([2, 3, 16, 16])
    """

    def __init__(self, inner: FlowChange, autoencoder: Autoencoder, side: int | None = None):
        latent, own = inner.flow.config.latent, inner.flow.config.input_size
        if not latent:
            raise ValueError("this flow moves pixels, not latents: leave the autoencoder out")
        side = latent["size"] if side is None else side
        wanted = autoencoder.latent_size(side)
        if own[0] != wanted[0]:
            raise ValueError(
                f"this flow moves latents of {own[0]} channels, {autoencoder} makes {wanted[0]}; "
                "take the autoencoder that the flow was made with, or fit it anew"
            )
        if own != wanted and not inner.flow.is_linear:
            raise ValueError(
                f"this flow moves latents {own}, of images of {latent['size']} pixels; size={side} "
                "is for linear flows, whose moves can be resampled: leave it out"
            )
        self.inner, self.autoencoder = inner, autoencoder
        self.size = (3, side, side)
        self.num_classes, self.noise_size = inner.num_classes, inner.noise_size
        self.still = inner.still
        self._mean, self._std = scale_of(inner.flow.config)

    @property
    def flow(self) -> ConditionalFlow:
        return self.inner.flow

    @property
    def move(self) -> Move:
        return self.inner.move

    @torch.no_grad()
    def change(self, images: Images, y: Tensor | None, noise: Tensor) -> Tensor:
        x = lift.down(images().to(self.autoencoder.device), self.size[1:])
        return self.change_of_latents(self.autoencoder.encode(x), y, noise)

    @torch.no_grad()
    def change_of_latents(self, z: Tensor, y: Tensor | None, noise: Tensor) -> Tensor:
        """The change (B, 3, H, W) of images whose latents (B, c, h, w) are known.

        Noise (k B, n), and labels (k B,), move each image k times, the first of all images first:
        (k B, 3, H, W). The images are then encoded once and decoded once as they are.
        """
        count, own = len(noise), len(z)
        again = lambda v: v if own == count else v.repeat(count // own, 1, 1, 1)
        move = self.inner.change(lambda: again(self.standardized(z)), y, noise)
        move = lift.down(move.to(z.device), (z.shape[2], z.shape[3])) * self._std.to(z.device)
        decoded = self.autoencoder.decode(torch.cat([again(z) + move, z]))
        change = decoded[:count] - again(decoded[count:])
        # convolutions round by the place in a batch, which must not change an image either
        change[move.abs().amax((1, 2, 3)) == 0] = 0.0
        return change

    def standardized(self, z: Tensor) -> Tensor:
        """Latents (B, c, h, w) as the flow knows them: with its mean and spread in each channel."""
        return (z - self._mean.to(z.device)) / self._std.to(z.device)

    def with_part(self, name: str, part: nn.Module) -> "LatentChange":
        """A copy with another copy of "flow" or "autoencoder", on a device of its own."""
        change = copy.copy(self)
        if name == "flow":
            change.inner = self.inner.with_part(name, part)
        else:
            setattr(change, name, part)
        return change


def scale_of(config: FlowConfig) -> tuple[Tensor, Tensor]:
    """Mean and spread (1, c, 1, 1) that latents are standardised by before a flow takes them.

    >>> [float(v) for v in scale_of(FlowConfig("linear", (1, 8, 8), 1, latent={"size": 64}))]
    [0.0, 1.0]
    """
    latent, channels = config.latent, config.input_size[0]
    scale = [latent.get(k) or [usual] * channels for k, usual in (("mean", 0.0), ("std", 1.0))]
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in scale)
    return mean, std
