"""What the tests of kills and disks run in processes of their own: a cache's build, and saving a flow."""

from __future__ import annotations

import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import timm_nfaug as nfa
from timm_nfaug.data import NFACache, store
from timm_nfaug.data.cache import digest
from timm_nfaug.stored import TIMED
from train_flow.data import load_data

MODULE = "benchmarks.reliability.targets"
FLOW, MODES, SHARD = "conv_p4_tiny.digits", 4, 16
IMAGES = 160
READY = "ready"  # said before the work begins


class Digits:
    """Images of the scikit-learn digits as (PIL image, label).

    Args:
        filled: a disk that is full from half of the images on.
    """

    def __init__(self, count: int, filled: str = ""):
        data, _ = load_data("digits")
        self.levels, self.labels = data.levels[:count, 0].numpy(), data.labels[:count].tolist()
        self.filled = filled

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Image.Image, int]:
        if self.filled and i >= len(self) // 2:
            fill(Path(self.filled))
        return Image.fromarray(self.levels[i]), self.labels[i]


def fill(folder: Path, left: int = 0) -> None:
    """Writes into a file of `folder` until its disk is full but for `left` bytes."""
    room = folder / "filler"
    with room.open("ab", buffering=0) as f:
        for size in (1 << 20, 1 << 12, 1):
            block = b"\0" * size
            try:
                while f.write(block) == size:
                    pass
            except OSError:
                continue
        f.truncate(max(0, f.tell() - left))


def build(folder: Path, filled: str = "", count: int = 0) -> None:
    """Builds, resumes or repairs the cache of the digits in a folder."""
    store.SHARD = SHARD
    augment = nfa.NFAugment.from_pretrained(FLOW, modes=MODES)
    data = Digits(count or IMAGES, filled)
    print(READY, flush=True)
    start = time.monotonic()
    NFACache.build(augment, data, folder)
    print(json.dumps({"seconds": time.monotonic() - start}), flush=True)


def variants() -> tuple[nfa.ConditionalFlow, nfa.ConditionalFlow]:
    """Two flows of the same shapes, whose weights and configs differ."""
    old, new = (nfa.ConditionalFlow.from_pretrained(FLOW) for _ in range(2))
    with torch.no_grad():
        for p in new.parameters():
            p.mul_(1.001)
    new.config.info = {**new.config.info, "data": "other digits"}
    return old, new


def fingerprint(flow: nfa.ConditionalFlow) -> tuple[Any, ...]:
    """What a flow is: its weights and its config, but for how long its training took."""
    config = flow.config.to_dict()
    config["info"] = {k: v for k, v in config["info"].items() if k not in TIMED}
    return digest(flow), json.dumps(config, sort_keys=True)


def save(folder: Path, forever: bool = True) -> None:
    """Saves the second of `variants` over what is there, then the first, and so on."""
    old, new = variants()
    print(READY, flush=True)
    for flow in itertools.cycle((new, old)) if forever else (new,):
        flow.save_pretrained(folder)


def main(argv: list[str] | None = None) -> int:
    what, folder, *more = sys.argv[1:] if argv is None else argv
    torch.set_num_threads(1)
    try:
        if what == "build":
            build(Path(folder), *more)
        else:
            save(Path(folder), forever=what == "save-forever")
    except (ValueError, OSError) as e:  # what the package promises
        print("error:", " ".join(str(e).split()), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
