"""Looking again and again, until somebody says that it is enough; a look that fails does not end it."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from mlflow_finetune_plugin.errors import FinetuneError

_FAILED = 2
_STEP_S = 0.2


@dataclass(frozen=True)
class Schedule:
    """Seconds from one look's start to the next one's; looks in all, None: no end."""

    every_s: float
    times: int | None = None


@dataclass
class _End:
    """Whether somebody has asked for the end: by Ctrl-C, which ends between two looks, or twice, at once; or by SIGTERM."""

    is_asked: bool = False

    def ask(self, *_: object) -> None:
        if self.is_asked:
            raise KeyboardInterrupt
        self.is_asked = True


def repeat(look: Callable[[], int], schedule: Schedule) -> int:
    """``look`` gives the exit code of one look; the last one's is returned, 2 where that one failed.

    A look's FinetuneError is told on stderr, a registry that is away among them, and the next look comes.
    """
    code, done = 0, 0
    with _listening() as end:
        while not end.is_asked:
            started = time.monotonic()
            try:
                code = look()
            except FinetuneError as error:
                code = _FAILED
                print(f"mlflow-finetune: {time.strftime('%Y-%m-%d %H:%M:%S')}: {error}", file=sys.stderr, flush=True)
            done += 1
            if done == schedule.times:
                break
            while not end.is_asked and time.monotonic() < started + schedule.every_s:
                time.sleep(_STEP_S)
    return code


@contextmanager
def _listening() -> Iterator[_End]:
    end = _End()
    before = {number: signal.signal(number, end.ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield end
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
