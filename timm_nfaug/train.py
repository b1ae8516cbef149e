"""Runs an unmodified timm train.py with NFA: ``python -m timm_nfaug.train path/to/train.py --aug nfa ...``.

The script is loaded as a module, its parser gets the flags of `timm_hook.add_args`, its `create_loader` is replaced,
and its `main()` is called. timm's RandAugment is kept from ending a training under Pillow 13 (`timm_nfaug.integration.pillow`).
Everything else, `--config` and `args.yaml` included, is the script's own.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import timm

from .integration.hook import (
    NFAError,
    NFALoader,
    add_args,
    augment_from_args,
    loader_factory,
    needs_fit,
)
from .integration.pillow import guard_posterize

USAGE = (
    "python -m timm_nfaug.train path/to/timm/train.py [--aug nfa-s0.5-k32-p0.5] [--nfa-flow NAME] [--nfa-fit] "
    "[--nfa-place batch|dataset] [--nfa-cache DIR] [train.py's flags]"
)


def load_script(path: Path) -> ModuleType:
    """Imports a train.py from its path, as Python would run it: its folder comes first in sys.path."""
    sys.path.insert(0, str(path.resolve().parent))
    name = path.stem if path.stem not in sys.modules else f"{path.stem}_script"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = (
        module  # classes of the script pickle by this name, under which a spawned worker finds the file
    )
    spec.loader.exec_module(module)
    check_script(module, path)
    return module


def check_script(module: ModuleType, path: str | Path) -> None:
    """Refuses what is not of the shape of timm's train.py."""
    missing = [name for name in ("parser", "create_loader", "main") if not hasattr(module, name)]
    if missing or not isinstance(module.parser, argparse.ArgumentParser):
        raise SystemExit(
            f"{path} is no timm train.py: expected a module-level parser, create_loader and main(), "
            f"it lacks {', '.join(missing) or 'an ArgumentParser named parser'}"
        )


def install(module: ModuleType) -> None:
    """Extends the script's parser, and hooks NFA in once it has parsed its flags."""
    add_args(module.parser)
    hook, parse = install_hooks(module), module.parser.parse_args

    def parse_args(*args, **kwargs):
        values = parse(*args, **kwargs)
        _aa_to_aug(module.parser, values)
        _check_alone(module.parser, values)
        hook(values)
        return values

    module.parser.parse_args = parse_args


def _aa_to_aug(parser: argparse.ArgumentParser, values: argparse.Namespace) -> None:
    """``--aa nfa-...`` is NFA in the place of timm's policies: image by image, in the workers."""
    if not str(getattr(values, "aa", None)).startswith("nfa"):
        return
    if values.aug:
        parser.error(f"--aa {values.aa} and --aug {values.aug} both ask for NFA; drop one of them")
    values.aug, values.nfa_place, values.aa = values.aa, "dataset", None


def _check_alone(parser: argparse.ArgumentParser, values: argparse.Namespace) -> None:
    """Refuses flags of NFA that would do nothing."""
    if values.aug:
        return
    own = argparse.ArgumentParser()
    add_args(own)
    usual = vars(own.parse_args([]))
    if given := [k for k, v in usual.items() if k != "aug" and getattr(values, k) != v]:
        parser.error(
            f"--{given[0].replace('_', '-')} does nothing without --aug: add --aug nfa, or drop it"
        )


def install_hooks(module: ModuleType) -> Callable[[argparse.Namespace], None]:
    """Replaces the script's loader functions; they do what they did until the returned function is given parsed flags."""
    guard_posterize()
    create_loader = module.create_loader
    factory = create_loader

    def hook(values: argparse.Namespace) -> None:
        nonlocal factory
        try:
            augment = augment_from_args(values)
        except (ValueError, OSError) as e:
            module.parser.error(str(e))
        factory = create_loader
        if augment is not None:
            classes, seed = getattr(values, "num_classes", None), getattr(values, "seed", 0)
            fit, place, cache = (
                needs_fit(values),
                values.nfa_place,
                getattr(values, "nfa_cache", None),
            )
            factory = loader_factory(
                create_loader, augment, seed, fit=fit, num_classes=classes, place=place, cache=cache
            )

    def create(dataset, *args, **kwargs):
        try:
            return factory(dataset, *args, **kwargs)
        except NFAError as e:
            raise SystemExit(f"error: {e}") from None

    module.create_loader = create
    if hasattr(
        module, "train_one_epoch"
    ):  # a resumed training draws the numbers of its epoch, not those of the first
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
                raise SystemExit(
                    "--aug nfa does not work with --naflex-loader, whose batches are patches; drop one of them"
                )
            return create_naflex(*args, **kwargs)

        module.create_naflex_loader = refuse
    return hook


def use_timm_beside(path: Path) -> None:
    """Starts this process again where the script would import another timm, one beside it, than is imported by now."""
    folder = path.resolve().parent
    beside = folder / "timm" / "__init__.py"
    if not beside.is_file() or beside.samefile(timm.__file__):
        return
    searched = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if str(folder) in searched:  # in vain
        raise SystemExit(
            f"{path} would import the timm beside it, {beside}, but {timm.__file__} is imported before it: run the launcher "
            "in that folder, or uninstall the other one"
        )
    os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), *filter(None, searched)])
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def main() -> None:
    if len(sys.argv) < 2 or not sys.argv[1].endswith(".py"):
        where = "train.py comes with timm's repository, not with its package: copy it from there"
        parser = argparse.ArgumentParser(
            "timm_nfaug.train", USAGE, epilog=f"{where}. After its path --help shows its own."
        )
        add_args(parser)
        parser.parse_args([a for a in sys.argv[1:2] if a in ("-h", "--help")])  # shows it and ends
        parser.error(
            f"expected the path of a train.py first, got {' '.join(sys.argv[1:2]) or 'nothing'}; {where}"
        )
    path = Path(sys.argv[1])
    if not path.is_file():
        raise SystemExit(f"no file {path}\nusage: {USAGE}")
    use_timm_beside(path)
    sys.argv = sys.argv[1:]
    module = load_script(path)
    install(module)
    module.main()


if __name__ == "__main__":
    main()
