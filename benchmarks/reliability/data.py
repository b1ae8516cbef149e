"""A dataset that opens its file in the worker: is every image right, and was it left alone in the main process?

Forked workers of a dataset that the main process has read from share one open file, and its position.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

import timm_nfaug as nfa
from benchmarks.reliability.children import Child
from benchmarks.reliability.rows import Row

MODULE = "benchmarks.reliability.data"
CONTEXTS = ("fork", "spawn", "forkserver")
SIDE, WORKERS, CLASSES = 8, 2, 10
RECORD = 3 * SIDE * SIDE + 8  # bytes: an image, and its index
CACHED = 10  # one of so many images is read for the cache, which costs more


class Records(Dataset):
    """Images in one file, which is opened at the first read; counts wrong images and reads by the main process.

    Returns (uint8 tensor (3, 8, 8), label).
    """

    def __init__(self, path: Path, count: int):
        self.path, self.count, self.file = path, count, None
        self.main, self.classes = os.getpid(), [str(k) for k in range(CLASSES)]
        # of the main process, then of each worker: two processes never add to one number
        self.wrong, self.reads = (
            torch.zeros(WORKERS + 1, dtype=torch.int64).share_memory_() for _ in range(2)
        )

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        if i >= self.count:
            raise IndexError(i)
        self.file = self.file or open(self.path, "rb")  # noqa: SIM115
        self.file.seek(i * RECORD)
        data = self.file.read(RECORD)
        worker = get_worker_info()
        own = 0 if worker is None or os.getpid() == self.main else worker.id + 1
        self.reads[own] += 1
        self.wrong[own] += data != record(i)
        image = np.frombuffer(data[8:].ljust(RECORD - 8, b"\0"), dtype=np.uint8)
        return torch.from_numpy(image.reshape(3, SIDE, SIDE).copy()), i % CLASSES


def record(i: int) -> bytes:
    """The bytes of image i, with its index before them."""
    return i.to_bytes(8, "little") + np.random.default_rng(i).bytes(RECORD - 8)


def write(path: Path, count: int) -> None:
    with path.open("wb") as f:
        for i in range(count):
            f.write(record(i))


def run(
    count: int, seed: int, work: Path, fork: bool = False, contexts: tuple[str, ...] = CONTEXTS
) -> list[Row]:
    """Reads `count` images through `wrap_loader`, and a part of them through `NFACache.build`, each way to start workers."""
    row = Row("data", f"images read by {WORKERS} workers")
    untouched = Row("data", "dataset left alone in the main process")
    work.mkdir(parents=True, exist_ok=True)
    write(work / "records.bin", count)
    for context in contexts:
        for what in ("wrap_loader", "NFACache.build"):
            own = count if what == "wrap_loader" else max(1, count // CACHED)
            argv = [what, work / "records.bin", own, context, seed]
            # a fork of this process has its own main module, which spawned workers cannot import
            ended = Child(MODULE, argv, fork and context == "fork").wait(600)
            _count(row, untouched, ended, f"{what}, {context}", own)
    return [row, untouched]


def _count(row: Row, untouched: Row, ended: Any, kind: str, count: int) -> None:
    if ended.code:
        row.add("hang" if ended.code is None else "raw", kind, ended.last_line, ended.peak_mb)
        return
    found = json.loads(ended.out.splitlines()[-1])
    wrong = min(found["wrong"], count)
    for i in range(count):
        row.add("lost" if i < wrong else "survived", kind, f"{wrong} wrong images", ended.peak_mb)
    alone = not found["touched"] and found["closed"]
    end, problem = "survived" if alone else "broken", f"{found['touched']} reads there"
    untouched.add(end, kind, problem, ended.peak_mb)


def main(argv: list[str] | None = None) -> int:
    """The process that is measured: prints counts of reads, wrong images and reads by itself."""
    what, path, count, context, seed = sys.argv[1:] if argv is None else argv
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    multiprocessing.set_start_method(context, force=True)
    data = Records(Path(path), int(count))
    before = sorted(data.__dict__)
    if what == "wrap_loader":
        _pass(data, int(seed))
    else:
        with tempfile.TemporaryDirectory() as folder:
            _build(data, Path(folder))
    closed = data.file is None and sorted(data.__dict__) == before
    found = {"wrong": int(data.wrong.sum()), "touched": int(data.reads[0]), "closed": closed}
    print(json.dumps(found))
    return 0


def _pass(data: Records, seed: int) -> None:
    loader = DataLoader(data, 100, num_workers=WORKERS, shuffle=True)
    parser = argparse.ArgumentParser()
    nfa.add_args(parser)
    args = parser.parse_args(["--aug", "nfa-s0.5-k2-p0.5", "--nfa-flow", "linear"])
    args.seed = seed
    seen = sum(len(x) for x, _ in nfa.wrap_loader(loader, args))
    assert seen == len(data), f"{seen} images came, not {len(data)}"


def _build(data: Records, folder: Path) -> None:
    flow = nfa.create_flow(
        "conv_p4_tiny", num_classes=CLASSES, input_size=(3, SIDE, SIDE), depth=1, hidden=8
    )
    augment = nfa.NFAugment.to_fit(flow.eval(), modes=2, labels="given")
    g = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (100, 3, SIDE, SIDE), generator=g, dtype=torch.uint8)
    augment.fit([(x, torch.arange(100) % CLASSES)], CLASSES)
    nfa.NFACache.build(augment, data, folder)


if __name__ == "__main__":
    sys.exit(main())
