"""Damaged checkpoints and caches: each is refused by name or repaired, and never taken for whole."""

from __future__ import annotations

import contextlib
import functools
import io
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

import timm_nfaug as nfa
import train_flow.__main__ as train_flow
from benchmarks.reliability import kills, targets
from timm_nfaug.data import NFACache, store
from timm_nfaug.hub import CONFIG_NAME, WEIGHTS_NAME

Tried = tuple[str, str, str]
HALF = ["--time-limit", "0"]  # stops after the first step


def flipped(data: bytes, g: np.random.Generator) -> bytes:
    changed = bytearray(data)
    for at in g.integers(0, len(data), 8):
        changed[at] ^= 1 << int(g.integers(8))
    return bytes(changed)


DAMAGE: dict[str, Callable[[bytes, np.random.Generator], bytes]] = {
    "empty": lambda data, g: b"",
    "cut": lambda data, g: data[: int(g.integers(1, len(data)))],
    "text": lambda data, g: b"<html>404 Not Found</html>",
    "zeros": lambda data, g: b"\0" * len(data),
    "flipped bits": flipped,
    "a hole": lambda data, g: data[: len(data) // 3] + b"\0" * (len(data) // 3) + data[2 * (len(data) // 3) :],
    "longer": lambda data, g: data + g.bytes(100),
}  # fmt: skip


def _damaged(folder: Path, names: Sequence[str], index: int, seed: int) -> str:
    """Damages one of the files of a folder; returns which and how."""
    name, g = names[index % len(names)], np.random.default_rng([seed, index])
    how, change = list(DAMAGE.items())[index // len(names) % len(DAMAGE)]
    (folder / name).write_bytes(change((folder / name).read_bytes(), g))
    return f"{name}, {how}"


@functools.lru_cache
def _training(folder: Path) -> tuple[Path, bytes]:
    """A training stopped after a step, and the weights at its end."""
    _train(folder / "whole")
    _train(folder / "stopped", *HALF)
    return folder / "stopped", (folder / "whole" / kills.WEIGHTS).read_bytes()


def _train(out: Path, *more: str) -> tuple[int, str]:
    """Runs the command line of a training of two steps here; returns its exit status and what it said."""
    said = io.StringIO()
    settings = ["--set", "steps=2", "--set", "log_every=1", "--device", "cpu", "--resume"]
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        try:
            code = train_flow.main(["--config", targets.FLOW, "--out", str(out), *settings, *more])
        except SystemExit as e:
            code = e.code if isinstance(e.code, int) else 1
    return code, said.getvalue().strip()


def try_checkpoint(index: int, seed: int, folder: Path) -> Tried:
    """Resumes from a damaged checkpoint: an error that names it, or the result of the undisturbed run."""
    stopped, wanted = _training(folder)
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(stopped, out)
    kind = _damaged(out, ["checkpoint.pt"], index, seed)
    try:
        code, said = _train(out)
    except Exception as e:
        return kind, "raw", f"{type(e).__name__}: {e}"
    if code:
        last = said.splitlines()[-1]
        named = code == 2 and last.startswith("error: ") and "checkpoint" in last
        return kind, "refused" if named else "raw", "" if named else f"exit {code}: {last}"
    same = (out / kills.WEIGHTS).read_bytes() == wanted
    return kind, "survived" if same else "broken", "" if same else "other weights, without a word"


@functools.lru_cache
def _cache(folder: Path) -> tuple[Path, dict[str, bytes]]:
    targets.build(folder / "whole", count=3 * targets.SHARD)
    arrays = {p.name: p.read_bytes() for p in (folder / "whole").glob("*.npy")}
    return folder / "whole", arrays


def try_cache(index: int, seed: int, folder: Path) -> Tried:
    """Opens a cache with a damaged file, and builds it again: to the same bytes, or a clear error."""
    whole, wanted = _cache(folder)
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(whole, out)
    names = [*(f"{part}.npy" for part in store.DTYPES), "index.json"]
    kind = _damaged(out, names, index, seed)
    refused = ""
    try:
        NFACache(out)
    except (ValueError, OSError) as e:
        refused = str(e)
    except Exception as e:
        return kind, "raw", f"opening: {type(e).__name__}: {e}"
    same = lambda: all((out / n).read_bytes().startswith(data) for n, data in wanted.items())
    if not refused:
        return (kind, "loaded", "") if same() else (kind, "broken", "it opens without a word")
    if str(out) not in refused:
        return kind, "raw", f"the cache is not named: {refused}"
    try:
        targets.build(out, count=3 * targets.SHARD)
    except (ValueError, OSError) as e:
        clear = str(out) in str(e)
        return kind, "refused" if clear else "raw", str(e)
    except Exception as e:
        return kind, "raw", f"building: {type(e).__name__}: {e}"
    return (kind, "survived", "") if same() else (kind, "broken", "not repaired")


@functools.lru_cache
def _flow(folder: Path) -> tuple[Path, tuple]:
    flow, _ = targets.variants()
    return flow.save_pretrained(folder / "whole"), targets.fingerprint(flow)


def try_flow_files(index: int, seed: int, folder: Path) -> Tried:
    """Loads a flow with a damaged file: an error that names the file, or the very flow."""
    whole, wanted = _flow(folder)
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(whole, out)
    kind = _damaged(out, [CONFIG_NAME, WEIGHTS_NAME], index, seed)
    try:
        found = targets.fingerprint(nfa.ConditionalFlow.from_pretrained(out))
    except (ValueError, OSError) as e:
        clear = str(out) in str(e)
        return kind, "refused" if clear else "raw", "" if clear else f"not named: {e}"
    except Exception as e:
        return kind, "raw", f"{type(e).__name__}: {e}"
    return (kind, "loaded", "") if found == wanted else (kind, "broken", "another flow, silently")
