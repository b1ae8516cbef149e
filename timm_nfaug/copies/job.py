"""What is known of a set with copies before any is made: its settings, and the images of a shard."""

import hashlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

HIDDEN = ".nfa"  # folder of OUT for all that is no image
TRAIN = "train"  # folder of OUT, or start of its tar files
CHUNK = 2**20  # bytes read at a time


@dataclass(frozen=True)
class Job:
    """What the shards of a set have in common; it goes to other processes and machines.

    Args:
        out: directory of the set, which holds the augmentation, too.
        root: the folder that names of images start from.
        copies: moved versions of each image.
        format: one of `timm_nfaug.copies.formats.FORMATS`.
        quality: of JPEG; None writes PNG, which loses nothing.
        device: where flow and autoencoder run.
        autoencoder: name of one that the augmentation does not name itself.
        flow: checksum of the flow, so that no other one is taken.

    >>> Job("OUT", "DATA", copies=3).record(1200).as_posix()
    'OUT/.nfa/shards/0001/0001200.json'
    """

    out: str
    root: str
    copies: int
    seed: int = 0
    format: str = "folder"
    quality: int | None = None
    device: str = "cpu"
    autoencoder: str | None = None
    flow: str = ""

    @property
    def hidden(self) -> Path:
        return Path(self.out, HIDDEN)

    @property
    def scratch(self) -> Path:
        """Where files are written before they are renamed."""
        return self.hidden / "tmp"

    @property
    def suffix(self) -> str:
        """What names of copies end in."""
        return ".png" if self.quality is None else ".jpg"

    def record(self, shard: int) -> Path:
        """The file that says that a shard is finished."""
        return self.hidden / "shards" / f"{shard // 1000:04d}" / f"{shard:07d}.json"

    def damaged(self, shard: int) -> Path:
        """The record of a shard that is to be made again, as it is damaged."""
        return self.record(shard).with_suffix(".damaged")


@dataclass(frozen=True)
class Item:
    """An image of the dataset.

    >>> Item(7, "cat/a.b.jpg", 0).stem
    'cat/a.b'
    """

    index: int  # its random numbers follow from it
    name: str  # path below the root, with /
    label: int

    @property
    def stem(self) -> str:
        return str(PurePosixPath(self.name).with_suffix(""))


class Shard(NamedTuple):
    """A numbered part of the dataset.

    >>> Shard(0, [Item(7, "cat/a.jpg", 0)]).number
    0
    """

    number: int
    items: list[Item]


class Version(NamedTuple):
    """An image as it is written: the original (copy 0) or a moved copy.

    >>> Version(Item(7, "cat/a.JPEG", 0), 1, b"").suffix(Job("OUT", "DATA", copies=3))
    '.png'
    """

    item: Item
    copy: int
    data: bytes

    def suffix(self, job: Job) -> str:
        return job.suffix if self.copy else PurePosixPath(self.item.name).suffix


def digest(path: Path) -> str:
    """SHA-256 of a file; "" where it cannot be read.

    >>> digest(Path("no file"))
    ''
    """
    found = hashlib.sha256()
    try:
        with open(path, "rb") as f:
            while data := f.read(CHUNK):
                found.update(data)
    except OSError:
        return ""
    return found.hexdigest()
