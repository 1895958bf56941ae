"""Read large requests one at a time and not all the time, so that they delay no small one."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from typing import TypeVar

from mlflow_finetune_plugin.serving.router.requests import RequestError

T = TypeVar("T")

LARGE_BYTES = 32_000
_RESTS = 3.0
_LONGEST_REST_S = 1.0
_MOST_WAITING = 64
_MOST_OF_KEY = 4
_RETRY_S = 5


class LargeRequests:
    """The queue of large requests.

    Reading JSON holds Python's lock, so a thread alone would not keep the event loop free. After each request the queue
    rests three times as long as the request took: large requests get at most a quarter of the time.
    """

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self._rests_until = 0.0
        self._waiting: Counter[str | None] = Counter()

    async def run(self, key_name: str | None, work: Callable[[], T]) -> T:
        """Return what ``work`` returns, when it is this request's turn.

        Args:
            key_name: The name of the client's API key; None for clients of a router without keys.
            work: Reads the request, in a thread.

        Raises:
            RequestError: Too many large requests wait, of this key or of all.
        """
        if self._waiting.total() >= _MOST_WAITING or (key_name is not None and self._waiting[key_name] >= _MOST_OF_KEY):
            raise RequestError(
                429,
                f"too many requests above {LARGE_BYTES:,} bytes at once; fix: wait for the others",
                "too_many_large_requests",
                retry_after_s=_RETRY_S,
            )
        self._waiting[key_name] += 1
        try:
            async with self._turn:
                await asyncio.sleep(self._rests_until - time.monotonic())
                began = time.monotonic()
                try:
                    return await asyncio.to_thread(work)
                finally:
                    ended = time.monotonic()
                    self._rests_until = ended + min(_LONGEST_REST_S, _RESTS * (ended - began))
        finally:
            self._waiting[key_name] -= 1
            if not self._waiting[key_name]:
                del self._waiting[key_name]
