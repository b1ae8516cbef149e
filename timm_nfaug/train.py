"""Runs an unmodified timm train.py with NFA: ``timm-nfaug train train.py --aug nfa``.

The script is loaded as a module, its parser gets the flags of `add_args`, its `create_loader` is
replaced, and its `main()` is called. All else, `--config` and `args.yaml` included, is its own.
``python -m timm_nfaug.train`` is the same, for torchrun.
"""

import argparse
import functools
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import timm

from .integration import NFAError, NFALoader, add_args, loader_factory
from .integration.auto import leaves_open
from .integration.flags import augment_from_args, needs_fit, useless_flag
from .integration.pillow import guard_posterize

USAGE = "timm-nfaug train path/to/train.py --aug nfa-s0.5-k32-p0.5 [flags]"
WHERE = "train.py comes with timm's repository, not with its package: copy it from there"


def load_script(path: Path) -> ModuleType:
    """Imports a train.py from its path, as Python would run it: its folder comes first in sys.path.

    >>> load_script(Path(argparse.__file__)).__name__
    'argparse_script'
    """
    sys.path.insert(0, str(path.resolve().parent))
    name = path.stem if path.stem not in sys.modules else f"{path.stem}_script"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    # classes of the script pickle by this name, under which a spawned worker finds the file
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def install(module: ModuleType) -> None:
    """Extends the parser of a loaded train.py, and hooks NFA in once it has parsed its flags.

    >>> install(ModuleType("script"))
    Traceback (most recent call last):
    SystemExit: the running program is no timm train.py: expected a module-level parser, ...
    """
    own, parser = names_of(module), module.parser
    parse = parser.parse_args
    add_args(parser)

    def parse_args(*args, **kwargs) -> argparse.Namespace:
        values = parse(*args, **kwargs)
        if str(getattr(values, "aa", None)).lower().startswith("nfa"):  # NFA in the workers
            if values.aug:
                parser.error(f"--aa {values.aa} and --aug {values.aug} both ask for NFA; drop one")
            values.aug, values.nfa_place, values.aa = values.aa, "dataset", None
        folder = getattr(values, "data_dir", None) if values.aug else None
        if folder and not getattr(values, "dataset", "") and not Path(folder).exists():
            parser.error(f"no directory {folder}, which --data-dir names")
        if flag := useless_flag(values):
            parser.error(f"{flag} does nothing without --aug: add --aug nfa, or drop it")
        hook(module, own, values)
        return values

    parser.parse_args = parse_args


def names_of(module: ModuleType) -> dict[str, Any]:
    """The names of a loaded train.py; raises SystemExit where it has not the shape of timm's.

    >>> names_of(ModuleType("script"))
    Traceback (most recent call last):
    SystemExit: the running program is no timm train.py: expected a module-level parser, ...
    """
    own, path = dict(vars(module)), getattr(module, "__file__", None) or "the running program"
    lacks = [name for name in ("parser", "create_loader", "main") if name not in own]
    if lacks or not isinstance(own["parser"], argparse.ArgumentParser):
        raise SystemExit(
            f"{path} is no timm train.py: expected a module-level parser, create_loader and "
            f"main(), it lacks {', '.join(lacks) or 'an ArgumentParser named parser'}"
        )
    guard_posterize()
    return own


def hook(module: ModuleType, own: dict[str, Any], values: argparse.Namespace) -> None:
    """Puts the augmentation that parsed flags ask for into the functions of a train.py.

    Args:
        own: the names of the module before, as `names_of` gives them.

    >>> hook(script := ModuleType("script"), {"create_loader": len}, argparse.Namespace(aug=None))
    >>> script.create_loader([1, 2])
    2
    """
    factory = create = own["create_loader"]
    try:
        augment = augment_from_args(values)
    except (ValueError, OSError, ImportError) as e:
        raise SystemExit(f"error: {e}") from None
    if augment is not None:
        seed, classes = getattr(values, "seed", 0), getattr(values, "num_classes", None)
        fit, place, cache = needs_fit(values), values.nfa_place, values.nfa_cache
        left = values if leaves_open(values) else None
        how = {"place": place, "cache": cache, "open_args": left}
        factory = loader_factory(create, augment, seed, fit, classes, **how)
    if factory is not create and getattr(values, "naflex_loader", False):  # its batches are patches
        raise SystemExit("--aug nfa does not work with --naflex-loader; drop one of them")

    @_one_line
    def create_loader(dataset: Any, *args, **kwargs) -> Any:
        return factory(dataset, *args, **kwargs)

    @_one_line
    def train_one_epoch(epoch: int, *args, **kwargs) -> Any:
        for loader in (*args, *kwargs.values()):
            if isinstance(loader, NFALoader):  # a resumed training draws its own epoch's numbers
                loader.epoch = epoch
        return own["train_one_epoch"](epoch, *args, **kwargs)

    for function in (create_loader, train_one_epoch):
        setattr(module, function.__name__, function)


def _one_line(function: Callable) -> Callable:
    """The function, whose errors of NFA end the program with one line and exit code 1."""

    @functools.wraps(function)
    def ended(*args, **kwargs) -> Any:
        try:
            return function(*args, **kwargs)
        except NFAError as e:
            raise SystemExit(f"error: {e}") from None

    return ended


def _use_timm_beside(path: Path) -> None:
    """Starts this process again where the script has another timm beside it than is imported."""
    folder = path.resolve().parent
    beside = folder / "timm" / "__init__.py"
    if not beside.is_file() or beside.samefile(timm.__file__):
        return
    searched = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if str(folder) in searched:  # it has been started again already
        raise SystemExit(
            f"{path} would import the timm beside it, {beside}, but {timm.__file__} is imported "
            "before it: run the launcher in that folder, or uninstall the other one"
        )
    os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), *filter(None, searched)])
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def main(argv: list[str] | None = None) -> None:
    """Runs the train.py whose path is the first argument, with the arguments after it."""
    argv = sys.argv[1:] if argv is None else argv
    path = Path(argv[0] if argv else "nothing")
    if path.suffix != ".py":
        epilog = f"{WHERE}. After its path --help shows its own."
        parser = argparse.ArgumentParser("timm-nfaug train", USAGE, epilog=epilog)
        add_args(parser)
        parser.parse_args([a for a in argv[:1] if a in ("-h", "--help")])  # shows it and ends
        parser.error(f"expected the path of a train.py first, got {path}; {WHERE}")
    if not path.is_file():
        raise SystemExit(f"no file {path}\nusage: {USAGE}")
    _use_timm_beside(path)
    sys.argv = argv
    module = load_script(path)
    install(module)
    module.main()


if __name__ == "__main__":
    main()
