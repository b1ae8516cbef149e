"""What a deep flow knows of each image of a training set, computed once and kept on disk, so that epochs need not ask again.

- ``codes``: the code of each image. An epoch only decodes: exact, and half the time.
- ``tangents``: how each image changes when its code moves along the modes of its class, as a picture for each mode and four
  for the bend of the flow. An epoch is then a weighted sum of pictures and needs no flow at all; what it errs is measured in
  benchmarks/README.md.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import logging
import math
import operator
import os
import shutil
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from .. import lift, pixels
from .._utils.checks import check_probability, check_strength
from .._utils.files import write_atomically
from ..augment import NFAugment
from ..flows.bijections.coupling import AffineCoupling
from ..flows.model import ConditionalFlow
from ..moves import create_move, draw_noise
from .transforms import without_transform

try:
    import fcntl
except ImportError:  # not POSIX
    fcntl = None

_logger = logging.getLogger(__name__)

PARTS = {"tangents": ("crc", "tangents"), "codes": ("crc", "codes", "classes")}
INDEX = "index.json"
FORMAT = 3  # 1 had no pictures of the bend, 2 kept scales apart
BENDS = 4
SHARD = 1024  # images between two notes of what is done


@torch.no_grad()
def tangents(
    flow: ConditionalFlow,
    z: Tensor,
    y: Tensor,
    modes: int = 32,
    step: float = 0.5,
    kind: str = "pca",
) -> Tensor:
    """(B, modes + 4, C, H, W): how images of codes z (B, D) and labels y (B,) change by moves along modes.

    A move by noise e (modes,) at strength s changes an image by about the sum of these pictures with the `weights` of e and s.
    They are a fit to moves by all modes together, each of one standard deviation in the mean and of strength `step`, one way
    and the opposite: what the two have in opposite is linear in e; what they have in common, the bend, is made of the squares and
    the product of the first two modes, which move most, and of the mean square of the others. With a small step they are
    derivatives. Moves of the size that images are moved by later give a better fit, as derivatives know nothing of how the flow
    bends on the way.

    Args:
        step: strength of those moves.
        kind: of the modes, pca or axes.
    """
    at_rest = flow.inverse(z)
    found = at_rest.new_zeros(len(z), modes + BENDS, *at_rest.shape[1:])
    directions = _directions(modes)
    bends = torch.from_numpy(weights(directions.numpy(), 1.0, modes)[:, modes:])
    straight, bend = (directions / len(directions)).to(z), torch.linalg.pinv(bends).T.to(z)
    for e, s, b in zip(directions.to(z), straight, bend, strict=True):
        move = create_move(kind, modes, step).displacement(flow, y, e.expand(len(z), -1))
        there, back = flow.inverse(z + move), flow.inverse(z - move)
        found[:, :modes] += s.view(-1, 1, 1, 1) * ((there - back) / (2 * step)).unsqueeze(1)
        found[:, modes:] += b.view(-1, 1, 1, 1) * (
            ((there + back) / 2 - at_rest) / step**2
        ).unsqueeze(1)
    return found


def _directions(modes: int) -> Tensor:
    """(2 modes, modes): the axes of two random frames, each as long as noise is on average.

    For a linear map the least squares fit to an orthogonal frame is exact, with no inverse to take.
    """
    g = torch.Generator().manual_seed(0)
    frames = torch.empty(2, modes, modes, dtype=torch.float64)
    for frame in frames:
        torch.nn.init.orthogonal_(frame, gain=math.sqrt(modes), generator=g)
    return frames.flatten(0, 1)


def weights(noise: np.ndarray, strength: float, modes: int) -> np.ndarray:
    """Of the pictures of `tangents` for noise (B, n), n up to `modes`: (B, n + 4), those of the bend last.

    On arrays, whose operations cost less than those on tensors where there is one image.
    """
    b, n = noise.shape
    found = np.empty((b, n + BENDS), noise.dtype)
    straight, bend = found[:, :n], found[:, n:]
    np.multiply(noise, strength, out=straight)
    first, second = straight[:, 0], straight[:, 1] if n > 1 else 0.0
    bend[:, 0], bend[:, 1], bend[:, 2] = (
        first**2,
        first * second,
        second**2,
    )  # squares and product of the first two
    bend[:, 3] = (straight[:, 2:] ** 2).sum(1) / max(1, modes - 2)  # mean square of the others
    return found


def packed(t: Tensor) -> Tensor:
    """uint8 (B, k, C * H * W + 8): pictures (B, k, C, H, W) in 8 bits, each with its own scale and offset in the last 8 bytes.

    The format of torch's 8-bit embedding bags, which add such rows up several times quicker than they could be converted.
    """
    return torch.ops.quantized.embedding_bag_byte_prepack(
        t.float().cpu().flatten(0, 1).flatten(1)
    ).unflatten(0, t.shape[:2])


def summed(pictures: Tensor, rows: Tensor, w: Tensor) -> Tensor:
    """(b, C * H * W): sums of packed pictures.

    Args:
        pictures: (N, C * H * W + 8).
        rows: (b, n) indices of pictures.
        w: (b, n), what each of them is multiplied by; float32.
    """
    return torch.ops.quantized.embedding_bag_byte_rowwise_offsets(
        pictures, rows.contiguous(), per_sample_weights=w.contiguous()
    )


class NFACache:
    """A cache on disk; `build` makes one, the constructor opens it.

    Args:
        path: its directory.
        flow: the flow it was made with; `codes` needs it, and where it is given another one is refused.
        verify: compare the files with their checksums. Without, only their sizes are looked at.
    """

    def __init__(
        self, path: str | os.PathLike, flow: ConditionalFlow | None = None, verify: bool = True
    ):
        self.path = Path(path)
        self.index = _read_index(self.path)
        if not self.index["complete"]:
            raise ValueError(
                f"the cache in {self.path} is not complete; call NFACache.build again, which goes on with it"
            )
        if flow is not None and digest(flow) != self.index["flow"]:
            raise ValueError(
                f"the cache in {self.path} was made with another flow; build one with this flow"
            )
        if self.kind == "codes" and flow is None:
            raise ValueError("a cache of codes decodes them: pass the flow it was made with")
        # of its own: the caller's may move to another device, or change
        self.flow = copy.deepcopy(flow).cpu().eval() if self.kind == "codes" else None
        self._open: dict[str, Any] = {}
        for part in PARTS[self.kind]:
            shape = [len(self), *self.index["shapes"][part]]
            if not _file(self.path, part).is_file() or list(self._rows(part).shape) != shape:
                raise ValueError(
                    f"{_file(self.path, part)} is missing or damaged; call NFACache.build again, which mends it"
                )
        for number, checksum in self.index["shards"].items() if verify else ():
            if self._checksum(int(number)) != checksum:
                rows = _shard_rows(int(number), self.index)
                raise ValueError(
                    f"rows {rows.start} to {rows.stop - 1} of the cache in {self.path} are damaged; call NFACache.build again, "
                    "which mends them"
                )

    @property
    def kind(self) -> str:
        return self.index["kind"]

    @property
    def modes(self) -> int:
        return self.index["modes"]

    def __len__(self) -> int:
        return self.index["count"]

    @classmethod
    def build(
        cls,
        augment: NFAugment,
        base,
        path: str | os.PathLike,
        kind: str = "tangents",
        step: float = 0.5,
        batch_size: int = 64,
    ) -> NFACache:
        """Makes the cache of a data set, goes on where a build was cut short, or mends what is damaged or has changed.

        One process builds while others that call this wait for it. Files that nobody has written to since are not read through
        again; `NFACache` compares all checksums.

        Args:
            augment: whose flow, modes, kind and labels count; strength and p are chosen when the cache is used.
            base: a map-style data set of (PIL image or uint8 tensor (C, H, W), label) pairs; its transform is left out.
            step: of the `tangents`; about the strength that they are used at.

        Raises:
            OSError: the disk has no room for it.
        """
        flow, path = augment.flow, Path(path)
        if kind not in PARTS:
            raise ValueError(f"kind must be one of {', '.join(PARTS)}, got {kind!r}")
        if flow.is_linear or flow.config.code_rows:
            raise ValueError(
                "a cache is for deep flows with class Gaussians; the linear flow costs next to nothing without"
            )
        if augment.kind == "isotropic":
            raise ValueError(
                "a cache is for moves along modes, kind pca or axes; isotropic ones have no end of directions"
            )
        number = isinstance(step, (int, float)) and not isinstance(step, bool)
        if kind == "tangents" and not (number and 0 < step < float("inf")):
            raise ValueError(
                f"step must be a finite number above 0, about the strength of the moves, e.g. 0.5; got {step!r}"
            )
        base = without_transform(base)
        key = {
            "format": FORMAT, "kind": kind, "flow": digest(flow), "modes": augment.modes, "mode_kind": augment.kind,
            "labels": augment.labels, "step": step, "count": len(base), "size": list(flow.config.input_size), "shard": SHARD,
            "shapes": {part: list(shape) for part, (shape, _) in _layout(kind, augment).items()},
        }  # fmt: skip
        path.mkdir(parents=True, exist_ok=True)
        with _lock(path):
            index = {**key, "complete": False, "shards": {}}
            if (path / INDEX).exists():
                index = _read_index(path)
                other = [k for k, v in key.items() if index.get(k) != v]
                if other:
                    raise ValueError(
                        f"{path} holds a cache that differs in {', '.join(other)}; name another directory or delete it"
                    )
            done = sum(len(_shard_rows(int(number), key)) for number in index["shards"])
            size = _check_space(path, kind, augment, len(base), done)
            if done < len(base):
                _logger.info(
                    "NFA cache %s: %.1f GB for %d images, of which %d are there",
                    path,
                    size / 1e9,
                    len(base),
                    done,
                )
            arrays = _arrays(path, kind, augment, len(base))
            untouched = index.get("stamps") == _stamps(path, kind)
            shards = -(-len(base) // SHARD)
            for number in range(shards):
                rows = _shard_rows(number, key)
                known = index["shards"].get(str(number))
                if known is not None:
                    intact = untouched or known == _digest_of(arrays, rows)
                    if intact and _unchanged(arrays["crc"], base, rows, augment.labels):
                        continue
                    del index["shards"][str(number)]
                    index |= {"complete": False, "stamps": None}
                    _write_index(path, index)
                _fill(arrays, augment, base, rows, kind, step, batch_size)
                for array in arrays.values():
                    array.flush()
                index["shards"][str(number)] = _digest_of(arrays, rows)
                _write_index(path, index)
                _logger.info("NFA cache %s: %d of %d images", path, rows.stop, len(base))
            if not (index["complete"] and untouched):
                index |= {"complete": True, "stamps": _stamps(path, kind)}
                _write_index(path, index)
        return cls(path, flow, verify=False)

    @torch.no_grad()
    def change(self, i: int, image: Any, label: Any, noise: Tensor, strength: float) -> Tensor:
        """(C, h, w) in the flow's range: what NFA adds to image i, brought to the flow's size, for noise (modes,).

        Fewer numbers than modes move along the first ones only.

        Raises:
            ValueError: image or label are not those that row i was made from.
        """
        self._check(i, image, label)
        small = lambda _: _small(image, self.index["size"])
        return self._changes([i], small, noise.unsqueeze(0), strength)[0]

    @torch.no_grad()
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
        """Images x (B, C, H, W), uint8, moved as `NFAugment` moves them with the same generator; a new tensor.

        For a training set that lies in memory: several times quicker than image by image.

        Args:
            x: images as the data set has them, before any crop or flip.
            y: labels (B,), of a cache that was made with labels; the first is compared with that of its row.
            rows: (B,) indices of these images in the data set. The first image is compared with what its row was made from.
            generator: source of the random numbers, on the CPU.
            strength, p: as of `NFAugment`.
            modes: number of modes moved along; those of the cache unless given.

        Raises:
            ValueError: the first image or its label are not those that its row was made from.
            IndexError: a row is not one of the cache.
        """
        if x.dtype != torch.uint8 or x.ndim != 4 or len(rows) != len(x):
            raise ValueError(
                f"expected uint8 images (B, C, H, W) and B rows, got {x.dtype} {tuple(x.shape)} and {len(rows)} rows"
            )
        modes = self.checked_modes(modes)
        strength, p = check_strength(strength), check_probability(p)
        if not (strength and p and len(x)):
            return x.clone()
        own = rows.tolist()
        if not 0 <= min(own) <= max(own) < len(self):
            raise IndexError(
                f"rows {min(own)} to {max(own)} are out of range for a cache of {len(self)} images"
            )
        self._check(own[0], x[0].cpu(), None if y is None else y[0])
        chosen = torch.ones(len(x), dtype=torch.bool)
        if p < 1:
            chosen = torch.rand(len(x), generator=generator) < p
        noise = draw_noise(int(chosen.sum()), modes, generator)
        which = torch.nonzero(chosen).flatten()
        if not len(which):
            return x.clone()
        small = lambda good: lift.down(
            pixels.levels_to_model(x[which[good].to(x.device)].cpu()), tuple(self.index["size"][1:])
        )
        change = (
            self._changes([own[i] for i in which.tolist()], small, noise, strength)
            .clamp_(-2, 2)
            .mul_(128)
        )
        c = x.shape[1]
        return lift.add(
            x,
            change.to(x.device),
            [0] * c,
            [255] * c,
            None if len(which) == len(x) else which.to(x.device),
        )

    def checked_modes(self, modes: int | None) -> int:
        """Number of modes to move along, those of the cache for None; raises ValueError where it has not so many."""
        modes = self.modes if modes is None else modes
        if not 1 <= modes <= self.modes:
            raise ValueError(
                f"modes must be from 1 to the {self.modes} of the cache, got {modes!r}"
            )
        return modes

    def _check(self, i: int, image: Any, label: Any) -> None:
        if not 0 <= i < len(self):
            raise IndexError(f"row {i} is out of range for a cache of {len(self)} images")
        known, labels = int(self._rows("crc")[i]), self.index["labels"]
        same = known == _crc(image, label, labels)
        if not same and isinstance(image, Tensor):  # of a cache that was made from PIL images
            same = known == _crc(image.permute(1, 2, 0), label, labels)
        if not same:
            raise ValueError(
                f"image {i} or its label is not what the cache in {self.path} was made from; delete crc.npy there and call "
                "NFACache.build again, or build into another directory"
            )

    def _changes(
        self, rows: list[int], small: Callable[[Tensor], Tensor], noise: Tensor, strength: float
    ) -> Tensor:
        """(b, C, h, w) in the flow's range for noise (b, n); zero where the flow has no finite answer.

        Args:
            small: some of the b images, by their positions, at the flow's size; asked of `codes` only.
        """
        n, size = noise.shape[1], self.index["size"]
        if self.kind == "tangents":
            used = np.array([*range(n), *range(self.modes, self.modes + BENDS)])
            own = np.array(rows)[:, None] * (self.modes + BENDS) + used
            w = weights(noise.numpy(), strength, self.modes)
            return summed(self._pictures(), torch.from_numpy(own), torch.from_numpy(w)).view(
                -1, *size
            )
        classes = torch.from_numpy(self._rows("classes")[rows]).long()
        good = torch.nonzero(
            classes >= 0
        ).flatten()  # the flow's codes of the others are not finite
        changes = torch.zeros(len(rows), *size, dtype=torch.float32)
        if len(good):
            z = torch.from_numpy(self._rows("codes")[rows])[good]
            move = create_move(self.index["mode_kind"], n).displacement(
                self.flow, classes[good], noise[good].to(self.flow.dtype)
            )
            found = (self.flow.inverse(z + strength * move) - small(good)).float()
            changes[good] = torch.where(
                found.isfinite().flatten(1).all(1).view(-1, 1, 1, 1), found, 0.0
            )
        return changes

    def _rows(self, part: str) -> np.ndarray:
        if part not in self._open:
            try:
                self._open[part] = np.asarray(
                    np.load(_file(self.path, part), mmap_mode="r")
                )  # slices cost less of an array
            except (ValueError, EOFError) as e:
                file = _file(self.path, part)
                raise ValueError(
                    f"{file} is damaged ({e}); delete it and call NFACache.build again"
                ) from e
        return self._open[part]

    def _pictures(self) -> Tensor:
        """The tangents of all images, packed, one below the other."""
        if "pictures" not in self._open:
            rows = self._rows("tangents")
            with warnings.catch_warnings():
                warnings.filterwarnings(
                    "ignore", "The given NumPy array is not writable"
                )  # nor is it written to
                self._open["pictures"] = torch.from_numpy(rows.reshape(-1, rows.shape[-1]))
        return self._open["pictures"]

    def _checksum(self, number: int) -> str:
        return _digest_of(
            {part: self._rows(part) for part in PARTS[self.kind]}, _shard_rows(number, self.index)
        )

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_open": {}}  # each process maps the files itself


def digest(flow: ConditionalFlow) -> str:
    """Of what a flow computes: architecture, settings, weights, class Gaussians, modes, and the dtype of its networks."""
    c = flow.config
    kinds = [str(m.net_dtype) for m in flow.modules() if isinstance(m, AffineCoupling)]
    h = hashlib.sha256(
        f"{c.architecture} {c.input_size} {sorted(c.network.items())} {sorted(c.prior.items())} {kinds}".encode()
    )
    for name, tensor in sorted(flow.state_dict().items()):
        h.update(f"{name} {tuple(tensor.shape)}".encode())
        h.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return h.hexdigest()


# -- the files ---------------------------------------------------------------------------------------------------------
# One array a part for the whole data set, filled shard by shard; the index, written after every shard, says which are good.


def _layout(kind: str, augment: NFAugment) -> dict[str, tuple[tuple[int, ...], type]]:
    """Part to the shape of a row and its dtype."""
    size, modes = augment.flow.config.input_size, augment.modes
    rows = {"crc": ((), np.uint32), "codes": ((augment.flow.dim,), np.float32), "classes": ((), np.int32),
            "tangents": ((modes + BENDS, math.prod(size) + 8), np.uint8)}  # fmt: skip
    return {part: rows[part] for part in PARTS[kind]}


def _file(path: Path, part: str) -> Path:
    return path / f"{part}.npy"


def _check_space(path: Path, kind: str, augment: NFAugment, count: int, done: int) -> int:
    """Bytes of the whole cache, of which `done` rows are there.

    Raises where the rest does not fit on the disk: a full one would kill the process that maps the files.
    """
    row = sum(
        math.prod(shape) * np.dtype(dtype).itemsize
        for shape, dtype in _layout(kind, augment).values()
    )
    if not all(_file(path, part).is_file() for part in PARTS[kind]):
        done = 0
    free = shutil.disk_usage(path).free
    if row * (count - done) > free:
        remedy = "fewer modes or another disk" if kind == "tangents" else "another disk"
        raise OSError(
            f"a cache of {kind} of {count} images takes {row * count / 1e9:.1f} GB, of which {row * done / 1e9:.1f} GB are "
            f"there; {path} has {free / 1e9:.1f} GB left; take {remedy}"
        )
    return row * count


def _arrays(path: Path, kind: str, augment: NFAugment, count: int) -> dict[str, np.memmap]:
    """The arrays, made where they are not there or not of their size."""
    found = {}
    for part, (shape, dtype) in _layout(kind, augment).items():
        file = _file(path, part)
        try:
            array = np.load(file, mmap_mode="r+")
        except (FileNotFoundError, ValueError, EOFError):
            array = None
        if array is None or array.shape != (count, *shape) or array.dtype != dtype:
            array = np.lib.format.open_memmap(file, "w+", dtype, (count, *shape))
        found[part] = array
    return found


def _shard_rows(number: int, index: dict[str, Any]) -> range:
    return range(number * index["shard"], min((number + 1) * index["shard"], index["count"]))


def _stamps(path: Path, kind: str) -> dict[str, int]:
    """When each file was last written to."""
    return {part: _file(path, part).stat().st_mtime_ns for part in PARTS[kind]}


def _digest_of(arrays: dict[str, np.ndarray], rows: range) -> str:
    h = hashlib.sha256()
    for array in arrays.values():
        h.update(np.ascontiguousarray(array[rows.start : rows.stop]))
    return h.hexdigest()


def _unchanged(crc: np.ndarray, base, rows: range, labels: str) -> bool:
    """Looks at a few of the images of a shard; each is looked at again when it is used."""
    few = rows[:: max(1, len(rows) // 8)]
    return all(_crc(*base[i][:2], labels) == int(crc[i]) for i in few)


@torch.no_grad()
def _fill(
    arrays: dict[str, np.ndarray],
    augment: NFAugment,
    base,
    rows: range,
    kind: str,
    step: float,
    batch_size: int,
) -> None:
    flow = augment.flow
    for start in range(rows.start, rows.stop, batch_size):
        where = slice(start, min(start + batch_size, rows.stop))
        pairs = [base[i][:2] for i in range(where.start, where.stop)]
        for image, _ in pairs:
            pixels.levels_of(image)  # refuses what is no image
            check_image(image, augment.change.size[0])
        arrays["crc"][where] = [_crc(image, label, augment.labels) for image, label in pairs]
        x = torch.cat([_small(image, flow.config.input_size) for image, _ in pairs]).to(flow.device)
        z, _ = flow(x)
        if augment.labels == "none":
            y = torch.zeros(len(z), dtype=torch.int64, device=z.device)
        elif augment.labels == "posterior":
            y = flow.code_logits(z).argmax(1)
        else:
            y = torch.tensor([_class(label) for _, label in pairs], device=z.device)
        if kind == "codes":
            good = z.isfinite().all(1)
            made = {
                "codes": torch.where(good.unsqueeze(1), z, 0.0),
                "classes": torch.where(good, flow.gaussian_labels(y), -1),
            }
        else:
            t = tangents(flow, z, y, augment.modes, step, augment.kind)
            # an image that the flow cannot move stays as it is
            t = torch.where((t.abs() < 1e6).flatten(1).all(1).view(-1, 1, 1, 1, 1), t, 0.0)
            made = {"tangents": packed(t)}
        for part, values in made.items():
            arrays[part][where] = values.cpu().numpy()


def _small(image: Any, size: Sequence[int]) -> Tensor:
    """(1, C, h, w) in [-1, 1]: an image at the flow's size."""
    return lift.down(pixels.levels_to_model(pixels.levels_of(image).unsqueeze(0)), tuple(size[1:]))


