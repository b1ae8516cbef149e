"""Checkpoints and the log: what a resumed training reads, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from timm_nfaug._utils.files import write_atomically

from .config import TrainConfig

# settings that change no step of a training: --resume may come with other values of them
FREE = {"data_name", "log_every", "eval_every", "eval_images", "checkpoint_seconds"}
FREE |= {"mode_images", "half"}


def read_checkpoint(path: Path, config: TrainConfig, data_hash: str) -> dict[str, Any]:
    """Reads a checkpoint; raises a ValueError if it belongs to other settings or other data."""
    # step counts stay on the CPU, where Adam reads them without waiting for a GPU
    state = torch.load(path, map_location="cpu", weights_only=True)
    # a setting that is newer than the checkpoint had its default
    mine, theirs = config.to_dict(), TrainConfig(data="digits").to_dict() | state["config"]
    changed = [k for k in mine if theirs.get(k) != mine[k] and k not in FREE]
    if changed:
        different = ", ".join(f"{k}={theirs.get(k)!r} instead of {mine[k]!r}" for k in changed)
        raise ValueError(
            f"{path} was made with other settings: {different}; "
            f"resume with those, or choose another --out"
        )
    if state["data"] != data_hash:
        raise ValueError(
            f"{path} was made with other data; resume with those, or choose another --out"
        )
    return state


class Log:
    """The log of a training: one JSON object a line, each with its step.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     log = Log(Path(folder) / "log.jsonl")
    ...     log.append(step=1, loss=7.0), log.append(step=2, loss=float("nan"))
    ...     log.drop_after(1)
    ...     print(log.path.read_text().strip())
    (None, None)
    {"step": 1, "loss": 7.0}
    """

    def __init__(self, path: Path):
        self.path = path

    def append(self, **values: Any) -> None:
        """Writes a line; numbers keep 6 digits, and NaN, which JSON does not know, is left out."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        rounded = {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in values.items()}
        with self.path.open("a", encoding="utf-8") as f:
            f.write(json.dumps({k: v for k, v in rounded.items() if v == v}) + "\n")

    def drop_after(self, step: int) -> None:
        """Removes the lines of later steps, which a resumed run writes again, and broken ones."""
        if not self.path.exists():
            return
        lines = self.path.read_text(encoding="utf-8").splitlines()
        kept = "".join(line + "\n" for line in lines if _step_of(line) <= step)
        write_atomically(self.path, lambda p: p.write_text(kept, encoding="utf-8"))


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError):  # a line cut short by the kill
        return float("inf")
