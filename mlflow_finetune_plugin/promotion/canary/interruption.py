"""Ctrl-C and SIGTERM as a value that work can check, so that it restores its state before it ends."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

_POLL_S = 0.1


class Interruption:
    """Records the first signal in ``signal``; a second one interrupts at once. Used as a context manager.

    Python delivers signals to the main thread only, so in other threads ``signal`` stays None.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._record)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def wait(self, seconds: float) -> None:
        """Wait, or less long when a signal arrives."""
        until = time.monotonic() + seconds
        while self.signal is None and (remaining_s := until - time.monotonic()) > 0:
            time.sleep(min(_POLL_S, remaining_s))

    def raise_again(self) -> None:
        """Do what the signal would have done: raise KeyboardInterrupt, or SystemExit with 128 plus its number."""
        if self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        if self.signal is not None:
            raise SystemExit(128 + self.signal)

    def _record(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number
