"""NFACache: the pictures of `timm_nfaug.change.tangents` of each image of a dataset, on disk."""

import hashlib
import math
import os
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor
from torch.utils.data import Dataset

from .. import lift, pixels
from .._utils.checks import check_probability, check_strength, is_int
from .._utils.notices import FEW, NFAError, Notices
from .._utils.progress import progress
from ..augment import NFAugment
from ..change import FlowChange, add_change, draw
from ..change.tangents import TangentChange, packed, tangents
from ..flows.bijections.coupling import AffineCoupling
from ..flows.model import ConditionalFlow
from ..inputs import check_image
from ..labels import class_of
from ..reading import WorkerLoader, name_of
from ..unchanged import without_modes
from . import store
from .samples import label_of, parts
from .transforms import map_inside, without_transform

StrPath = str | os.PathLike[str]


class NFACache:
    """Opens a cache, on disk, of how a deep flow moves each image of a dataset; `build` makes one.

    Args:
        flow: the flow that it should be of; a cache of another one is refused.
        verify: compare the files with their checksums, not only their shapes.

    >>> import tempfile
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
            augment: its flow, modes, kind and labels count; strength and p are chosen at use.
            base: dataset of (PIL image or uint8 tensor (C, H, W), label); without its transform.
            step: strength of the moves that the pictures are fitted to, about the one used later.
            workers: processes that read the images; by default one a CPU, at most 4. The flow runs
                in this process, on its device, or on the CPU in torch's own threads.

        Raises:
            OSError: the disk has no room for it, or an image cannot be read.
            ValueError: the flow is linear, moves none of the images, moves are not along modes, or
                another cache is there.
        """
        store.Store(Path(path)).write(_Source(augment, base, step, batch_size, workers))
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

    def change(self, i: int, image: Any, label: Any, noise: Tensor, strength: float) -> Tensor:
        """What is added to image i for noise (n,): (C, h, w), in units of the range [-1, 1].

        Raises ValueError where image or label are not those that row i was made from.
        """
        self._check([i], image, label)
        return self._changes([i], noise.unsqueeze(0), strength)[0]

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
            rows, where = rows[where], where.to(x.device)
        return add_change(x, self._changes(rows.tolist(), noise, strength), where)

    def _check(self, rows: list[int], image: Any, label: Any) -> None:
        """Raises where rows are out of range, or the first is not of this image and label."""
        i, low, high, size = rows[0], min(rows), max(rows), len(self)
        if not 0 <= low <= high < size:
            raise IndexError(f"rows {low} to {high} are out of range for a cache of {size} images")
        views = [image]
        if isinstance(image, Tensor):
            views.append(image.permute(1, 2, 0))  # of a cache that was made from PIL images
        y = class_of(label) if self.index["labels"] == "given" else 0
        if all(self._crc[i] != _crc(v, y) for v in views):
            what = f"image {i} or its label is not what the cache in {self.path} was made from"
            remedy = "delete crc.npy there and call NFACache.build again, or take another directory"
            raise NFAError(f"{what}; {remedy}")

    def _changes(self, rows: list[int], noise: Tensor, strength: float) -> Tensor:
        """What is added to images by their rows in the dataset, for noise (b, n): (b, C, h, w)."""
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


