"""A training that is asked to end finishes its step and saves before it obeys."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

logger = logging.getLogger(__name__)


@contextmanager
def stoppable(stop: threading.Event | None) -> Iterator[None]:
    """SIGTERM inside sets ``stop``; on the way out the process then ends by that signal, as it would have at once.

    Signals can only be held by the main thread of a process; elsewhere, and without ``stop``, they act at once.
    """
    if stop is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def hold(number: int, frame: FrameType | None) -> None:
        logger.info("asked to end: saving after this step")
        stop.set()

    before = signal.signal(signal.SIGTERM, hold)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        if stop.is_set():
            signal.raise_signal(signal.SIGTERM)
