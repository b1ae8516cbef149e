"""NFACache: the pictures of `timm_nfaug.change.tangents` of each image of a dataset, on disk."""

from __future__ import annotations

import hashlib
import math
import os
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from .. import lift, pixels
from .._utils.checks import check_probability, check_strength
from ..augment import NFAugment
from ..change import FlowChange, add_change, draw
from ..change.tangents import BENDS, TangentChange, packed, tangents
from ..flows.bijections.coupling import AffineCoupling
from ..flows.model import ConditionalFlow
from ..inputs import check_image, class_of
from . import store
from .transforms import without_transform


class NFACache:
    """Opens a cache, on disk, of how a deep flow moves each image of a dataset; `build` makes one.

    Args:
        path: its directory.
        flow: the flow that it should be of; a cache of another one is refused.
        verify: compare the files with their checksums; without, only their shapes are looked at.

    Attributes:
        kind: "tangents".
        modes: number of modes that there are pictures of.

    >>> import tempfile, timm_nfaug as nfa
    >>> augment = nfa.NFAugment.from_pretrained("conv_p4_tiny.digits", modes=4)
    >>> images, labels = torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.tensor([3, 7])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     cache = nfa.NFACache.build(augment, list(zip(images, labels)), folder)
    >>> moved = cache.augment(images, labels, torch.arange(2), torch.Generator(), p=1.0)
    >>> len(cache), moved.shape, torch.equal(moved, images)
    (2, torch.Size([2, 1, 8, 8]), False)
    """

    def __init__(self, path: str | os.PathLike, flow: ConditionalFlow | None = None, verify=True):
        self.path, self.index = Path(path), store.read_index(Path(path))
        if flow is not None and digest(flow) != self.index["flow"]:
            raise ValueError(f"the cache in {path} was made with another flow; build it again")
        arrays = store.open_arrays(self.path, self.index, verify)
        self.kind, self.modes = self.index["kind"], self.index["modes"]
        self._crc = np.asarray(arrays["crc"])  # whose items cost less than those of a file
        with warnings.catch_warnings():  # nobody writes to it
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            self._pictures = torch.from_numpy(arrays["tangents"]).flatten(0, 1)

    @classmethod
    def build(
        cls, augment: NFAugment, base, path: str | os.PathLike, step: float = 0.5, batch_size=64
    ) -> NFACache:
        """Makes the cache of a dataset, resumes a build, or repairs what is damaged or has changed.

        Other processes that call this wait. Files that nobody wrote to since are not read through
        again; opening the cache with `NFACache` compares all checksums.

        Args:
            augment: its flow, modes, kind and labels count; strength and p are chosen at use.
            base: map-style dataset of (PIL image or uint8 tensor (C, H, W), label) pairs; its
                transform is left out.
            step: strength of the moves that the pictures are fitted to; about the one used later.

        Raises:
            OSError: the disk has no room for it.
            ValueError: the flow is linear, moves are not along modes, or another cache is there.
        """
        source = _Source(augment, base, step, batch_size)
        store.write(Path(path), source.key(), source.fill, source.unchanged)
        return cls(path, verify=False)

    def __len__(self) -> int:
        return len(self._crc)

    def __reduce__(self) -> tuple:
        return type(self), (self.path, None, False)  # each process maps the files itself

    def checked_modes(self, modes: int | None) -> int:
        """How many modes to move along, all for None; raises ValueError where there are fewer."""
        modes = self.modes if modes is None else modes
        if not 1 <= modes <= self.modes:
            raise ValueError(f"modes must be from 1 to the {self.modes} of the cache, got {modes}")
        return modes

    def check(self, rows: list[int], image: Any, label: Any) -> None:
        """Raises where rows are out of range, or the first is not of this image and label."""
        i, low, high, labels = rows[0], min(rows), max(rows), self.index["labels"]
        if not 0 <= low <= high < len(self):
            what = f"rows {low} to {high} are out of range"
            raise IndexError(f"{what} for a cache of {len(self)} images")
        known = int(self._crc[i])
        same = known == _crc((image, label), labels)
        if not same and isinstance(image, Tensor):  # of a cache that was made from PIL images
            same = known == _crc((image.permute(1, 2, 0), label), labels)
        if not same:
            what = f"image {i} or its label is not what the cache in {self.path} was made from"
            remedy = "delete crc.npy there and call NFACache.build again, or take another directory"
            raise ValueError(f"{what}; {remedy}")

    def change_of(self, rows: list[int], strength: float, modes: int) -> TangentChange:
        """The change of images, by their rows in the dataset."""
        c, h, w = self.index["size"]
        return TangentChange(self._pictures, rows, (c, h, w), self.modes, modes, strength)

    def change(self, i: int, image: Any, label: Any, noise: Tensor, strength: float) -> Tensor:
        """What is added to image i for noise (n,): (C, h, w), in units of the range [-1, 1].

        Raises ValueError where image or label are not those that row i was made from.
        """
        self.check([i], image, label)
        change = self.change_of([i], strength, len(noise))
        return change.bounded(lambda: noise, None, noise.unsqueeze(0))[0][0]

    def augment(
        self,
        x: Tensor,
        y: Tensor | None,
        rows: Tensor,
        generator: torch.Generator,
        strength: float = 0.5,
        p: float = 0.5,
        modes: int | None = None,
    ) -> Tensor:
        """Images x (B, C, H, W), uint8, moved as `NFAugment` moves them with the same generator.

        For a training set that lies in memory: several times faster than image by image.

        Args:
            x: images as the dataset has them, before any crop or flip.
            y: labels (B,), if the cache was made with labels.
            rows: (B,) indices of these images in the dataset; the first one is checked.
            generator: source of the random numbers, on the CPU.
            strength, p: as of `NFAugment`.
            modes: number of modes moved along; those of the cache unless given.

        Raises:
            ValueError: the first image or its label are not those of its row.
            IndexError: a row is not one of the cache.
        """
        if x.dtype != torch.uint8 or x.ndim != 4 or len(rows) != len(x):
            found = f"{x.dtype} {tuple(x.shape)} and {len(rows)} rows"
            raise ValueError(f"expected uint8 images (B, C, H, W) and B rows, got {found}")
        strength, p = check_strength(strength), check_probability(p)
        modes = self.checked_modes(modes)
        if not (strength and p and len(x)):
            return x.clone()
        self.check(rows.tolist(), x[0].cpu(), None if y is None else y[0])
        where, noise = draw(len(x), p, modes, generator)
        if not len(noise):
            return x.clone()
        if where is not None:
            rows, where = rows[where], where.to(x.device)
        change = self.change_of(rows.tolist(), strength, modes)
        return add_change(x, change.bounded(lambda: x, None, noise)[0], where)


