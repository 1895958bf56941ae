"""How often pages are updated: less often when updates would take too much of the processor."""

from __future__ import annotations

import time
from collections.abc import Callable

LEAST_S = 1 / 15
MOST_S = 1.5
_SHARE = 0.5
"""The share of one core that updates may use. The rest receives answers."""
_MEASURE_S = 0.5
_LEAST_UPDATES = 30
"""Updates that a measurement of their cost needs. With fewer, the processor time is mostly that of other work."""


class UpdateInterval:
    """The interval between updates, shared by all streams of a process.

    Streams report their start, their updates and their end.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, cpu: Callable[[], float] = time.process_time
    ) -> None:
        self._clock, self._cpu = clock, cpu
        self._streams = 0
        self._updates = 0
        self._measured = (clock(), cpu())
        self._cost_s = 0.0

    def stream_started(self) -> None:
        self._streams += 1

    def stream_ended(self) -> None:
        self._streams -= 1

    def record_update(self) -> None:
        self._updates += 1
        now = self._clock()
        at, cpu = self._measured
        if now - at < _MEASURE_S:
            return
        if self._updates >= _LEAST_UPDATES:
            self._cost_s = (self._cpu() - cpu) / self._updates
        elif self._streams * self._cost_s < _SHARE * LEAST_S:
            self._cost_s = 0.0
        self._measured, self._updates = (now, self._cpu()), 0

    @property
    def interval_s(self) -> float:
        """Seconds between two updates of a stream, so that all updates together take half a core."""
        return min(MOST_S, max(LEAST_S, self._streams * self._cost_s / _SHARE))
