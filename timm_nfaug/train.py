"""Runs an unmodified timm train.py with NFA: ``python -m timm_nfaug.train path/to/train.py --aug nfa ...``.

The script is loaded as a module, its parser gets the flags of `timm_hook.add_args`, its `create_loader` is replaced,
and its `main()` is called. timm's RandAugment is kept from ending a training under Pillow 13 (`timm_nfaug.pillow`).
Everything else, `--config` and `args.yaml` included, is the script's own.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from .pillow import guard_posterize
from .timm_hook import NFAError, NFALoader, add_args, augment_from_args, loader_factory, needs_fit

USAGE = (
    "usage: python -m timm_nfaug.train path/to/timm/train.py [--aug nfa-s1-k32-p0.5] [--nfa-flow NAME] [--nfa-fit] "
    "[train.py's flags]"
)


def load_script(path: Path) -> ModuleType:
    """Imports a train.py from its path, as Python would run it: its folder comes first in sys.path."""
    sys.path.insert(0, str(path.resolve().parent))
    spec = importlib.util.spec_from_file_location("timm_train", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["timm_train"] = module  # classes of the script pickle by this name
    spec.loader.exec_module(module)
    missing = [name for name in ("parser", "create_loader", "main") if not hasattr(module, name)]
    if missing or not isinstance(module.parser, argparse.ArgumentParser):
        raise SystemExit(
            f"{path} is no timm train.py: expected a module-level parser, create_loader and main(), "
            f"it lacks {', '.join(missing) or 'an ArgumentParser named parser'}"
        )
    return module


def install(module: ModuleType) -> None:
    """Extends the script's parser and replaces its loader functions, to take effect once it has parsed its flags."""
    guard_posterize()
    add_args(module.parser)
    parse, create_loader = module.parser.parse_args, module.create_loader
    factory = create_loader

    def parse_args(*args, **kwargs):
        nonlocal factory
        values = parse(*args, **kwargs)
        try:
            augment = augment_from_args(values)
        except (ValueError, OSError) as e:
            module.parser.error(str(e))
        factory = create_loader
        if augment is not None:
            classes = getattr(values, "num_classes", None)
            seed = getattr(values, "seed", 0)
            factory = loader_factory(create_loader, augment, seed, fit=needs_fit(values), num_classes=classes)
        return values

    def create(dataset, *args, **kwargs):
        try:
            return factory(dataset, *args, **kwargs)
        except NFAError as e:
            raise SystemExit(f"error: {e}") from None

    module.parser.parse_args, module.create_loader = parse_args, create
    if hasattr(module, "train_one_epoch"):  # a resumed training draws the numbers of its epoch, not those of the first
        train_one_epoch = module.train_one_epoch

        def at_epoch(epoch, *args, **kwargs):
            for value in (*args, *kwargs.values()):
                if isinstance(value, NFALoader):
                    value.epoch = epoch
            return train_one_epoch(epoch, *args, **kwargs)

        module.train_one_epoch = at_epoch
    if hasattr(module, "create_naflex_loader"):
        create_naflex = module.create_naflex_loader

        def refuse(*args, **kwargs):
            if factory is not create_loader:
                raise SystemExit("--aug nfa does not work with --naflex-loader, whose batches are patches; drop one of them")
            return create_naflex(*args, **kwargs)

        module.create_naflex_loader = refuse


def main() -> None:
    if len(sys.argv) < 2 or not sys.argv[1].endswith(".py"):
        raise SystemExit(f"{USAGE}\ntrain.py comes with timm's repository, not with its package: copy it from there")
    path = Path(sys.argv[1])
    if not path.is_file():
        raise SystemExit(f"no file {path}\n{USAGE}")
    sys.argv = sys.argv[1:]
    module = load_script(path)
    install(module)
    module.main()


if __name__ == "__main__":
    main()
