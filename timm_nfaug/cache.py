"""What a deep flow knows of each image of a training set, computed once and kept on disk, so that epochs need not ask again.

- ``codes``: the code of each image. An epoch only decodes: exact, and half the time.
- ``tangents``: how each image changes when its code moves along each mode of its class,
  ``t_k = (f^-1(z + h sigma_k u_k) - f^-1(z - h sigma_k u_k)) / 2h``. An epoch is then a weighted sum of pictures and needs no
  flow at all. To first order it is NFA; what it errs is measured in benchmarks/README.md.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from . import lift, pixels
from .augment import NFAugment
from .flows.model import ConditionalFlow
from .hub import write_atomically
from .perturb import displacement

KINDS = ("tangents", "codes")
INDEX = "index.json"
SHARD = 1024  # images


@torch.no_grad()
def tangents(flow: ConditionalFlow, z: Tensor, y: Tensor, modes: int = 32, step: float = 1.0, kind: str = "pca") -> Tensor:
    """(B, modes, C, H, W): the change of images of codes z (B, D) and labels y (B,) by a move of one standard deviation.

    Args:
        step: h of the central differences, in standard deviations: about that of the moves they are to stand for.
        kind: of the modes, pca or axes.
    """
    found = []
    for k in range(modes):
        noise = z.new_zeros(len(z), modes)
        noise[:, k] = step
        move = displacement(flow, y, noise, kind, modes)
        found.append((flow.inverse(z + move) - flow.inverse(z - move)) / (2 * step))
    return torch.stack(found, dim=1)


def quantized(t: Tensor) -> tuple[Tensor, Tensor]:
    """Tangents (B, k, C, H, W) as int8 and scales (B, k): ``t = int8 * scale``."""
    scale = t.abs().amax((2, 3, 4)).clamp_min(1e-12) / 127
    return (t / scale.view(*scale.shape, 1, 1, 1)).round().to(torch.int8), scale


class NFACache:
    """A cache on disk; `build` makes one, the constructor opens it.

    Args:
        path: its directory.
        flow: the flow it was made with; `codes` needs it, and where it is given another one is refused.
        verify: compare every file with its checksum. Without, only its size is looked at.
    """

    def __init__(self, path: str | os.PathLike, flow: ConditionalFlow | None = None, verify: bool = True):
        self.path = Path(path)
        self.index = _read_index(self.path)
        if not self.index["complete"]:
            raise ValueError(f"the cache in {self.path} is not complete; call NFACache.build again, which goes on with it")
        if flow is not None and digest(flow) != self.index["flow"]:
            raise ValueError(f"the cache in {self.path} was made with another flow; build one with this flow")
        if self.kind == "codes" and flow is None:
            raise ValueError("a cache of codes decodes them: pass the flow it was made with")
        self.flow = flow.to("cpu") if flow is not None else None
        for name, (size, checksum) in self.index["files"].items():
            file = self.path / name
            if not file.is_file() or file.stat().st_size != size or (verify and _checksum(file) != checksum):
                raise ValueError(f"{file} is missing or damaged; call NFACache.build again, which makes it anew")
        self._open: dict[str, np.ndarray] = {}

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
        step: float = 1.0,
        batch_size: int = 64,
    ) -> NFACache:
        """Makes the cache of a data set, or goes on where a build was cut short.

        Args:
            augment: whose flow, modes, kind and labels count; strength and p are chosen when the cache is used.
            base: a map-style data set of (PIL image or uint8 tensor (C, H, W), label) pairs, without random transforms.
            step: of the `tangents`.
        """
        flow, path = augment.flow, Path(path)
        if kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
        if flow.is_linear or flow.config.code_rows:
            raise ValueError("a cache is for deep flows with class Gaussians; the linear flow costs next to nothing without")
        if kind == "tangents" and augment.kind == "isotropic":
            raise ValueError("isotropic moves have as many directions as the code has coordinates; take kind='codes'")
        key = {
            "format": 1, "kind": kind, "flow": digest(flow), "modes": augment.modes, "mode_kind": augment.kind,
            "labels": augment.labels, "step": step, "count": len(base), "size": list(flow.config.input_size), "shard": SHARD,
        }  # fmt: skip
        index = {**key, "complete": False, "files": {}}
        if (path / INDEX).exists():
            index = _read_index(path)
            other = [k for k, v in key.items() if index.get(k) != v]
            if other:
                raise ValueError(f"{path} holds a cache that differs in {', '.join(other)}; name another directory or delete it")
        for start in range(0, len(base), SHARD):
            number = f"{start // SHARD:06d}.npy"
            names = [f"{part}-{number}" for part in _parts(kind)]
            if all(_whole(path / n, index["files"].get(n)) for n in names):
                continue
            index["complete"] = False
            rows = range(start, min(start + SHARD, len(base)))
            for name, array in zip(names, _shard(augment, base, rows, kind, step, batch_size), strict=True):
                with_array = path / name
                write_atomically(with_array, lambda p, a=array: _save(p, a))
                index["files"][name] = [with_array.stat().st_size, _checksum(with_array)]
            _write_index(path, index)
        index["complete"] = True
        _write_index(path, index)
        return cls(path, flow, verify=False)

    def change(self, i: int, image: Any, noise: Tensor, strength: float) -> Tensor:
        """(C, h, w) in the flow's range: what NFA adds to image i, brought to the flow's size, for noise (modes,).

        Fewer numbers than modes move along the first ones only.

        Raises:
            ValueError: `image` is not the one that row i was made from.
        """
        if not 0 <= i < len(self):
            raise IndexError(f"row {i} is out of range for a cache of {len(self)} images")
        if zlib.crc32(_bytes(image)) != int(self._rows("crc", i)):
            raise ValueError(f"image {i} is not the one that the cache in {self.path} was made from; build it anew")
        n = len(noise)
        if self.kind == "tangents":
            pictures = torch.from_numpy(self._rows("tangents", i)[:n].astype(np.float32)).flatten(1)
            weights = noise * strength * torch.from_numpy(np.array(self._rows("scales", i)[:n]))
            return (weights @ pictures).view(self.index["size"])
        z = torch.from_numpy(np.array(self._rows("codes", i))).unsqueeze(0)
        y = torch.tensor([int(self._rows("classes", i))])
        move = displacement(self.flow, y, noise.unsqueeze(0), self.index["mode_kind"], n)
        with torch.no_grad():
            return (self.flow.inverse(z + strength * move) - self.flow.inverse(z))[0]

    def _rows(self, part: str, i: int) -> np.ndarray:
        shard, row = divmod(i, self.index["shard"])
        name = f"{part}-{shard:06d}.npy"
        if name not in self._open:
            self._open[name] = np.load(self.path / name, mmap_mode="r")
        return self._open[name][row]

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_open": {}}  # each process maps the files itself


def digest(flow: ConditionalFlow) -> str:
    """Of the weights, the class Gaussians and their modes."""
    h = hashlib.sha256(flow.config.architecture.encode())
    for name, tensor in sorted(flow.state_dict().items()):
        h.update(f"{name} {tuple(tensor.shape)}".encode())
        h.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return h.hexdigest()


def _parts(kind: str) -> tuple[str, ...]:
    return ("crc", "tangents", "scales") if kind == "tangents" else ("crc", "codes", "classes")


@torch.no_grad()
def _shard(augment: NFAugment, base, rows: range, kind: str, step: float, batch_size: int) -> tuple[np.ndarray, ...]:
    """The arrays of `_parts` for these rows."""
    flow = augment.flow
    crc, parts = [], []
    for start in range(rows.start, rows.stop, batch_size):
        pairs = [base[i] for i in range(start, min(start + batch_size, rows.stop))]
        levels = [pixels.levels_of(image).unsqueeze(0) for image, *_ in pairs]
        crc += [zlib.crc32(_bytes(image)) for image, *_ in pairs]
        size = flow.config.input_size[1:]
        x = torch.cat([lift.down(pixels.levels_to_model(v), size) for v in levels]).to(flow.device)
        z, _ = flow(x)
        if augment.labels == "none":
            y = torch.zeros(len(z), dtype=torch.int64, device=z.device)
        elif augment.labels == "posterior":
            y = flow.code_logits(z).argmax(1)
        else:
            y = torch.tensor([int(label) for _, label, *_ in pairs], device=z.device)
        if kind == "codes":
            parts.append((z.float(), flow.gaussian_labels(y).to(torch.int32)))
        else:
            parts.append(quantized(tangents(flow, z, y, augment.modes, step, augment.kind)))
    arrays = [torch.cat(part).cpu().numpy() for part in zip(*parts, strict=True)]
    for array in arrays:
        if not np.isfinite(array).all():
            raise ValueError(f"the flow gave values that are not finite for one of the images {rows.start} to {rows.stop - 1}")
    return np.array(crc, dtype=np.uint32), *arrays


def _bytes(image: Any) -> bytes:
    return image.tobytes() if isinstance(image, PIL.Image.Image) else image.contiguous().numpy().tobytes()


def _save(path: Path, array: np.ndarray) -> None:
    with open(path, "wb") as f:  # np.save would add a suffix to a name
        np.save(f, array)


def _checksum(path: Path) -> str:
    h = hashlib.sha256()
    with open(path, "rb") as f:
        while part := f.read(1 << 22):
            h.update(part)
    return h.hexdigest()


def _whole(path: Path, known: list | None) -> bool:
    return known is not None and path.is_file() and [path.stat().st_size, _checksum(path)] == known


def _read_index(path: Path) -> dict[str, Any]:
    try:
        index = json.loads((path / INDEX).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} holds no {INDEX}; NFACache.build makes a cache") from None
    except ValueError as e:
        raise ValueError(f"{path / INDEX} is not valid JSON ({e}); delete {path} and build the cache again") from e
    if index.get("format") != 1:
        raise ValueError(f"{path} holds a cache of format {index.get('format')}, this version reads 1; build it again")
    return index


def _write_index(path: Path, index: dict[str, Any]) -> None:
    text = json.dumps(index, indent=1)
    write_atomically(path / INDEX, lambda p: p.write_text(text, encoding="utf-8"))
