"""LatentCache: the latents of each image of a dataset, in float16 on disk.

An image then changes by two decodes and no encode. The latents are those of an autoencoder and a
side alone: one cache serves every flow, strength and kind of move over them.
"""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._utils.progress import say
from ..augment import NFAugment
from ..change import LatentChange
from ..change.base import Images
from ..moves import create_move
from . import store
from .cache import NFACache, StrPath
from .layout import Layout, is_count, is_text
from .source import Source

LATENTS = Layout(
    "latents", store.FORMAT, {"crc": np.uint32, "latents": np.float16},
    {"autoencoder": is_text, "side": is_count},
    lambda index: {"crc": [], "latents": index["size"]}, "NFA cache", "NFACache.build",
)  # fmt: skip


class OfLatents(LatentChange):
    """A `LatentChange` of latents that are known: they come in the place of the images.

    >>> issubclass(OfLatents, LatentChange)
    True
    """

    def change(self, images: Images, y: Tensor | None, noise: Tensor) -> Tensor:
        return self.change_of_latents(images(), y, noise)


class LatentCache(NFACache):
    """Opens a cache of latents, and moves them as an augmentation does; `build` makes one.

    Args:
        augment: its autoencoder and size must be those of the cache; it works on the CPU.
        verify: compare the files with their checksums, not only their shapes.

    >>> import tempfile
    >>> class Halves:
    ...     def encode(self, x): return torch.nn.functional.avg_pool2d(x, 2)
    ...     def decode(self, z): return torch.nn.functional.interpolate(z, scale_factor=2)
    >>> data = [(torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8), 0) for _ in range(4)]
    >>> loader = [torch.stack([image for image, _ in data])]
    >>> augment = NFAugment.from_data(loader, autoencoder=Halves(), modes=2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     len(NFACache.build(augment, data, folder)), len(LatentCache(folder, augment))
    (4, 4)
    """

    def __init__(self, path: StrPath, augment: NFAugment, verify: bool = True):
        files, change = store.Store(Path(path), LATENTS), augment.change
        self.path, self.index = files.path, files.read()
        if not isinstance(change, LatentChange):
            raise TypeError(f"a cache of latents is for a flow over latents, got {augment}")
        own = {"autoencoder": change.autoencoder.digest(), "side": augment.size}
        if other := ", ".join(k for k, v in own.items() if self.index[k] != v):
            raise ValueError(f"the cache in {path} differs in {other}; build it again")
        arrays = files.open(verify)
        self._augment = _on_cpu(augment)
        self.kind, self.modes = augment.kind, augment.modes
        self._crc, self._latents = np.asarray(arrays["crc"]), arrays["latents"]
        self._moves: tuple[tuple[int, float], OfLatents] | None = None  # of modes and strength

    @property
    def labels(self) -> str:
        return self._augment.labels

    def __reduce__(self) -> tuple:
        return type(self), (self.path, self._augment, False)

    def _changes(self, rows: list[int], y: Tensor | None, noise: Tensor, strength: float) -> Tensor:
        z = torch.from_numpy(self._latents[rows]).float()
        return self._change_by(noise.shape[1], strength).bounded(lambda: z, y, noise)[0]

    def _change_by(self, modes: int, strength: float) -> OfLatents:
        """The change by so many modes, kept for the next image."""
        if self._moves is None or self._moves[0] != (modes, strength):
            change: Any = self._augment.change
            inner = copy.copy(change.inner)
            inner.move, inner.noise_size = create_move(self.kind, modes, strength), modes
            self._moves = (modes, strength), OfLatents(inner, change.autoencoder, change.size[1])
        return self._moves[1]


def build(
    augment: NFAugment, base: Any, path: StrPath, batch_size: int, workers: int | None
) -> LatentCache:
    """`NFACache.build` for an augmentation that moves latents.

    >>> build(NFAugment.from_pretrained("conv_p4_tiny.digits"), [], "nowhere", 64, 1)
    Traceback (most recent call last):
    ValueError: a cache is of images; this list has none
    """
    source = _Latents(augment, base, batch_size, workers)
    size = LATENTS.bytes(source.key() | {"count": 1})
    say(f"NFA cache {path}: {size / 1e3:.1f} kB of latents an image")
    store.Store(Path(path), LATENTS).write(source)
    return LatentCache(path, augment, verify=False)


class _Latents(Source):
    """Keeps the latents of each image."""

    part, broken = "latents", "their latents are not finite; load the autoencoder anew"

    def key(self) -> store.Index:
        autoencoder, side = self.change.autoencoder, self.change.size[1]
        size = list(autoencoder.latent_size(side))
        return {
            "format": LATENTS.format, "kind": LATENTS.kind, "autoencoder": autoencoder.digest(),
            "side": side, "count": len(self.base), "size": size, "shard": store.SHARD,
            "shapes": LATENTS.shapes({"size": size}),
        }  # fmt: skip

    def made(self, x: Tensor, y: Tensor | None) -> tuple[np.ndarray, int]:
        z = self.change.autoencoder.encode(x).cpu().half()
        return z.numpy(), int((~z.isfinite().all((1, 2, 3))).sum())


def _on_cpu(augment: NFAugment) -> NFAugment:
    """The augmentation, or a copy where its weights are on a device that workers have not."""
    change: Any = augment.change
    there = {change.autoencoder.device.type, change.flow.device.type}
    return augment if there == {"cpu"} else copy.deepcopy(augment).to("cpu")
