"""Refuse requests of foreign pages, before any route of a router without API keys gets them."""

from __future__ import annotations

from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from mlflow_finetune_plugin.serving.host_rules import foreign_host, foreign_origin
from mlflow_finetune_plugin.serving.router.requests import RequestError


class OwnHosts:
    """ASGI middleware.

    Args:
        app: The application.
        hosts: The names under which it answers; None lets every request through, because it needs an API key.
        refusal: Returns the answer to a refused request.
    """

    def __init__(self, app: ASGIApp, hosts: frozenset[str] | None, refusal: Callable[[RequestError], Response]) -> None:
        self._app, self._hosts, self._refusal = app, hosts, refusal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        error = self._error(scope) if scope["type"] == "http" and scope["path"] != "/healthz" else None
        app = self._app if error is None else self._refusal(error)
        await app(scope, receive, send)

    def _error(self, scope: Scope) -> RequestError | None:
        if self._hosts is None:
            return None
        headers = Headers(scope=scope)
        if fault := foreign_host(headers, self._hosts):
            fix = "use 127.0.0.1 or localhost, or start the service with --allowed-host NAME, or with --api-key-file"
            return RequestError(421, f"{fault}; fix: {fix}", "foreign_host")
        if fault := foreign_origin(headers):
            fix = "start the service with --api-key-file, and let the page's server send the key"
            return RequestError(403, f"{fault}; fix: {fix}", "foreign_origin")
        return None