def digest(flow: ConditionalFlow) -> str:
    """A checksum of what a flow computes: its settings, weights and dtypes.

    >>> import timm_nfaug as nfa
    >>> digest(nfa.create_flow("linear")) == digest(nfa.create_flow("linear", num_classes=2))
    False
    """
    c = flow.config
    network, prior = sorted(c.network.items()), sorted(c.prior.items())
    dtypes = [str(m.net_dtype) for m in flow.modules() if isinstance(m, AffineCoupling)]
    h = hashlib.sha256(f"{c.architecture} {c.input_size} {network} {prior} {dtypes}".encode())
    for name, tensor in sorted(flow.state_dict().items()):
        h.update(f"{name} {tuple(tensor.shape)}".encode())
        h.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return h.hexdigest()


class _Source:
    """What a cache is filled from: a dataset, a flow and its moves."""

    def __init__(self, augment: NFAugment, base: Any, step: float, batch_size: int):
        change = augment.change
        if type(change) is not FlowChange or change.flow.config.code_rows:  # as a LinearChange
            what = "a cache is for deep flows with class Gaussians"
            raise ValueError(f"{what}; the linear flow costs next to nothing without")
        self.flow, self.move = change.flow, change.move
        if self.move.needs_code or self.move.noise_size(self.flow) != self.move.modes:
            what = "a cache is for moves along modes, kind pca or axes"
            raise ValueError(f"{what}; {self.move.name} takes more than a number for each mode")
        if isinstance(step, bool) or not isinstance(step, (int, float)) or not 0 < step < math.inf:
            what = "step must be a finite number above 0"
            raise ValueError(f"{what}, about the strength used later, e.g. 0.5; got {step!r}")
        self.base, self.labels = without_transform(base), augment.labels
        self.step, self.batch_size = step, batch_size

    def key(self) -> store.Index:
        size, modes = self.flow.config.input_size, self.move.modes
        shapes = {"crc": [], "tangents": [modes + BENDS, math.prod(size) + 8]}
        return {
            "format": store.FORMAT, "kind": store.KIND, "flow": digest(self.flow), "modes": modes,
            "mode_kind": self.move.name, "labels": self.labels, "step": self.step,
            "count": len(self.base), "size": list(size), "shard": store.SHARD, "shapes": shapes,
        }  # fmt: skip

    def unchanged(self, arrays: store.Arrays, rows: range) -> bool:
        """Looks at a few of the images; each is looked at again when it is used."""
        few = rows[:: max(1, len(rows) // 8)]
        return all(_crc(self.base[i], self.labels) == int(arrays["crc"][i]) for i in few)

    @torch.no_grad()
    def fill(self, arrays: store.Arrays, rows: range) -> None:
        for start in range(rows.start, rows.stop, self.batch_size):
            where = slice(start, min(start + self.batch_size, rows.stop))
            pairs = [self.base[i][:2] for i in range(where.start, where.stop)]
            t = self._tangents(pairs)  # (B, modes + 4, C, h, w)
            # an image that the flow cannot move stays as it is
            good = (t.abs() < 1e6).flatten(1).all(1).view(-1, 1, 1, 1, 1)
            arrays["tangents"][where] = packed(torch.where(good, t, 0.0)).numpy()
            arrays["crc"][where] = [_crc(pair, self.labels) for pair in pairs]

    def _tangents(self, pairs: list[Any]) -> Tensor:
        flow, y = self.flow, None
        x = torch.cat([self._small(image) for image, _ in pairs]).to(flow.device)
        if self.labels == "given":
            y = torch.tensor([class_of(label) for _, label in pairs], device=flow.device)
        z, y = flow.encode(x, y)
        y = flow.gaussian_labels(y, len(z))
        return tangents(flow, z, y, self.move.modes, self.step, self.move.name)

    def _small(self, image: Any) -> Tensor:
        """An image at the flow's size: (1, C, h, w), in [-1, 1]."""
        levels, (c, h, w) = pixels.levels_of(image), self.flow.config.input_size
        check_image(image, c)
        return lift.down(pixels.levels_to_model(levels.unsqueeze(0)), (h, w))


def _crc(sample: Any, labels: str) -> int:
    """Of the pixels and, where it counts, the label."""
    image, label = sample[:2]
    pil = isinstance(image, PIL.Image.Image)
    own = image.tobytes() if pil else image.contiguous().numpy().tobytes()
    return zlib.crc32(own, class_of(label) & 0xFFFFFFFF if labels == "given" else 0)
