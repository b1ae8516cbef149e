"""The directory of a training: its lock, its checkpoints and its log."""

from __future__ import annotations

import contextlib
import copy
import io
import itertools
import json
import math
import os
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from timm_nfaug._utils.checks import is_int
from timm_nfaug._utils.files import InUseError, locked, make_directory, write_atomically

from .config import TrainConfig
from .distributed import Processes

# settings that change no step of a training: --resume may come with other values of them
FREE = {"data_name", "log_every", "eval_every", "eval_images", "checkpoint_seconds"}
FREE |= {"mode_images", "half", "latents"}
WEIGHTS = ("flow", "averaged")  # what must be finite
KINDS: dict[str, type] = {"config": dict, "data": str, "flow": dict, "gaussian_adam": dict}
KINDS |= {"step": int, "gaussian_updates": int, "seconds": float}


def hold(out: Path, processes: Processes, device: torch.device) -> contextlib.ExitStack:
    """Locks `out` against other trainings until the returned object is closed or deleted.

    Raises:
        InUseError: another process trains there; every process of this training raises it.
        OSError: the directory cannot be made.
    """
    held, problem = contextlib.ExitStack(), None
    if processes.rank == 0:
        try:
            make_directory(out)
            held.enter_context(locked(out, wait=False))
        except OSError as e:
            problem = e
    if processes.agree([problem is not None], device)[0]:
        raise problem or InUseError(f"{out} cannot be used, as the first process says")
    return held


