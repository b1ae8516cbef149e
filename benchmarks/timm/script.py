"""A real timm train.py run as a module: loading it with or without the launcher, and a small ImageFolder for it.

train.py comes with timm's repository, not with its package.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from timm_nfaug import train as launcher
from timm_nfaug.integration.pillow import guard_posterize


def load(train_py: Path, flags: list[str]) -> ModuleType:
    """Loads train.py, with the launcher where the flags ask for NFA; RandAugment is guarded in either case."""
    module = launcher.load_script(train_py)
    guard_posterize()
    if "--aug" in flags:
        launcher.install(module)
    return module


def known_flags(train_py: Path) -> set[str]:
    """Lists the long flags of train.py's own parser."""
    actions = launcher.load_script(train_py).parser._actions
    return {o for action in actions for o in action.option_strings if o.startswith("--")}


def subset(data_dir: Path, out: Path, per_class: int, classes: int | None = None) -> int:
    """Links the first images of each of the first classes into an ImageFolder tree.

    Returns:
        The number of training images.
    """
    count = 0
    for split, n in (("train", per_class), ("val", max(1, per_class // 10))):
        for folder in sorted(p for p in (data_dir / split).iterdir() if p.is_dir())[:classes]:
            (out / split / folder.name).mkdir(parents=True)
            for image in sorted(folder.iterdir())[:n]:
                (out / split / folder.name / image.name).symlink_to(image.resolve())
                count += split == "train"
    return count
