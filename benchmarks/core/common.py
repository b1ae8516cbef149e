"""What every benchmark shares: the machine's description, result files, and timing side by side."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import torch

import timm_nfaug
from timm_nfaug._utils.files import write_atomically

from .schema import ABSOLUTE_PATH, validate

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"

Data = TypeVar("Data")


def environment(packages: Iterable[str] = ()) -> dict[str, Any]:
    """Machine, versions (of `packages` too), commit, threads and date; no host name and no path."""
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,  # with +cpu or +cu128
        "timm_nfaug": timm_nfaug.__version__,
    }
    for package in ("torchvision", "timm", *packages):
        versions[package] = importlib.metadata.version(package)
    # a benchmark writes into results/: that alone does not make the code another one
    status = _git("status", "--porcelain", "--", ".", ":!benchmarks/results")
    return {
        "machine": {
            "cpu": _cpu(),
            "cores": os.cpu_count() or 1,  # the affinity of a pinned thread would say 1
            "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "versions": versions,
        "commit": _git("rev-parse", "HEAD") or "unknown",
        "dirty": status != "",
        "threads": torch.get_num_threads(),
        "date": today(),
    }


def today() -> str:
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d")


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return (
                    f"{line.partition(':')[2].strip()} ({torch.backends.cpu.get_cpu_capability()})"
                )
    except OSError:
        pass
    return (
        f"{platform.processor() or platform.machine()} ({torch.backends.cpu.get_cpu_capability()})"
    )


def command_line(module: str, argv: list[str] | None = None) -> str:
    """``python -m MODULE ARGUMENTS`` as one would type it, each absolute path replaced by PATH."""
    arguments = sys.argv[1:] if argv is None else argv
    safe = ["PATH" if ABSOLUTE_PATH.search(a) else a for a in arguments]
    return shlex.join(["python", "-m", module, *safe])


def flow_title(name: str) -> str:
    """How a record calls a flow: without the directories before it; of train_flow's OUT/flow OUT, of OUT/flow-STEP OUT_STEP."""
    path = Path(name).resolve() if Path(name).is_dir() else Path(name)
    step = path.name.removeprefix("flow-")
    return (
        path.parent.name
        if path.name == "flow"
        else f"{path.parent.name}_{step}"
        if step.isdigit()
        else path.name
    )


def write_result(name: str, payload: dict[str, Any]) -> Path:
    """Validates a result and writes it to benchmarks/results/NAME.json."""
    validate(payload)
    text = json.dumps(payload, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    path = RESULTS / f"{name}.json"
    write_atomically(path, lambda p: p.write_text(text, encoding="utf-8"))
    return path


def require_val(val: Data | None, data_dir: object) -> Data:
    """The images of val/; ends the command where there are none.

    >>> require_val(None, "DATA")
    Traceback (most recent call last):
    SystemExit: DATA has no val/ beside train/, and this command measures on its images
    """
    if val is None:
        raise SystemExit(
            f"{data_dir} has no val/ beside train/, and this command measures on its images"
        )
    return val


def pinned(n: int) -> dict[str, str]:
    """The environment of a process with `n` OpenMP threads bound to cores; OpenMP reads it once, when torch is loaded."""
    return {"OMP_PROC_BIND": "true", "OMP_PLACES": "cores", "OMP_NUM_THREADS": str(n)}


def pin_threads(n: int) -> None:
    """Starts the running command again with the environment of `pinned`, unless it runs so already."""
    wanted = pinned(n)
    if all(os.environ.get(k) == v for k, v in wanted.items()):
        return
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **wanted})


def timed(
    functions: dict[str, Callable[[], Any]], repeats: int = 7, min_seconds: float = 0.5
) -> dict[str, dict[str, Any]]:
    """Times candidates side by side: every repeat runs each of them, so that a slow spell hits all alike.

    Args:
        functions: name to a call without arguments; one on a GPU must synchronise before it
            returns.
        min_seconds: a repeat calls a candidate as often as fills this time.

    Returns:
        For each name the `seconds` of one call in each repeat, their `median`, `min` and `max`, and
        `cpu_per_wall`, CPU time over wall time in each repeat; see `disturbed`.
    """
    calls = {}
    for name, function in functions.items():
        function()  # lazy set-up: caches, kernel choice
        start = time.perf_counter()
        function()
        calls[name] = max(1, round(min_seconds / max(time.perf_counter() - start, 1e-9)))
    found = {name: {"seconds": [], "cpu_per_wall": []} for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            wall, cpu = time.perf_counter(), time.process_time()
            for _ in range(calls[name]):
                function()
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            found[name]["seconds"].append(wall / calls[name])
            found[name]["cpu_per_wall"].append(round(cpu / wall, 3))
    for timing in found.values():
        seconds = timing["seconds"]
        timing.update(median=statistics.median(seconds), min=min(seconds), max=max(seconds))
    return found


def disturbed(timing: dict[str, Any], threads: int, tolerance: float = 0.15) -> bool:
    """True where the median CPU time over wall time lies more than `tolerance` below the thread count."""
    return statistics.median(timing["cpu_per_wall"]) < (1 - tolerance) * threads


def markdown_table(rows: list[list[str]]) -> str:
    """Rows of cells, the first being the header; every column but the first is aligned right."""
    head, *body = rows
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
