"""How a shard is written: class folders with an image a file, or a tar file of webdataset."""

import hashlib
import io
import os
import socket
import tarfile
from collections.abc import Iterable
from pathlib import Path

from .._utils.files import write_atomically
from .job import TRAIN, Job, Shard, Version, digest

Written = tuple[dict[str, str], int]  # checksums by name, and bytes


def _folder(job: Job, shard: Shard, versions: Iterable[Version]) -> Written:
    """Writes class folders with an image a file: checksums by name, and bytes."""
    files, size = {}, 0
    for version in versions:
        item, copy, data = version
        name = f"{item.stem}_nfa{copy}{version.suffix(job)}" if copy else item.name
        path = Path(job.out, TRAIN, name)
        if copy or not _linked(Path(job.root, item.name), path, job.scratch):
            write = lambda p, data=data: p.write_bytes(data)
            write_atomically(path, write, durable=False, scratch=job.scratch)
        files[f"{TRAIN}/{name}"] = hashlib.sha256(data).hexdigest()
        size += len(data)
    return files, size


def _linked(source: Path, path: Path, scratch: Path) -> bool:
    """Makes a hard link to an original, which takes no space; False where the disk cannot."""
    temporary = scratch / f"{socket.gethostname()}-{os.getpid()}-link"
    try:
        if path.exists() and os.path.samefile(source, path):
            return True
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)
        os.link(os.path.realpath(source), temporary)
        os.replace(temporary, path)
    except OSError:  # another disk, or one without links, or an owner that is not us
        temporary.unlink(missing_ok=True)
        return False
    return True


def _webdataset(job: Job, shard: Shard, versions: Iterable[Version]) -> Written:
    """Writes one tar file of pairs KEY.png (or .jpg) and KEY.cls: its checksum by name, and bytes."""
    name = tar_name(shard.number)
    path = Path(job.out, name)

    def write(temporary: Path) -> None:
        with tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
            for version in versions:
                key = f"{version.item.index:010d}-{version.copy}"
                image = version.suffix(job).lower().replace(".jpeg", ".jpg")
                _add(tar, f"{key}{image}", version.data)
                _add(tar, f"{key}.cls", str(version.item.label).encode())

    write_atomically(path, write, scratch=job.scratch)
    return {name: digest(path)}, path.stat().st_size


def tar_name(shard: int) -> str:
    """The name of a shard as webdataset.

    >>> tar_name(7)
    'train-000007.tar'
    """
    return f"{TRAIN}-{shard:06d}.tar"


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Adds a file that says nothing of when, where or by whom it was made."""
    header = tarfile.TarInfo(name)
    header.size = len(data)
    tar.addfile(header, io.BytesIO(data))


FORMATS = {"folder": _folder, "webdataset": _webdataset}
