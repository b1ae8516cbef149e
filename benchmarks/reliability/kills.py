"""Kills at random moments of a training, of a cache's build and of `save_pretrained`, and what is left.

After each kill the same command runs again. Every result is compared, byte by byte, with that of a
run that nobody disturbed.
"""

from __future__ import annotations

import json
import random
import signal
import time
import warnings
from pathlib import Path

import torch

import timm_nfaug as nfa
from benchmarks.reliability import targets
from benchmarks.reliability.children import Child, Ended
from benchmarks.reliability.rows import Row
from timm_nfaug.data import NFACache

STEPS = 40
SETTINGS = {"steps": STEPS, "log_every": 1, "checkpoint_seconds": 0.2}
WEIGHTS = "flow/model.safetensors"
CODES = {signal.SIGTERM: 143, signal.SIGINT: 130}
LOCKS = {".lock"}
TRIES = 10  # times as many runs as kills, as some end before theirs


def run(count: int, seed: int, work: Path, fork: bool = False) -> list[Row]:
    """`count` kills of each target."""
    whole = work / "whole"
    training = undisturbed(whole, fork)
    stops = (signal.SIGTERM, signal.SIGINT)
    return [
        kill_training("training, SIGKILL", (signal.SIGKILL,), count, seed, work / "killed", whole, training, fork),
        kill_training("training, SIGTERM and SIGINT", stops, count, seed, work / "stopped", whole, training, fork),
        kill_build(count, seed, work / "cache", fork),
        kill_save(count, seed, work / "save", fork),
    ]  # fmt: skip


def train(out: Path, *more: object, fork: bool = False, limits=()) -> Child:
    """Starts a training of the digits, resumed where there is something to resume."""
    settings = [word for k, v in SETTINGS.items() for word in ("--set", f"{k}={v}")]
    argv = ["--config", targets.FLOW, "--out", out, "--device", "cpu", "--resume", *settings, *more]
    return Child("train_flow", argv, fork, limits)


def undisturbed(out: Path, fork: bool) -> float:
    """Runs the training that the others are compared with; returns its seconds after its first sign of life."""
    if fork:
        targets.Digits(1)  # imports scikit-learn before the forks
    child = train(out, fork=fork)
    begun = child.until(lambda: (out / "log.jsonl").exists())
    start = time.monotonic()
    ended = child.wait()
    if not begun or ended.code:
        raise RuntimeError(f"the undisturbed training ended with {ended.code}: {ended.last_line}")
    (out / "seconds").write_text(str(time.monotonic() - start))
    return time.monotonic() - start


def kill_training(
    name: str, signals: tuple[int, ...], count: int, seed: int, work: Path, whole: Path,
    seconds: float, fork: bool,
) -> Row:  # fmt: skip
    """Trains from the beginning to the end as often as `count` kills take."""
    row, g, life = Row("kills", name), random.Random(f"{seed} {name}"), 0
    while row.tried < count:
        out = work / str(life)
        life += 1
        _train_once(row, signals, count, out, whole, seconds, g, fork)
        if life > TRIES * count:
            break  # every training ended before its kill
    return row


def _train_once(row, signals, count, out, whole, seconds, g, fork) -> None:
    """One training with as many kills as come before its end."""
    pending = 0
    while again := row.tried + pending < count:
        number = signals[(row.tried + pending) % len(signals)]
        child, before = train(out, fork=fork), _log_state(out, number)
        done = _kill_in_time(child, out, number, before, g.uniform(0, seconds))
        ended = child.wait()
        if ended.code == 0 or ended.refused:
            break
        wrong = number != signal.SIGKILL and _wrong_stop(ended, number, out, done)
        if wrong:
            row.add(*wrong, peak_mb=ended.peak_mb)
        else:
            pending += 1
    if not again:
        ended = train(out, fork=fork).wait()
    _survived(row, pending, _difference(ended, out, whole), ended)


def _kill_in_time(child: Child, out: Path, number: int, before: tuple, delay: float) -> int:
    """Sends a signal so long after the first sign of work; returns the steps done by then."""
    if not child.until(lambda: _log_state(out, number) > before):
        return 0
    time.sleep(delay)
    done = len(_log(out))
    child.kill(number)
    return done


def _survived(row: Row, pending: int, problem: str, ended: Ended) -> None:
    """Counts kills of which the last is to blame where the end is not that of the undisturbed run."""
    for i in range(pending):
        last = problem and i == pending - 1
        row.add("lost" if last else "survived", row.name, problem, ended.peak_mb)


def _log_state(out: Path, number: int) -> tuple:
    """Grows where a training works: by its first write, or where it must handle a signal by a step."""
    log = out / "log.jsonl"
    if not log.exists():
        return (0,)
    found = log.stat()
    return (found.st_mtime_ns,) if number == signal.SIGKILL else (len(_log(out)),)


