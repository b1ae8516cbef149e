"""Datasets that open their file at the first image, as users write them; also imported by spawned workers."""

import io
import zipfile

import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info

SHAPE, SIZE = (3, 8, 8), 192


def image(i: int) -> torch.Tensor:
    """Levels (3, 8, 8) of record i, no two of which are alike."""
    pixels = torch.arange(SIZE, dtype=torch.int64)
    return ((pixels * (i % 7 + 1) + 37 * i + i // 256) % 256).to(torch.uint8).view(SHAPE)


def images(count: int) -> torch.Tensor:
    return torch.stack([image(i) for i in range(count)])


class Records(Dataset):
    """Reads record i by seek."""

    def __init__(self, path, count):
        self.path, self.count, self.file = path, count, None

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        self.file = self.file or open(self.path, "rb")  # noqa: SIM115
        self.file.seek(i * SIZE)
        read = bytearray(self.file.read(SIZE))
        return torch.frombuffer(read, dtype=torch.uint8).view(SHAPE), i % 4


class Zipped(Records):
    def __getitem__(self, i):
        self.file = self.file or zipfile.ZipFile(self.path)
        return torch.load(io.BytesIO(self.file.read(f"{i}.pt"))), i % 4


class Stream(IterableDataset):
    """Gives its records once: each pass starts where the last one ended."""

    def __init__(self, path, count, by_class=False):
        self.records, self.order = Records(path, count), range(count)
        self.order = iter(sorted(self.order, key=lambda i: i % 4) if by_class else self.order)

    def __iter__(self):
        for i in self.order:
            yield self.records[i]


class Filled(Dataset):
    """Empty until `fill` runs in a worker."""

    def __init__(self, count):
        self.count, self.own = count, None

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        return self.own[i], i % 4


def fill(worker):
    data = get_worker_info().dataset
    data.own = images(data.count)


def write(folder, count):
    """Both files: records.bin and records.zip."""
    (folder / "records.bin").write_bytes(images(count).numpy().tobytes())
    with zipfile.ZipFile(folder / "records.zip", "w") as file:
        for i in range(count):
            torch.save(image(i), found := io.BytesIO())
            file.writestr(f"{i}.pt", found.getvalue())
