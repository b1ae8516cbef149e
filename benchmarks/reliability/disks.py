"""Full and read-only disks, two writers in one directory, and damaged files: clear errors, nothing lost."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import subprocess
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import timm_nfaug as nfa
from benchmarks.reliability import inputs, kills, targets
from benchmarks.reliability.children import Child, Ended, Limits
from benchmarks.reliability.kills import cache_difference, leftovers, train
from benchmarks.reliability.rows import Row

DISK_MB = 64
FILE_LIMIT = (
    100_000  # bytes a file may take where no disk can be mounted: less than any that is written
)
DAMAGED = {
    "flow files": "try_flow_files",
    "cache files": "try_cache",
    "checkpoints": "try_checkpoint",
}


@dataclass
class Disk:
    """A small disk of its own or, where none may be mounted, a folder and a limit on the size of files."""

    path: Path
    mounted: bool

    def full(self) -> Limits:
        """Fills it but for a few bytes; returns the limits of the process that is to meet that."""
        if not self.mounted:
            return [(resource.RLIMIT_FSIZE, FILE_LIMIT)]
        targets.fill(self.path, left=20_000)  # bytes: room for the log
        return []

    def freed(self) -> None:
        (self.path / "filler").unlink(missing_ok=True)

    def read_only(self, on: bool) -> None:
        if self.mounted:
            how = f"remount,{'ro' if on else 'rw'},size={DISK_MB}m"
            subprocess.run(["mount", "-o", how, self.path], check=True)
        else:
            for folder in (self.path, *(p for p in self.path.rglob("*") if p.is_dir())):
                folder.chmod(0o555 if on else 0o755)


@contextlib.contextmanager
def disk(path: Path) -> Iterator[Disk]:
    path.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(path)]
    try:
        mounted = os.geteuid() == 0 and not subprocess.run(mount, capture_output=True).returncode
    except OSError:  # no such command
        mounted = False
    found = Disk(path, mounted)
    try:
        yield found
    finally:
        if mounted:
            subprocess.run(["umount", "-l", path], check=True)
        else:
            found.read_only(False)
        shutil.rmtree(path, ignore_errors=True)


def run(
    count: int, seed: int, work: Path, fork: bool = False, only: Sequence[str] = ()
) -> list[Row]:
    """Each fault of a disk once for every ten of `count`, and `count` damaged files of each kind."""
    faults = Row("disks", "full, read-only, two writers")
    kills.undisturbed(work / "whole", fork)
    Child(targets.MODULE, ["build", work / "cache"], fork).wait()
    for kind in max(1, count // 10) * list(only or FAULTS):
        with disk(work / "disk") as own:
            _try(faults, kind, lambda kind=kind, own=own: FAULTS[kind](own, work, fork))
            how = "a tmpfs" if own.mounted else "a limit on the size of files, and file modes"
            faults.notes = [f"the disk was {how}"]
    rows = [faults]
    for name, function in DAMAGED.items():
        row = Row("disks", f"damaged {name}")
        target = f"benchmarks.reliability.damage:{function}"
        rows.append(inputs.run(row, target, count, seed, work / "damaged", fork=fork))
    return rows


def _try(row: Row, kind: str, tried: Callable[[], tuple[Ended, str, str]]) -> None:
    """Counts one fault: (how the process that met it ended, the end, the problem)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ended, end, problem = tried()
    row.add(end, kind, problem, ended.peak_mb)


def _unclear(ended: Ended) -> tuple[str, str] | None:
    """What is wrong with how a process ended that had to refuse; None for a clear error."""
    if ended.code is None:
        return "hang", "it did not end"
    if ended.code < 0:
        return "killed", f"ended by signal {-ended.code} without a message"
    if not ended.refused:
        return "raw", f"exit {ended.code}: {ended.last_line}"
    return None


def _verdict(ended: Ended, lost: str) -> tuple[Ended, str, str]:
    unclear = _unclear(ended)
    if lost:
        return ended, "lost", f"{lost}; exit {ended.code}: {ended.last_line}"
    return (ended, *unclear) if unclear else (ended, "survived", "")


def _trained(out: Path, work: Path, fork: bool) -> str:
    ended = train(out, fork=fork).wait()
    return kills._difference(ended, out, work / "whole")


def _built(folder: Path, work: Path, fork: bool) -> str:
    ended = Child(targets.MODULE, ["build", folder], fork).wait()
    return cache_difference(ended, folder, work / "cache")


def _begun(out: Path, fork: bool) -> None:
    """A training that stopped after its first step."""
    train(out, "--time-limit", "0", fork=fork).wait()


def full_training(own: Disk, work: Path, fork: bool) -> tuple[Ended, str, str]:
    out = own.path / "run"
    _begun(out, fork)
    ended = train(out, fork=fork, limits=own.full()).wait()
    own.freed()
    return _verdict(ended, _trained(out, work, fork))


