"""Tries many inputs in worker processes that may hang, run out of memory or die; a killed run resumes.

A target is a function ``module:function`` called with (index, seed, folder): it makes the input of
that index, tries it, and returns (kind, end, problem) with an end of `rows.ENDS`.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import math
import os
import resource
import signal
import sys
import tempfile
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from benchmarks.core.common import ROOT
from benchmarks.reliability.children import CPU_SECONDS, Child
from benchmarks.reliability.rows import Row

MODULE = "benchmarks.reliability.inputs"
BATCH = 250  # inputs that one process tries, so that each batch has a peak of its own
SILENT = 120  # seconds without a line: it sleeps
MEMORY = 6 << 30  # bytes of address space that one input may take beyond what the process has


def run(
    row: Row, target: str, count: int, seed: int, work: Path, workers: int = 2, fork: bool = False
) -> Row:
    """Adds to a row the inputs 0 to `count` - 1 of a target; those that `work` knows are not tried again."""
    work.mkdir(parents=True, exist_ok=True)
    file = work / f"{target.replace(':', '.')}-{seed}-{sources()}.jsonl"
    known = _read(file)
    left = [i for i in range(count) if i not in known]
    batches = [left[i : i + BATCH] for i in range(0, len(left), BATCH)]
    with ThreadPoolExecutor(workers) as pool:  # threads and forks do not go together
        mapped = map if fork else pool.map
        list(mapped(lambda own: _try_batch(target, seed, own, file, fork), batches))
    known = _read(file)
    for i in range(count):
        row.add(*known[i][:3], peak_mb=known[i][3])
    return row


def sources() -> str:
    """A checksum of the code, so that results of other code are not taken for those of this one."""
    h = hashlib.sha256()
    for folder in ("timm_nfaug", "train_flow", "benchmarks/reliability"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            h.update(path.read_bytes())
    return h.hexdigest()[:12]


def _read(file: Path) -> dict[int, tuple[str, str, str, float]]:
    """(end, kind, problem, peak) by index; a line that a kill cut short does not count."""
    known = {}
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        try:
            i, *values = json.loads(line)
        except ValueError:
            continue
        known[i] = tuple(values)
    return known


def _try_batch(target: str, seed: int, indices: list[int], file: Path, fork: bool) -> None:
    """Tries inputs; one that its process does not come back from is noted, and the next process goes on."""
    while indices:
        child = Child(MODULE, [target, seed, file, json.dumps(indices)], fork)
        said = ""
        while child.until(lambda said=said, child=child: child.output() != said, SILENT):
            said = child.output()
        ended, done = child.wait(0), _read(file)
        left = [i for i in indices if i not in done]
        if left:  # the first of them is the one that it was at
            _note(file, left[0], *_end_of(ended.code, ended.last_line), ended.peak_mb)
        indices = left[1:]


def _end_of(code: int | None, said: str) -> tuple[str, str, str]:
    """(end, kind, problem) of an input that its process did not come back from."""
    kind = "ended its process"
    if code is None:
        return "hang", kind, f"no sign of life for {SILENT} s"
    if code == -signal.SIGXCPU:
        return "hang", kind, f"more than {CPU_SECONDS} s of CPU"
    return "killed", kind, f"the process ended with {code}: {said}"


def _note(file: Path, i: int, end: str, kind: str, problem: str, peak: float) -> None:
    line = json.dumps([i, end, kind, problem[:300], peak]) + "\n"
    with file.open("ab", buffering=0) as f:  # one write: several processes append
        f.write(line.encode())


def main(argv: list[str] | None = None) -> int:
    """The worker: tries the inputs that it is told, each within its limits."""
    target, seed, file, indices = sys.argv[1:] if argv is None else argv
    module, _, name = target.partition(":")
    tried = getattr(importlib.import_module(module), name)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    with tempfile.TemporaryDirectory() as folder:
        for i in json.loads(indices):
            _limit()
            print(i, flush=True)  # a sign of life
            kind, end, problem = _tried(tried, i, int(seed), Path(folder))
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            _note(Path(file), i, end, kind, problem, peak)
    return 0


def _tried(tried: Any, i: int, seed: int, folder: Path) -> tuple[str, str, str]:
    start = time.process_time()
    kind, end, problem = tried(i, seed, folder)
    took = time.process_time() - start
    if took > CPU_SECONDS:
        return kind, "hang", f"{took:.0f} s of CPU"
    return kind, end, problem


def _limit() -> None:
    """Ends this process where the next input takes more CPU, and refuses it more memory."""
    cpu = math.ceil(time.process_time()) + CPU_SECONDS
    resource.setrlimit(resource.RLIMIT_CPU, (cpu, resource.getrlimit(resource.RLIMIT_CPU)[1]))
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if os.path.exists("/proc") else 0
    if pages:
        space = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (space, resource.getrlimit(resource.RLIMIT_AS)[1]))


if __name__ == "__main__":
    sys.exit(main())