class Checkpoints:
    """The checkpoint of a training in a directory, and the one before it.

    checkpoint.pt is replaced once checkpoint.new.pt has been read back whole; it is then
    checkpoint.previous.pt. At any moment one of the three is whole.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     checkpoints = Checkpoints(Path(folder))
    ...     checkpoints.exist()
    False
    """

    def __init__(self, out: Path):
        names = ("checkpoint.pt", "checkpoint.new.pt", "checkpoint.previous.pt")
        self.newest, self.new, self.previous = (out / name for name in names)

    def exist(self) -> bool:
        """Whether there is anything to resume from."""
        return any(path.exists() for path in (self.newest, self.new, self.previous))

    def save(self, state: dict[str, Any]) -> None:
        """Writes `state`, reads it back, and only then replaces the checkpoint.

        Raises:
            OSError: it could not be written, or not read back; the old checkpoint is kept.
        """
        buffer = io.BytesIO()  # torch itself says of a full disk that positions are unexpected
        torch.save(state, buffer)
        try:
            write_atomically(self.new, lambda path: path.write_bytes(buffer.getbuffer()))
            read_checkpoint(self.new)
            if self.newest.exists():
                os.replace(self.newest, self.previous)
            os.replace(self.new, self.newest)
        except (OSError, ValueError) as e:
            kept = "; the checkpoint before is kept" if self.newest.exists() else ""
            raise OSError(f"no checkpoint of step {state['step']}: {e}{kept}") from e

    def restore(self, load: Callable[[dict], None], config: TrainConfig, data_hash: str) -> str:
        """Hands the newest whole checkpoint to `load`; returns what was wrong with a newer one.

        Raises:
            ValueError: no checkpoint is whole, or it belongs to other settings or other data.
        """
        if not self.exist():
            return ""
        problems = [] if self.newest.exists() else [f"{self.newest} is missing"]
        for path in filter(Path.exists, (self.newest, self.new, self.previous)):
            try:
                state = read_checkpoint(path)
                with _damage_named(path):
                    other = _other_training(state, config, data_hash)
                    if not other:
                        load(state)
            except ValueError as e:
                problems.append(str(e))
                continue
            if other:
                hint = "resume with those, or choose another --out"
                raise ValueError(f"{path} was made with other {other}; {hint}")
            return f"{'; '.join(problems)}; {path.name} is used instead" if problems else ""
        hint = "put back a copy, or delete the checkpoints to start from scratch"
        raise ValueError(f"{'; '.join(problems)}; {hint}")


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a checkpoint and checks that it is whole: checksums, keys, finite weights.

    >>> read_checkpoint(Path("pyproject.toml"))
    Traceback (most recent call last):
    ValueError: pyproject.toml is damaged or no checkpoint (File is not a zip file)
    """
    with _damage_named(path):
        with zipfile.ZipFile(path) as file:  # torch does not look at the checksums
            if bad := file.testzip():
                raise ValueError(f"the checksum of {bad} is wrong")
        # step counts stay on the CPU, where Adam reads them without waiting for a GPU
        state = torch.load(path, map_location="cpu", weights_only=True)
        for key, kind in KINDS.items():
            found = state[key]
            if not (is_int(found) if kind is int else isinstance(found, kind)):
                raise ValueError(f"{key} is a {type(found).__name__}")
        if not math.isfinite(state["seconds"]) or min(state["step"], state["gaussian_updates"]) < 0:
            raise ValueError("a negative count")
        if bad := next(not_finite(state), None):
            raise ValueError(f"{bad} is not finite")
    return state


def not_finite(state: dict[str, Any]) -> Iterator[str]:
    """Yields the names of the weights in a checkpoint's `state` that hold NaN or infinity.

    >>> list(not_finite({"flow": {"w": torch.tensor([1.0, math.nan]), "b": torch.zeros(2)}}))
    ['w']
    """
    for part in WEIGHTS:
        for key, value in state.get(part, {}).items():
            if isinstance(value, Tensor) and not bool(value.isfinite().all()):
                yield key


def try_step(optimizer: torch.optim.Optimizer) -> None:
    """Takes a step on a copy, which raises for wrong tensors: loading the state checks none."""
    trial = copy.deepcopy(optimizer)
    for p in itertools.chain.from_iterable(group["params"] for group in trial.param_groups):
        p.grad = torch.zeros_like(p)
    trial.step()


@contextlib.contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """Turns any error of reading a damaged file into a ValueError that names it."""
    try:
        yield
    except Exception as e:
        reason = str(e).partition("\n")[0] or type(e).__name__
        raise ValueError(f"{path} is damaged or no checkpoint ({reason})") from e


def _other_training(state: dict[str, Any], config: TrainConfig, data_hash: str) -> str:
    """Says where a checkpoint is of another training: in settings or data; "" for nowhere."""
    # a setting that is newer than the checkpoint had its default
    mine, theirs = config.to_dict(), TrainConfig(data="digits").to_dict() | state["config"]
    changed = [k for k in mine if theirs[k] != mine[k] and k not in FREE]
    if changed:
        return "settings: " + ", ".join(
            f"{k}={theirs[k]!r} instead of {mine[k]!r}" for k in changed
        )
    return "" if state["data"] == data_hash else "data"


class Log:
    """The log of a training: one JSON object a line, each with its step.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     log = Log(Path(folder) / "log.jsonl")
    ...     log.append(step=1, loss=7.0), log.append(step=2, loss=float("nan"))
    ...     log.drop_after(1)
    ...     print(log.path.read_text().strip())
    (None, None)
    2
    {"step": 1, "loss": 7.0}
    """

    def __init__(self, path: Path):
        self.path = path

    def append(self, **values: Any) -> None:
        """Writes a line; numbers keep 6 digits, and NaN, which JSON does not know, is left out."""
        rounded = {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in values.items()}
        line = json.dumps({k: v for k, v in rounded.items() if v == v}) + "\n"
        try:
            with self.path.open("a", encoding="utf-8") as f:
                f.write(line)
        except OSError as e:
            raise OSError(e.errno, f"cannot write {self.path}: {e.strerror}") from e

    def drop_after(self, step: int) -> int:
        """Removes the lines of later steps, which a resumed run writes again, and broken ones.

        Returns the last step that the log knew.
        """
        if not self.path.exists():
            return step
        lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines()
        steps = [_step_of(line) for line in lines]
        kept = "".join(line + "\n" for line, at in zip(lines, steps, strict=True) if at <= step)
        write_atomically(self.path, lambda p: p.write_text(kept, encoding="utf-8"))
        return max([step, *(int(at) for at in steps if at < math.inf)])


def _step_of(line: str) -> float:
    with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):
        step = json.loads(line)["step"]
        if is_int(step):
            return step
    return math.inf  # a line cut short by a kill