def _class(label: Any) -> int:
    try:
        return operator.index(label if not isinstance(label, Tensor) else label.item())
    except (TypeError, RuntimeError, ValueError):
        raise TypeError(
            f"a cache takes one integer label an image, got {label!r}; mixed or soft labels have no class"
        ) from None


def _crc(image: Any, label: Any, labels: str) -> int:
    """Of the pixels and, where it counts, the label."""
    own = (
        image.tobytes()
        if isinstance(image, PIL.Image.Image)
        else image.contiguous().numpy().tobytes()
    )
    return zlib.crc32(own, _class(label) & 0xFFFFFFFF if labels == "given" else 0)


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Lets one process at a time build; a killed one leaves no lock behind."""
    with open(path / ".lock", "w") as f:
        if fcntl is not None:
            fcntl.flock(f, fcntl.LOCK_EX)
        yield


def _read_index(path: Path) -> dict[str, Any]:
    try:
        index = json.loads((path / INDEX).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} holds no {INDEX}; NFACache.build makes a cache") from None
    except ValueError as e:
        raise ValueError(
            f"{path / INDEX} is not valid JSON ({e}); delete {path} and build the cache again"
        ) from e
    if index.get("format") != FORMAT:
        raise ValueError(
            f"{path} holds a cache of format {index.get('format')}, this version reads {FORMAT}; delete it and build it again"
        )
    return index


def _write_index(path: Path, index: dict[str, Any]) -> None:
    text = json.dumps(index, indent=1)
    write_atomically(path / INDEX, lambda p: p.write_text(text, encoding="utf-8"))
