"""How often pages are told what has come: often while few watch, less often where the app would spend itself on telling."""

from __future__ import annotations

import time
from collections.abc import Callable

LEAST_S = 1 / 15
MOST_S = 1.5
_SHARE = 0.5
"""Of one core, for telling; the rest receives."""
_LOOK_S = 0.5
_LEAST_UPDATES = 30
"""Updates that a look at their cost needs: with fewer, it is the cost of something else that is seen."""


class Tempo:
    """Shared by all streams of one process. ``begun`` and ``ended`` say that a stream is watched, ``told`` that it was shown."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, cpu: Callable[[], float] = time.process_time
    ) -> None:
        self._clock, self._cpu = clock, cpu
        self._streams = 0
        self._updates = 0
        self._looked = (clock(), cpu())
        self._cost_s = 0.0

    def stream_started(self) -> None:
        self._streams += 1

    def stream_ended(self) -> None:
        self._streams -= 1

    def record_update(self) -> None:
        self._updates += 1
        now = self._clock()
        at, cpu = self._looked
        if now - at < _LOOK_S:
            return
        if self._updates >= _LEAST_UPDATES:
            self._cost_s = (self._cpu() - cpu) / self._updates
        elif self._streams * self._cost_s < _SHARE * LEAST_S:
            self._cost_s = 0.0
        self._looked, self._updates = (now, self._cpu()), 0

    @property
    def interval_s(self) -> float:
        """Between two updates of one stream: as many as half a core makes, at what one has cost so far."""
        return min(MOST_S, max(LEAST_S, self._streams * self._cost_s / _SHARE))
