"""NFA in an unmodified train.py, started as always, by a flag of timm for modules to import:

    TIMM_NFAUG="--aug nfa-s0.5-k32-p0.5" python train.py --device-modules timm_nfaug.plugin ...

`args.yaml` holds only that the plugin was there: a training started from it without TIMM_NFAUG ends
with an error and not without NFA. Importing it outside of a train.py is an error, too.
"""

import argparse
import logging
import os
import shlex
import sys

from .integration import add_args
from .train import hook, names_of

VARIABLE = "TIMM_NFAUG"
LAUNCHERS = ("timm_nfaug.train", "timm_nfaug.__main__")  # as `python -m` starts them


def _install() -> None:
    """Hooks NFA into the train.py that is running, by the flags in the environment."""
    script = sys.modules["__main__"]
    started = getattr(getattr(script, "__spec__", None), "name", None)
    if started in LAUNCHERS or "timm_nfaug.__main__" in sys.modules:  # the console script
        raise SystemExit("error: the launcher needs no plugin; drop it from --device-modules")
    names, text = names_of(script), os.environ.get(VARIABLE, "")
    usage = f'{VARIABLE}="--aug nfa-s0.5-k32-p0.5 [--nfa-flow NAME] ..."'
    parser = argparse.ArgumentParser(prog=VARIABLE, usage=usage, add_help=False)
    add_args(parser)
    own = parser.parse_args(shlex.split(text))
    if not own.aug:
        parser.error(f"expected --aug in the environment variable {VARIABLE}, got {text!r}")
    parse = getattr(script, "_parse_args", lambda: (script.parser.parse_args(),))
    hook(script, names, argparse.Namespace(**vars(parse()[0]) | vars(own)))
    logging.getLogger(__name__).info("NFA: %s from %s", own.aug, VARIABLE)


_install()
