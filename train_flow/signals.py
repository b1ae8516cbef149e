"""SIGTERM and SIGINT during a training: the step is finished first, and files are left whole."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any


class StopSignals:
    """Takes note of SIGTERM or SIGINT instead of ending; a second signal ends the process at once.

    Outside the main thread, where Python has no signals, it does nothing, and a signal that the
    process was started to ignore (``nohup``) stays ignored.

    Attributes:
        received: number of the signal that came, or 0.

    >>> with StopSignals() as signals:
    ...     signal.raise_signal(signal.SIGTERM)
    >>> signals.received == signal.SIGTERM
    True
    """

    def __init__(self) -> None:
        self.received = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                if signal.getsignal(number) is not signal.SIG_IGN:
                    # None: of a handler that was not set from Python
                    self._before[number] = signal.signal(number, self._note) or signal.SIG_DFL
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        for each in self._before:
            signal.signal(each, signal.SIG_DFL)

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Makes SIGTERM a KeyboardInterrupt with its number, as SIGINT is one: temporary files go.

    >>> with contextlib.suppress(KeyboardInterrupt), interruptible():
    ...     signal.raise_signal(signal.SIGTERM)
    """
    before = signal.getsignal(signal.SIGTERM)
    if before is not signal.SIG_DFL or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt(number)
