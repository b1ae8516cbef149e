"""NFACache: what each image of a dataset needs to be moved, on disk.

Of a deep flow over pixels the pictures of `timm_nfaug.change.tangents`; of a flow over latents the
latents (`timm_nfaug.data.latents`).
"""

import hashlib
import math
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._utils.checks import check_probability, check_strength
from .._utils.notices import NFAError
from ..augment import NFAugment
from ..change import FlowChange, LatentChange, add_change, draw
from ..change.tangents import TangentChange, packed, tangents
from ..flows.bijections.coupling import AffineCoupling
from ..flows.model import ConditionalFlow
from ..labels import class_of
from . import store
from .source import Source, crc_of

StrPath = str | os.PathLike[str]


class NFACache:
    """Opens a cache, on disk, of how a deep flow moves each image of a dataset; `build` makes one.

    One of latents is opened by `timm_nfaug.data.latents.LatentCache`.

    Args:
        flow: the flow that it should be of; a cache of another one is refused.
        verify: compare the files with their checksums, not only their shapes.

    >>> import tempfile
    >>> import PIL.Image
    >>> augment = NFAugment.from_pretrained("conv_p4_tiny.digits", modes=4)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     cache = NFACache.build(augment, [(PIL.Image.new("L", (8, 8)), 3)], folder)
    >>> len(cache), cache.modes
    (1, 4)
    """

    def __init__(self, path: StrPath, flow: ConditionalFlow | None = None, verify: bool = True):
        files = store.Store(Path(path))
        self.path, self.index = files.path, files.read()
        if flow is not None and digest(flow) != self.index["flow"]:
            raise ValueError(f"the cache in {path} was made with another flow; build it again")
        arrays = files.open(verify)
        self.kind, self.modes = self.index["kind"], self.index["modes"]
        self._crc = np.asarray(arrays["crc"])  # whose items cost less than those of a file
        with warnings.catch_warnings():  # nobody writes to it
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            self._pictures = torch.from_numpy(arrays["tangents"]).flatten(0, 1)

    @classmethod
    def build(
        cls, augment: NFAugment, base: Any, path: StrPath, step: float = 0.5, batch_size: int = 64,
        workers: int | None = None,
    ) -> "NFACache":  # fmt: skip
        """Makes the cache of a dataset, resumes a build, or repairs what is damaged or has changed.

        It says what it takes before it starts; stopped at any moment, it resumes by the same call.
        Other processes that call this wait. Files that nobody wrote to since are not read again; a
        complete cache is neither locked nor written to, and may lie on a read-only disk.

        Args:
            augment: its flow, modes, kind and labels count; strength and p are chosen at use. Of
                one that moves latents they are kept, in 16 bits, and serve all flows over them.
            base: dataset of (PIL image or uint8 tensor (C, H, W), label); without its transform.
            step: strength of the moves that the pictures are fitted to, about the one used later.
            workers: processes that read the images; by default one a CPU, at most 4. The flow runs
                in this process, on its device, or on the CPU in torch's own threads.

        Raises:
            OSError: the disk has no room for it, or an image cannot be read.
            ValueError: the flow is linear, moves none of the images, moves are not along modes, or
                another cache is there.
        """
        if isinstance(augment.change, LatentChange):
            from .latents import build  # whose cache is a subclass of this one

            return build(augment, base, path, batch_size, workers)
        store.Store(Path(path)).write(_Tangents(augment, base, step, batch_size, workers))
        return cls(path, verify=False)

    @property
    def labels(self) -> str:
        """Tells whose modes images move along, as for `NFAugment`."""
        return self.index["labels"]

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

    def change(self, i: int, image: Any, label: Any, noise: Tensor, strength: float) -> Tensor:
        """What is added to image i for noise (n,): (C, h, w), in units of the range [-1, 1].

        Raises ValueError where image or label are not those that row i was made from.
        """
        self._check([i], image, label)
        y = torch.tensor([class_of(label)]) if self.labels == "given" else None
        return self._changes([i], y, noise.unsqueeze(0), strength)[0]

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
        """Moves uint8 images x (B, C, H, W) as `NFAugment` would with the same generator.

        For a training set in memory, before crop and flip: much faster than image by image. The
        first of the rows (B,) is compared with its image, and label y (B,) if labels are given.
        """
        if x.dtype != torch.uint8 or x.ndim != 4 or len(rows) != len(x):
            found = f"{x.dtype} {tuple(x.shape)} and {len(rows)} rows"
            raise ValueError(f"expected uint8 images (B, C, H, W) and B rows, got {found}")
        strength, p = check_strength(strength), check_probability(p)
        modes = self.checked_modes(modes)
        if not (strength and p and len(x)):
            return x.clone()
        self._check(rows.tolist(), x[0].cpu(), None if y is None else y[0])
        where, noise = draw(len(x), p, modes, generator)
        if where is not None:
            y = None if y is None else y[where.to(y.device)]
            rows, where = rows[where], where.to(x.device)
        y = None if y is None or self.labels != "given" else y.cpu()
        return add_change(x, self._changes(rows.tolist(), y, noise, strength), where)

    def _check(self, rows: list[int], image: Any, label: Any) -> None:
        """Raises where rows are out of range, or the first is not of this image and label."""
        i, low, high, size = rows[0], min(rows), max(rows), len(self)
        if not 0 <= low <= high < size:
            raise IndexError(f"rows {low} to {high} are out of range for a cache of {size} images")
        views = [image]
        if isinstance(image, Tensor):
            views.append(image.permute(1, 2, 0))  # of a cache that was made from PIL images
        y = class_of(label) if self.index.get("labels") == "given" else 0
        if all(self._crc[i] != crc_of(v, y) for v in views):
            what = f"image {i} or its label is not what the cache in {self.path} was made from"
            remedy = "delete crc.npy there and call NFACache.build again, or take another directory"
            raise NFAError(f"{what}; {remedy}")

    def _changes(self, rows: list[int], y: Tensor | None, noise: Tensor, strength: float) -> Tensor:
        """What is added to images by their rows in the dataset, for noise (b, n): (b, C, h, w).

        Labels y (b,) count where they are given and the cache is not of one class for each image.
        """
        size, modes = tuple(self.index["size"]), noise.shape[1]
        change = TangentChange(self._pictures, rows, size, self.modes, modes, float(strength))
        return change.bounded(lambda: noise, None, noise)[0]  # which looks at no images


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
        h.update(f"{name} {tuple(tensor.shape)}".encode() + tensor.cpu().numpy().tobytes())
    return h.hexdigest()


