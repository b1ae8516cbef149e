"""Child processes that are watched, limited and killed: output, exit status, CPU time and peak memory."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

from benchmarks.core.common import ROOT

Limits = Sequence[tuple[int, int]]  # (resource.RLIMIT_..., value)
CPU_SECONDS = 10  # beyond which an input or the end of a file counts as a hang
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


@dataclass
class Ended:
    """How a process ended.

    Args:
        code: exit status; -N: by signal N, None: killed by us after a time.
        peak_mb: peak memory, which is at least that of the process that started it.
    """

    code: int | None
    out: str
    err: str
    peak_mb: float

    @property
    def last_line(self) -> str:
        return (self.err.strip().splitlines() or [""])[-1]

    @property
    def refused(self) -> bool:
        """Whether it ended by itself with a message of one line."""
        said = self.last_line.startswith("error: ") and "Traceback" not in self.err
        return self.code is not None and self.code > 0 and said


class Child:
    """A running ``python -m MODULE ARGV``.

    Args:
        fork: run the module's `main(argv)` in a fork of this process instead, which saves the seconds
            of the imports.
        limits: of the process.
    """

    def __init__(
        self, module: str, argv: Sequence[object], fork: bool = False, limits: Limits = ()
    ):
        words = [str(a) for a in argv]
        self._out, self._err = (tempfile.TemporaryFile() for _ in range(2))  # noqa: SIM115
        self._process: subprocess.Popen | None = None
        self.ended: Ended | None = None
        if fork:
            main = importlib.import_module(_with_main(module)).main  # before the fork: once for all
            sys.stdout.flush(), sys.stderr.flush()
            self.pid = os.fork()
            if not self.pid:
                self._run_here(main, words, limits)
        else:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, *words], stdin=subprocess.DEVNULL, stdout=self._out, stderr=self._err,
                cwd=ROOT, env={**os.environ, **ENVIRONMENT}, preexec_fn=lambda: limit(limits),
            )  # fmt: skip
            self.pid = self._process.pid

    def _run_here(self, main: Callable, argv: list[str], limits: Limits) -> NoReturn:
        code: object = 1
        try:
            for fd, file in ((1, self._out), (2, self._err)):
                os.dup2(file.fileno(), fd)
            sys.stdout, sys.stderr = (open(fd, "w", buffering=1, closefd=False) for fd in (1, 2))  # noqa: SIM115
            logging.getLogger().handlers.clear()
            signal.signal(signal.SIGINT, signal.default_int_handler)
            limit(limits)
            code = main(argv)
        except SystemExit as e:
            code = e.code
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(code if isinstance(code, int) else 0 if code is None else 1)

    def output(self) -> str:
        """What it has written to its standard output so far."""
        return os.pread(self._out.fileno(), 1 << 20, 0).decode(errors="replace")

    def until(self, sign: Callable[[], bool], seconds: float = 120) -> bool:
        """Waits for a sign of life; False where it ended, or stayed silent for so long, before."""
        deadline = time.monotonic() + seconds
        while not sign():
            if self._reaped() or time.monotonic() > deadline:
                return False
            time.sleep(0.002)
        return True

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Sends a signal, unless it has ended."""
        if not self._reaped():
            os.kill(self.pid, number)

    def wait(self, seconds: float = 120) -> Ended:
        """Waits for its end; kills it after so many seconds, which the code None tells."""
        if not self.until(lambda: self.ended is not None, seconds) and self.ended is None:
            os.kill(self.pid, signal.SIGKILL)
            self.until(lambda: self.ended is not None)
            assert self.ended is not None
            self.ended.code = None
        assert self.ended is not None
        return self.ended

    def _reaped(self) -> bool:
        if self.ended is None:
            pid, status, usage = os.wait4(self.pid, os.WNOHANG)
            if pid:
                code = os.waitstatus_to_exitcode(status)
                texts = [os.pread(f.fileno(), 1 << 20, 0) for f in (self._out, self._err)]
                out, err = (text.decode(errors="replace") for text in texts)
                self.ended = Ended(code, out, err, usage.ru_maxrss / 1024)
                if self._process is not None:
                    self._process.returncode = code
        return self.ended is not None


def limit(limits: Limits) -> None:
    """Sets resource limits of this process, the soft ones alone."""
    for what, value in limits:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(what, (value, resource.getrlimit(what)[1]))


def _with_main(module: str) -> str:
    """The module that ``python -m MODULE`` runs."""
    found = importlib.util.find_spec(module)
    package = found is not None and found.submodule_search_locations is not None
    return f"{module}.__main__" if package else module
