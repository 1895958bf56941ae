"""Count a request of an API key until its answer has ended, whichever way it ends."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from mlflow_finetune_plugin.credentials.api_keys import Key, Keys


class KeySlot(Response):
    """The answer to a request that ``Keys.begin`` has counted.

    Args:
        keys: Where the request is counted.
        key: The request's key; None counts nothing.
        respond: Makes the answer. It runs within this one, so that no request stays counted when the router is stopped.
    """

    def __init__(self, keys: Keys | None, key: Key | None, respond: Callable[[], Awaitable[Response]]) -> None:
        self._keys, self._key, self._respond = keys, key, respond

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            response = await self._respond()
            await response(scope, receive, send)
        finally:
            if self._keys is not None and self._key is not None:
                self._keys.end(self._key)
