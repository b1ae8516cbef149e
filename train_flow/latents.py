"""Latents of a folder of images, made once by an autoencoder and kept on disk, with checksums."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
import zlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from timm_nfaug._utils.progress import progress
from timm_nfaug.autoencoder import Autoencoder, load_autoencoder
from timm_nfaug.data import store
from timm_nfaug.data.layout import Index, Layout, is_count, is_text
from timm_nfaug.pixels import levels_to_model

from .config import TrainConfig
from .data import check_classes, find_splits, held_out, list_files, read_into

_logger = logging.getLogger(__name__)

BATCH = 32  # images that are read while as many are encoded
STATISTICS = 2**14  # latents that the mean and spread of a channel are found from, or all
HELD = 2e9  # bytes of latents that are brought to a GPU as a whole
LAYOUT = Layout(
    "latents", 1, {"crc": np.uint32, "label": np.int32, "latents": np.float16},
    {"autoencoder": is_text, "classes": is_text, "side": is_count, "views": is_count},
    lambda index: {"crc": [], "label": [], "latents": [index["views"], *index["size"]]},
    "latents", "train_flow",
)  # fmt: skip


@dataclass
class Latents:
    """Latents of a dataset on disk, or some of them; an `images.Examples`.

    They are read as they are needed. What the flow sees of them is standardised: each channel has
    mean 0 and standard deviation 1 over the training images.

    Args:
        file: .npy of float16 (N, views, c, h, w); the second view is that of the mirrored image.
        rows: those of the file that these are, (n,).
        labels: (n,).
        latent: `FlowConfig.latent`, with mean and std of each channel.
        checksum: of the files.
        flipped: (n,), where the second view is taken.
        held: the whole file as a tensor on a GPU.

    >>> import tempfile
    >>> np.save(file := Path(tempfile.mkdtemp(), "a.npy"), np.ones((5, 1, 4, 8, 8), np.float16))
    >>> latent = {"size": 64, "mean": [0.0] * 4, "std": [2.0] * 4}
    >>> data = Latents(file, torch.arange(5), torch.zeros(5).long(), ["a"], latent, "")
    >>> data.shape, data.subset(torch.tensor([1, 4])).centres().mean()
    ((4, 8, 8), tensor(0.5000))
    """

    file: Path
    rows: Tensor
    labels: Tensor
    class_names: list[str]
    latent: dict[str, Any]
    checksum: str
    name: str = ""
    flipped: Tensor | None = None
    held: Tensor | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def _open(self) -> np.ndarray:
        # mapped anew each time, so that what was read counts as memory of the process no longer
        return np.load(self.file, mmap_mode="r")

    @property
    def shape(self) -> tuple[int, int, int]:
        c, h, w = self._open().shape[2:]
        return c, h, w

    @property
    def device(self) -> torch.device:
        return torch.device("cpu") if self.held is None else self.held.device

    def subset(self, indices: Tensor) -> Latents:
        """The latents at `indices`, or where a mask is true."""
        i = indices.cpu()
        flipped = None if self.flipped is None else self.flipped[i]
        return dataclasses.replace(self, rows=self.rows[i], labels=self.labels[i], flipped=flipped)

    def to(self, device: torch.device) -> Latents:
        """The same, with all latents in the memory of `device` if they take less than 2 GB."""
        values = self._open()
        if device.type == "cpu" or values.nbytes > HELD:
            return self
        return dataclasses.replace(self, held=torch.from_numpy(np.array(values)).to(device))

    def mirrored(self, where: Tensor) -> Latents:
        """The same, of the mirrored image where a mask (N,) is true."""
        return dataclasses.replace(self, flipped=where.cpu())

    def raw(self) -> Tensor:
        """The latents (n, c, h, w) as the autoencoder makes them, float32."""
        view = torch.zeros_like(self.rows) if self.flipped is None else self.flipped.long()
        if self.held is not None:
            return self.held[self.rows.to(self.device), view.to(self.device)].float()
        found = self._open()[self.rows.numpy(), view.numpy()]
        return torch.from_numpy(np.asarray(found, dtype=np.float32))

    def centres(self) -> Tensor:
        """The latents (n, c, h, w) as the flow takes them: with mean 0 and spread 1 a channel."""
        x = self.raw()
        mean, std = (torch.tensor(self.latent[k], device=x.device) for k in ("mean", "std"))
        return (x - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)

    def drawn(self, bits: int, generator: torch.Generator) -> Tensor:
        """The same: latents have no levels, and need no noise inside them."""
        return self.centres()

    def sha256(self) -> str:
        """Hash of latents, labels and class names."""
        h = hashlib.sha256(f"{self.checksum} {self.class_names}".encode())
        for values in (self.rows, self.labels):
            h.update(values.numpy().tobytes())
        return h.hexdigest()

    def without_labels(self) -> Latents:
        """The same latents as one class."""
        labels = torch.zeros_like(self.labels)
        return dataclasses.replace(self, labels=labels, class_names=["image"])


def load_latents(
    config: TrainConfig, data_dir: str | Path | None, out: Path, device: torch.device
) -> tuple[Latents, Latents | None]:
    """Training latents and, where there are any, those for validation, made where they are missing.

    Args:
        config: space, autoencoder, image_size, latents, flip, val_fraction and skip_unreadable.
        data_dir: ImageFolder tree.
        out: directory of the training, where they are kept unless the config names another.
        device: where the autoencoder runs.

    Raises:
        ValueError: other latents are there, or images or autoencoder do not fit.
        OSError: the disk has no room for them.
    """
    assert config.image_size is not None
    if data_dir is None:
        raise ValueError("space 'latent' needs --data-dir, an ImageFolder tree")
    encoder = find_autoencoder(config, device)
    train_dir, val_dir, name = find_splits(Path(data_dir))
    folder = Path(config.latents) if config.latents else out / "latents"
    make = lambda root, part, views: cached(
        root, folder / part, encoder, config.image_size, views, config.skip_unreadable
    )
    train = make(train_dir, "train", 1 + config.flip)
    train.name = name
    val = None
    if config.val_fraction:
        rest, held = held_out(train.labels, config.val_fraction, config.seed)
        train, val = train.subset(rest), train.subset(held)
    elif val_dir is not None:
        val = make(val_dir, "val", 1)
        if val.class_names != train.class_names:
            raise ValueError(f"{val_dir} and {train_dir} hold different classes")
    train.latent |= spread(train)
    return train, val if val is None else dataclasses.replace(val, latent=train.latent)


def find_autoencoder(config: TrainConfig, device: torch.device) -> Autoencoder:
    """The autoencoder that a config names, on a device.

    >>> find_autoencoder(TrainConfig(space="latent", image_size=64), torch.device("cpu"))
    Traceback (most recent call last):
    ValueError: space: latent needs an autoencoder; add --set autoencoder=NAME
    """
    if not config.autoencoder:
        raise ValueError("space: latent needs an autoencoder; add --set autoencoder=NAME")
    return load_autoencoder(config.autoencoder).to(device)


def cached(
    root: Path, folder: Path, autoencoder: Autoencoder, side: int, views: int, skip: bool = False
) -> Latents:
    """The latents of class folders of images, from the cache in `folder`, which is made if missing.

    Args:
        side: of the square that images are brought to, in pixels.
        views: 2 with those of the mirrored images, else 1.
        skip: leave out images that cannot be read, with a warning, instead of raising.
    """
    files = store.Store(folder, LAYOUT)
    source = _Source(root, autoencoder, side, views, skip)
    files.write(source)
    index, arrays = files.read(), files.open(verify=False)
    labels = torch.from_numpy(np.array(arrays["label"], dtype=np.int64))
    rows = torch.nonzero(labels >= 0).flatten()
    check_classes(root, source.names, labels[rows])
    checksum = hashlib.sha256(repr(sorted(index["shards"].items())).encode()).hexdigest()
    latent = {
        "autoencoder": autoencoder.name, "revision": autoencoder.revision,
        "sha256": index["autoencoder"], "size": side,
    }  # fmt: skip
    return Latents(files.parts["latents"], rows, labels[rows], source.names, latent, checksum)


def spread(data: Latents) -> dict[str, list[float]]:
    """Mean and standard deviation of each channel, of all latents or of some evenly spaced."""
    count = min(len(data), STATISTICS)
    total = square = torch.zeros(data.shape[0], dtype=torch.float64)
    numbers = 0
    for part in (torch.arange(count) * len(data) // count).split(512):
        x = data.subset(part).raw().double().cpu()
        total, square = total + x.sum((0, 2, 3)), square + x.square().sum((0, 2, 3))
        numbers += len(x) * x.shape[2] * x.shape[3]
    mean = total / numbers
    std = (square / numbers - mean.square()).clamp_min(0).sqrt()
    if not bool((std > 1e-6).all()):
        channel = int(std.argmin())
        raise ValueError(
            f"channel {channel} of the latents is the same in all images: a flow over it has no "
            "likelihood; take another autoencoder, or images that differ"
        )
    return {"mean": mean.float().tolist(), "std": std.float().tolist()}


class _Source:
    """What a cache of latents is filled from: image files and an autoencoder."""

    def __init__(self, root: Path, autoencoder: Autoencoder, side: int, views: int, skip: bool):
        self.names, self.files = list_files(root)
        self.root, self.autoencoder, self.skip = root, autoencoder, skip
        self.side, self.views = side, views
        own = lambda path: os.fsencode(path.relative_to(root).as_posix())
        crc = [zlib.crc32(own(path), path.stat().st_size) for path, _ in self.files]
        self.crc = np.array(crc, dtype=np.uint32)  # of name and size of each file

    def key(self) -> Index:
        size = self.autoencoder.latent_size(self.side)
        found: Index = {
            "format": LAYOUT.format, "kind": LAYOUT.kind,
            "autoencoder": self.autoencoder.digest(), "side": self.side, "views": self.views,
            "classes": hashlib.sha256(repr(self.names).encode()).hexdigest(),
            "count": len(self.files), "size": list(size), "shard": store.SHARD,
        }  # fmt: skip
        return found | {"shapes": LAYOUT.shapes(found)}

    def unchanged(self, arrays: store.Arrays, shards: list[range]) -> list[bool]:
        """Compares names and sizes of the files."""
        pairs = [(arrays["crc"][r.start : r.stop], self.crc[r.start : r.stop]) for r in shards]
        return [np.array_equal(known, own) for known, own in pairs]

    def fill(self, arrays: store.Arrays, shards: list[range]) -> Iterator[int]:
        """Fills the rows of each shard; yields how many of its images cannot be read."""
        batches = [[rows[i : i + BATCH] for i in range(0, len(rows), BATCH)] for rows in shards]
        read = self._read([rows for own in batches for rows in own])
        count = len(self.files)
        with progress(count, "latents", "images", count - sum(map(len, shards))) as bar:
            for own in batches:
                bad = 0
                for rows, (levels, errors) in zip(own, read):
                    where = slice(rows.start, rows.stop)
                    arrays["latents"][where] = self._encoded(levels, rows)
                    lost = np.array([error is not None for error in errors])
                    labels = np.array([self.files[i][1] for i in rows])
                    arrays["label"][where] = np.where(lost, -1, labels)
                    arrays["crc"][where] = self.crc[where]
                    bad += int(lost.sum())
                    bar.update(len(rows))
                yield bad

    def check(self, unmoved: int) -> None:
        if unmoved and not self.skip:
            raise ValueError(
                f"{unmoved} of {len(self.files)} images in {self.root} cannot be read; repair or "
                "remove them, or skip them with skip_unreadable=true"
            )

    def _read(self, batches: list[range]) -> Iterator[tuple[np.ndarray, list[str | None]]]:
        """Yields levels (B, 3, side, side) and what went wrong; threads read the next batch."""
        waiting: deque[tuple[np.ndarray, list[Future]]] = deque()
        with ThreadPoolExecutor() as pool:
            for rows in [*batches, None]:
                if rows is not None:
                    levels = np.zeros((len(rows), 3, self.side, self.side), dtype=np.uint8)
                    paths = [self.files[i][0] for i in rows]
                    waiting.append(
                        (levels, list(map(pool.submit, [read_into] * len(rows), paths, levels)))
                    )
                if len(waiting) > (rows is not None):
                    levels, found = waiting.popleft()
                    yield levels, self._errors([future.result() for future in found])

    def _errors(self, found: list[str | None]) -> list[str | None]:
        """Warns of images that cannot be read, or raises ValueError at the first."""
        for error in filter(None, found):
            if not self.skip:
                raise ValueError(
                    f"{error}; repair or remove it, or skip such images with skip_unreadable=true"
                )
            _logger.warning(error)
        return found

    def _encoded(self, levels: np.ndarray, rows: range) -> np.ndarray:
        """Latents (B, views, c, h, w) of images, float16."""
        x = levels_to_model(torch.from_numpy(levels))
        views = [x, x.flip(3)][: self.views]
        z = torch.stack([self.autoencoder.encode(view) for view in views], 1)
        if not bool((z.abs() < 6e4).all()):
            raise ValueError(
                f"the autoencoder gives latents of {self.files[rows.start][0]} or a file after it "
                "that are not finite in float16"
            )
        return z.half().cpu().numpy()


def bytes_of(images: int, size: tuple[int, int, int], views: int) -> int:
    """How many bytes the latents of so many images take on the disk.

    >>> bytes_of(1_000, (32, 14, 14), views=2)
    25096000
    """
    return LAYOUT.bytes({"count": images, "size": list(size), "views": views})