class _Tangents(Source):
    """Keeps the tangents of each image by a deep flow."""

    part, broken = "tangents", "their change is not finite; load the flow anew"

    def __init__(
        self, augment: NFAugment, base: Any, step: float, batch_size: int, workers: int | None
    ):
        change = augment.change
        if type(change) is not FlowChange or change.flow.config.code_rows:  # as a LinearChange
            if not isinstance(change, FlowChange):
                raise ValueError(f"a cache is for changes by a flow, got {type(change).__name__}")
            what = "a cache is for deep flows with class Gaussians"
            raise ValueError(f"{what}; the linear flow costs next to nothing without")
        if isinstance(step, bool) or not isinstance(step, (int, float)) or not 0 < step < math.inf:
            raise ValueError(f"step must be a finite number above 0, e.g. 0.5; got {step!r}")
        super().__init__(augment, base, batch_size, workers)
        self.step = step
        self.classes = change.num_classes if self.labels == "given" else 0

    def key(self) -> store.Index:
        size, modes = list(self.flow.config.input_size), self.move.modes
        return {
            "format": store.FORMAT, "kind": store.KIND, "flow": digest(self.flow), "modes": modes,
            "mode_kind": self.move.name, "labels": self.labels, "step": self.step,
            "count": len(self.base), "size": size, "shard": store.SHARD,
            "shapes": store.shapes(size, modes),
        }  # fmt: skip

    def made(self, x: Tensor, y: Tensor | None) -> tuple[np.ndarray, int]:
        found = self._tangents(x, y)
        return packed(found).numpy(), int((found == 0).all((1, 2, 3, 4)).sum())

    @torch.no_grad()
    def _tangents(self, x: Tensor, y: Tensor | None) -> Tensor:
        """Pictures (B, modes + 4, C, h, w), zero for an image that the flow cannot move."""
        flow = self.flow
        z, y = flow.encode(x.to(flow.device), None if y is None else y.to(flow.device))
        y = flow.gaussian_labels(y, len(z))
        found = tangents(flow, z, y, self.move.modes, self.step, self.move.name)
        return torch.where((found.abs() < 1e6).all((1, 2, 3, 4), keepdim=True), found, 0.0)