def full_cache(own: Disk, work: Path, fork: bool) -> tuple[Ended, str, str]:
    folder = own.path / "cache"
    ended = Child(targets.MODULE, ["build", folder], fork, own.full()).wait()
    own.freed()
    return _verdict(ended, _built(folder, work, fork))


def filled_meanwhile(own: Disk, work: Path, fork: bool) -> tuple[Ended, str, str]:
    """A disk that something else fills while the cache is built: its space was taken before."""
    folder, other = own.path / "cache", own.path if own.mounted else ""
    ended = Child(targets.MODULE, ["build", folder, other], fork).wait()
    own.freed()
    lost = _built(folder, work, fork)
    return (ended, "survived", "") if ended.code == 0 and not lost else _verdict(ended, lost)


def full_save(own: Disk, work: Path, fork: bool) -> tuple[Ended, str, str]:
    folder = own.path / "flow"
    return _save_refused(folder, fork, own.full, own.freed)


def _save_refused(folder: Path, fork: bool, fault: Callable, healed: Callable):
    """A flow over which another cannot be saved is as it was."""
    old, new = targets.variants()
    old.save_pretrained(folder)
    ended = Child(targets.MODULE, ["save", folder], fork, fault() or ()).wait()
    healed()
    found = targets.fingerprint(nfa.ConditionalFlow.from_pretrained(folder))
    lost = "" if found == targets.fingerprint(old) else "the old flow is not what it was"
    new.save_pretrained(folder)
    left = leftovers(folder)
    return _verdict(ended, lost or (f"left behind: {left}" if left else ""))


def read_only_training(own: Disk, work: Path, fork: bool) -> tuple[Ended, str, str]:
    out = own.path / "run"
    _begun(out, fork)
    own.read_only(True)
    ended = train(out, fork=fork).wait()
    own.read_only(False)
    return _verdict(ended, _trained(out, work, fork))


def read_only_save(own: Disk, work: Path, fork: bool) -> tuple[Ended, str, str]:
    on, off = (lambda value=value: own.read_only(value) for value in (True, False))
    return _save_refused(own.path / "flow", fork, on, off)


def read_only_cache(own: Disk, work: Path, fork: bool) -> tuple[Ended, str, str]:
    """A complete cache is used where nothing can be written."""
    folder = own.path / "cache"
    shutil.copytree(work / "cache", folder)
    own.read_only(True)
    ended = Child(targets.MODULE, ["build", folder], fork).wait()
    own.read_only(False)
    if ended.code:
        return ended, "lost", f"a complete cache cannot be used: {ended.last_line}"
    return _verdict_of_both(ended, cache_difference(ended, folder, work / "cache"))


def two_trainings(own: Disk, work: Path, fork: bool) -> tuple[Ended, str, str]:
    """The second is told who works there; the first ends as if alone."""
    out = own.path / "run"
    first = train(out, fork=fork)
    first.until(lambda: (out / "log.jsonl").exists())
    second = train(out, fork=fork)
    ended = first.wait()
    refused = second.wait()
    lost = kills._difference(ended, out, work / "whole")
    if not lost and f"process {first.pid}" not in refused.last_line and refused.code:
        return refused, "raw", f"the holder is not named: exit {refused.code}: {refused.last_line}"
    if not lost and refused.code == 0:
        return refused, "broken", "two trainings wrote to one directory"
    return _verdict(refused, lost)


def two_builds(own: Disk, work: Path, fork: bool) -> tuple[Ended, str, str]:
    """The second waits for the first, or is told who works there."""
    folder = own.path / "cache"
    both = [Child(targets.MODULE, ["build", folder], fork) for _ in range(2)]
    ends = [child.wait() for child in both]
    lost = cache_difference(min(ends, key=lambda e: e.code or 0), folder, work / "cache")
    for ended in ends:
        if ended.code and (unclear := _unclear(ended)):
            return (ended, *unclear)
    return _verdict_of_both(ends[0], lost)


def _verdict_of_both(ended: Ended, lost: str) -> tuple[Ended, str, str]:
    return ended, "lost" if lost else "survived", lost


FAULTS: dict[str, Callable[[Disk, Path, bool], tuple[Ended, str, str]]] = {
    "full disk, training": full_training,
    "full disk, cache": full_cache,
    "disk filled during the build of a cache": filled_meanwhile,
    "full disk, save_pretrained": full_save,
    "read-only directory, training": read_only_training,
    "read-only directory, save_pretrained": read_only_save,
    "read-only directory, complete cache": read_only_cache,
    "two trainings, one --out": two_trainings,
    "two builds, one cache": two_builds,
}
