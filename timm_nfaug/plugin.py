"""NFA in an unmodified train.py that is started as it always is, by timm's own flag for modules to import:

    TIMM_NFAUG="--aug nfa-s0.5-k32-p0.5" python train.py --device-modules timm_nfaug.plugin ...

train.py imports the module once it has parsed its flags and before it builds its loaders; importing it elsewhere is an
error. The flags of NFA come from the environment, as train.py's parser does not know them, so `args.yaml` holds only that
the plugin was there: a training started from it without TIMM_NFAUG ends with an error and not without NFA.
"""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import sys

from .integration.hook import add_args
from .train import check_script, install_hooks

VARIABLE = "TIMM_NFAUG"


def flags() -> argparse.Namespace:
    """The flags in the environment, parsed."""
    text = os.environ.get(VARIABLE, "")
    usage = f'{VARIABLE}="--aug nfa-s0.5-k32-p0.5 [--nfa-flow NAME] ..."'
    parser = argparse.ArgumentParser(prog=VARIABLE, usage=usage, add_help=False)
    add_args(parser)
    values = parser.parse_args(shlex.split(text))
    if not values.aug:
        parser.error(f"expected --aug in the environment variable {VARIABLE}, got {text!r}")
    return values


def install() -> None:
    """Hooks NFA into the train.py that is running."""
    script = sys.modules["__main__"]
    if getattr(script, "__spec__", None) is not None and script.__spec__.name == "timm_nfaug.train":
        raise SystemExit(
            "error: the launcher needs no plugin; drop timm_nfaug.plugin from --device-modules"
        )
    check_script(script, getattr(script, "__file__", None) or "the running program")
    own = flags()
    values = (
        script._parse_args()[0] if hasattr(script, "_parse_args") else script.parser.parse_args()
    )
    install_hooks(script)(argparse.Namespace(**vars(values) | vars(own)))
    logging.getLogger(__name__).info("NFA: %s from %s", own.aug, VARIABLE)


install()