def _log(out: Path) -> list[int]:
    """Steps in the log."""
    steps = []
    for line in (out / "log.jsonl").read_text().splitlines():
        try:
            found = json.loads(line)
        except ValueError:  # cut short by a kill
            continue
        steps += [found["step"]] if "loss" in found else []
    return steps


def _wrong_stop(ended: Ended, number: int, out: Path, done: int) -> tuple | None:
    """What is wrong with how a training ended at a signal: its exit status, or steps that are lost."""
    kind = signal.Signals(number).name
    if ended.code != CODES[number]:
        end = "raw" if ended.code is not None else "hang"
        return end, kind, f"exit {ended.code} instead of {CODES[number]}: {ended.last_line}"
    if not (out / "checkpoint.pt").exists():
        return "lost", kind, "no checkpoint"
    step = torch.load(out / "checkpoint.pt", map_location="cpu", weights_only=True).get("step")
    if step is not None and step < done:
        return "lost", kind, f"the checkpoint is of step {step}, {done} were done"
    return None


def _difference(ended: Ended, out: Path, whole: Path) -> str:
    """How a training that ran to its end differs from the undisturbed one; "" for not at all."""
    if ended.code != 0:
        return f"it cannot be resumed, exit {ended.code}: {ended.last_line}"
    if (out / WEIGHTS).read_bytes() != (whole / WEIGHTS).read_bytes():
        return "other weights than without kills"
    if (steps := _log(out)) != list(range(1, STEPS + 1)):
        return f"the log has {len(steps)} steps, not {STEPS}"
    return f"left behind: {left}" if (left := leftovers(out)) else ""


def leftovers(folder: Path) -> str:
    """Names of temporary files in a folder and those below it."""
    hidden = {p.name for p in folder.rglob(".*") if p.name not in LOCKS}
    return ", ".join(sorted(hidden))


def kill_build(count: int, seed: int, work: Path, fork: bool) -> Row:
    """Kills builds of a cache; each is built to its end in between."""
    row, g, life = Row("kills", "cache, SIGKILL"), random.Random(f"{seed} cache"), 0
    ended = Child(targets.MODULE, ["build", work / "whole"], fork).wait()
    if ended.code:
        raise RuntimeError(f"the undisturbed build ended with {ended.code}: {ended.last_line}")
    seconds = json.loads(ended.out.splitlines()[-1])["seconds"]
    while row.tried < count and life < TRIES * count:
        folder, pending = work / str(life), 0
        life += 1
        while True:
            child = Child(targets.MODULE, ["build", folder], fork)
            if (again := row.tried + pending < count) and child.until(ready(child)):
                time.sleep(g.uniform(0, seconds))
                child.kill()
            ended = child.wait()
            if not again or ended.code != -signal.SIGKILL:
                break
            pending += 1
        _survived(row, pending, cache_difference(ended, folder, work / "whole"), ended)
    return row


def ready(child: Child):
    """Whether a target has said that its work begins."""
    return lambda: targets.READY in child.output()


def cache_difference(ended: Ended, folder: Path, whole: Path) -> str:
    """How a cache that was built to its end differs from the undisturbed one."""
    if ended.code:
        return f"it cannot be built again, exit {ended.code}: {ended.last_line}"
    try:
        NFACache(folder)
    except (ValueError, OSError) as e:
        return f"it is complete and cannot be read: {e}"
    for path in sorted(whole.glob("*.npy")):
        if path.read_bytes() != (folder / path.name).read_bytes():
            return f"{path.name} differs"
    return f"left behind: {left}" if (left := leftovers(folder)) else ""


def kill_save(count: int, seed: int, folder: Path, fork: bool) -> Row:
    """Kills processes that save two flows over each other; what is left is one of the two."""
    row, g = Row("kills", "save_pretrained, SIGKILL"), random.Random(f"{seed} save")
    flows = targets.variants()
    known = {targets.fingerprint(flow) for flow in flows}
    flows[0].save_pretrained(folder)
    for _ in range(count):
        child = Child(targets.MODULE, ["save-forever", folder], fork)
        if child.until(ready(child)):
            time.sleep(g.uniform(0, 0.5))
            child.kill()
        ended = child.wait()
        row.add(*_saved(ended, folder, known), peak_mb=ended.peak_mb)
    flows[0].save_pretrained(folder)
    if left := leftovers(folder):
        row.problems.append(f"left behind: {left}")
    return row


def _saved(ended: Ended, folder: Path, known: set) -> tuple[str, str, str]:
    if ended.code != -signal.SIGKILL:
        return "raw", "save", f"it ended with {ended.code}: {ended.last_line}"
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            flow = nfa.ConditionalFlow.from_pretrained(folder)
    except Exception as e:
        return "lost", "save", f"it cannot be loaded: {e}"
    if targets.fingerprint(flow) not in known:
        return "lost", "save", "weights of one flow under the config of another"
    return "survived", "save", "; ".join(str(w.message) for w in said)
