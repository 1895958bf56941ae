"""Let a training that receives SIGTERM finish its step and save before it ends."""

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
    """Set ``stop`` on SIGTERM inside the context, and end the process by that signal on exit.

    Python handles signals in the main thread only; in any other thread, or with ``stop`` None, SIGTERM acts at once.
    """
    if stop is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def hold(number: int, frame: FrameType | None) -> None:
        logger.info("received SIGTERM: training stops after this step and saves")
        stop.set()

    before = signal.signal(signal.SIGTERM, hold)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        if stop.is_set():
            signal.raise_signal(signal.SIGTERM)