class _Source:
    """What a cache is filled from: a dataset, a flow and its moves."""

    def __init__(
        self, augment: NFAugment, base: Any, step: float, batch_size: int, workers: int | None
    ):
        change = augment.change
        if type(change) is not FlowChange or change.flow.config.code_rows:  # as a LinearChange
            if not isinstance(change, FlowChange):
                raise ValueError(f"a cache is for changes by a flow, got {type(change).__name__}")
            what = "a cache is for deep flows with class Gaussians"
            raise ValueError(f"{what}; the linear flow costs next to nothing without")
        self.flow, self.move = flow, move = change.flow, change.move
        self.change = change
        if move.needs_code or move.noise_size(flow) != move.modes:
            what = f"kind pca or axes; {move.name} takes more than a number for each mode"
            raise ValueError(f"a cache is for moves along modes, {what}")
        if augment.value_range is not None:
            what = "a cache is of uint8 images of levels 0..255, it knows no value_range"
            raise ValueError(f"{what}; put nfa.NFADataset around the dataset instead")
        if isinstance(step, bool) or not isinstance(step, (int, float)) or not 0 < step < math.inf:
            raise ValueError(f"step must be a finite number above 0, e.g. 0.5; got {step!r}")
        for name, value in (
            ("batch_size", batch_size),
            ("workers", 1 if workers is None else workers),
        ):
            if not is_int(value) or value < 1:
                raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
        if not hasattr(base, "__len__"):
            raise TypeError(f"expected a map-style dataset (with len), got {type(base).__name__}")
        if not len(base):
            raise ValueError(f"a cache is of images; this {type(base).__name__} has none")
        self.base, self.labels = map_inside(without_transform, base), augment.labels
        self.notices = Notices(augment.strict)
        self.step, self.batch_size, self.workers = step, batch_size, workers

    def key(self) -> store.Index:
        size, modes = list(self.flow.config.input_size), self.move.modes
        return {
            "format": store.FORMAT, "kind": store.KIND, "flow": digest(self.flow), "modes": modes,
            "mode_kind": self.move.name, "labels": self.labels, "step": self.step,
            "count": len(self.base), "size": size, "shard": store.SHARD,
            "shapes": store.shapes(size, modes),
        }  # fmt: skip

    def unchanged(self, arrays: store.Arrays, shards: list[range]) -> list[bool]:
        """Looks at a few of the images; each is looked at again when it is used."""
        some = [rows[:: max(1, len(rows) // 8)] for rows in shards]
        same = []
        with progress(sum(map(len, some)), "NFA cache, comparing", "images") as bar:
            for rows, (_, _, crc) in zip(some, self._read(some), strict=True):
                same.append(arrays["crc"][list(rows)].tolist() == crc.tolist())
                bar.update(len(rows))
        return same

    def fill(self, arrays: store.Arrays, shards: list[range]) -> Iterator[int]:
        """Fills the rows of each shard; yields how many of them the flow could not move."""
        size = self.batch_size
        batches = [[rows[i : i + size] for i in range(0, len(rows), size)] for rows in shards]
        read = self._read([rows for own in batches for rows in own])
        count = len(self.base)
        with progress(count, "NFA cache", "images", count - sum(map(len, shards))) as bar:
            for own in batches:
                unmoved = 0
                for rows, (x, y, crc) in zip(own, read):
                    found, where = self._tangents(x, y), slice(rows.start, rows.stop)
                    arrays["tangents"][where] = packed(found).numpy()
                    arrays["crc"][where] = crc.numpy()
                    unmoved += int((found == 0).all((1, 2, 3, 4)).sum())
                    bar.update(len(rows))
                yield unmoved

    def check(self, unmoved: int) -> None:
        count, broken = len(self.base), "their change is not finite; load the flow anew"
        cause = without_modes(self.change) or f"{broken}, or take another one"
        what = f"the flow cannot move {unmoved} of {count} images: {cause}"
        if unmoved == count:
            raise NFAError(what)
        if unmoved > FEW * count:
            self.notices.say("no modes", what, images=unmoved)

    def _read(self, batches: list[range]) -> Iterator[tuple[Tensor, Tensor | None, Tensor]]:
        """Yields images, labels and checksums of rows, which worker processes read."""
        if not batches:
            return
        classes = self.flow.num_classes if self.labels == "given" else 0
        data = _Rows(self.base, self.flow.config.input_size, classes)
        workers = self.workers or min(4, _cpus(), len(batches))
        how: dict[str, Any] = {"batch_size": None, "num_workers": workers}
        for found in WorkerLoader(data, sampler=batches, **how):
            if isinstance(found, Exception):
                raise found
            yield found

    @torch.no_grad()
    def _tangents(self, x: Tensor, y: Tensor | None) -> Tensor:
        """Pictures (B, modes + 4, C, h, w), zero for an image that the flow cannot move."""
        flow = self.flow
        z, y = flow.encode(x.to(flow.device), None if y is None else y.to(flow.device))
        y = flow.gaussian_labels(y, len(z))
        found = tangents(flow, z, y, self.move.modes, self.step, self.move.name)
        return torch.where((found.abs() < 1e6).all((1, 2, 3, 4), keepdim=True), found, 0.0)


class _Rows(Dataset):
    """Gives rows of a dataset as the flow takes them; read in a loader's worker processes."""

    def __init__(self, base: Any, size: tuple[int, int, int], num_classes: int):
        self.base, self.size, self.num_classes = base, size, num_classes  # 0: of no labels

    def __getitem__(self, rows: range) -> tuple[Tensor, Tensor | None, Tensor] | Exception:
        """Images (B, C, h, w) in [-1, 1], labels (B,) if given, and checksums (B,) of the rows.

        Or the error at the first that cannot be read, for the main process to raise.
        """
        images, labels, crc = [], [], []
        for i in rows:
            try:
                image, *rest = parts(self.base[i])
                images.append(self._small(image))
                if self.num_classes:
                    labels.append(class_of(label_of(rest, self.num_classes)))
                crc.append(_crc(image, *labels[-1:]))
            except Exception as e:  # whatever a dataset may raise
                kind = next((k for k in (OSError, TypeError) if isinstance(e, k)), ValueError)
                return kind(f"{name_of(self.base, i)} cannot be cached: {type(e).__name__}: {e}")
        return torch.cat(images), torch.tensor(labels) if labels else None, torch.tensor(crc)

    def _small(self, image: Any) -> Tensor:
        """An image at the flow's size: (1, C, h, w), in [-1, 1]."""
        levels, (c, h, w) = pixels.levels_of(image).unsqueeze(0), self.size
        check_image(image, c)
        return lift.down(pixels.levels_to_model(levels), (h, w))


def _cpus() -> int:
    """How many CPUs this process may use."""
    known = hasattr(os, "sched_getaffinity")  # not on macOS or Windows
    return len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1


def _crc(image: Any, label: int = 0) -> int:
    """A checksum of the pixels and, where it counts, the label."""
    pil = isinstance(image, PIL.Image.Image)
    own = image.tobytes() if pil else image.contiguous().numpy().tobytes()
    return zlib.crc32(own, label & 0xFFFFFFFF)
