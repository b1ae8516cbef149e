"""Progress where one waits: a bar on a terminal, plain lines in a file; in the first process alone.

Nothing is shown of what ends within 2 seconds, nor where the environment says TIMM_NFAUG_QUIET=1.
"""

import contextlib
import logging
import os
import sys
import time

from tqdm import tqdm

from .random import process_rank

QUIET = "TIMM_NFAUG_QUIET"
DELAY, EVERY = 2.0, 30.0  # seconds until anything is shown, and between two lines in a file

_logger = logging.getLogger(__name__)


def progress(total: int | None, desc: str, unit: str, initial: int = 0) -> "_Bar | _Lines":
    """Shows on stderr how many of `total` things are done, their rate and the remaining time.

    Args:
        total: None where nobody knows.
        unit: plural, e.g. "images".
        initial: how many were done before.

    >>> with progress(100, "NFA fit", "images") as bar:
    ...     bar.update(64)
    """
    if (hidden := is_hidden()) or sys.stderr.isatty():
        return _Bar(
            total=total, desc=desc, unit=f" {unit}", initial=initial, disable=hidden,
            delay=DELAY, miniters=1, dynamic_ncols=True, leave=None,
        )  # fmt: skip
    return _Lines(total, desc, unit, initial)


def say(line: str) -> None:
    """Says a line in the first process: to the log, or to stderr where nothing logs it.

    >>> say("NFA on")
    """
    if process_rank() > 0:
        return
    if _logger.isEnabledFor(logging.INFO) and _logger.hasHandlers():
        _logger.info(line)
    elif not is_hidden():
        print(line, file=sys.stderr)


def is_hidden() -> bool:
    """Whether this process shows nothing: it is not the first, or quiet, or has no stderr.

    >>> is_hidden()
    False
    """
    quiet = os.environ.get(QUIET, "0") not in ("", "0")
    return quiet or process_rank() > 0 or sys.stderr is None


class _Bar(tqdm):
    monitor_interval = 0  # no thread beside it: worker processes are forked meanwhile


class _Lines:
    """What tqdm's bar does, for a file: a line when the wait has become one, and at its end."""

    def __init__(self, total: int | None, desc: str, unit: str, initial: int):
        self.total, self.desc, self.unit = total, desc, unit
        self.n = self.initial = initial
        self.start, self.postfix = time.monotonic(), ""
        self.due = self.start + DELAY

    def __enter__(self) -> "_Lines":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def update(self, n: int = 1) -> None:
        """Notes that `n` more are done."""
        if self.n == self.initial:  # a wait for the first, as for processes to start, is no rate
            self.due = time.monotonic() + DELAY
        self.n += n
        if self.n != self.total and (now := time.monotonic()) >= self.due:
            self.due = now + EVERY
            self._print()

    def set_postfix_str(self, text: str, refresh: bool = False) -> None:
        """Sets what the next line ends with."""
        self.postfix = text

    def close(self) -> None:
        """Says how many were done, and in what time."""
        if self.n > self.initial and time.monotonic() - self.start >= DELAY:
            self._print(ended=True)

    def _print(self, ended: bool = False) -> None:
        of = "" if self.total is None else f" of {self.total:,}"
        seconds, done = time.monotonic() - self.start, self.n - self.initial
        rate = done / seconds
        line = [f"{self.desc}: {self.n:,}{of} {self.unit}"]
        line.append(f"{rate:,.0f} {self.unit}/s" if rate >= 10 else f"{rate:.2g} {self.unit}/s")
        if ended:
            line.append(f"in {tqdm.format_interval(seconds)}")
        elif self.total and done:
            line.append(f"{tqdm.format_interval((self.total - self.n) / rate)} left")
        with contextlib.suppress(OSError):  # a full disk ends no training for the sake of its log
            print(", ".join([*line, *filter(None, [self.postfix])]), file=sys.stderr, flush=True)
