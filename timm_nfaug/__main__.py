"""The command ``timm-nfaug {train,preview,fit,materialise,flows,doctor}``, or ``python -m timm_nfaug``."""

import argparse
import importlib
import sys

from . import __version__
from ._utils.checks import closest

COMMANDS = {  # each is the `main(argv)` of a module
    "train": ("train", "run timm's train.py with NFA: train path/to/train.py --aug nfa ..."),
    "preview": ("preview", "draw a picture of what NFA does to your images"),
    "fit": ("commands.fit", "find the modes of your images once, and save the augmentation"),
    "materialise": ("materialise", "write your dataset with moved copies of each image"),
    "flows": ("commands.flows", "list the flows that come with the package, with their figures"),
    "doctor": ("commands.doctor", "look at your dataset: what NFA will do with it, what to type"),
}
EPILOG = (
    "timm-nfaug COMMAND --help shows the flags of a command. Start with: timm-nfaug doctor DATA"
)


def main(argv: list[str] | None = None) -> int | None:
    """Runs a command with the arguments after its name; returns its exit code.

    >>> main(["--version"])
    Traceback (most recent call last):
    SystemExit: 0
    """
    lines = "\n".join(f"  {name:12}{what}" for name, (_, what) in COMMANDS.items())
    parser = argparse.ArgumentParser(
        "timm-nfaug", "timm-nfaug COMMAND ...", f"Learned image augmentation for timm.\n\n{lines}",
        EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.add_argument("command", nargs="?", help=argparse.SUPPRESS)
    name, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in COMMANDS:
        return importlib.import_module(f"timm_nfaug.{COMMANDS[name][0]}").main(rest)
    parser.parse_args([name])  # --help and --version end here
    parser.error(f"no command {name!r}{closest(name, COMMANDS)}; known: {', '.join(COMMANDS)}")


if __name__ == "__main__":
    sys.exit(main())
