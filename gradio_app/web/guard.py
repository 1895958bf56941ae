"""Check every request before Gradio receives it, and add the security headers to every response."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
import secrets
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gradio_app.settings import PlaygroundSettings
from gradio_app.web.access import Access, Visitor
from gradio_app.web.login import LoginPages, Sessions, session_token
from gradio_app.web.request_rules import (
    LOGIN,
    LOGOUT,
    Handlers,
    RequestFacts,
    body_fault,
    forwarded_headers,
    host_fault,
    is_offered,
    named_sessions,
    origin_fault,
)

VISITOR = "mlflow_finetune.visitor"
"""The key of the ASGI scope under which Gradio's ``auth_dependency`` finds the user."""

_BODY_S = 30.0
_MOST_BOUND = 100_000
_SCRIPT = re.compile(rb"<script(?=[\s>])")
_INLINE_SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)
_CACHEABLE_STATUS = (200, 206, 304)
_BASE = b'<base href="./" />'
"""Has no effect at the root, and browsers report it as a violation of ``base-uri 'none'``."""
_HEADERS = {
    b"x-content-type-options": b"nosniff",
    b"x-frame-options": b"DENY",
    b"referrer-policy": b"no-referrer",
    b"cross-origin-opener-policy": b"same-origin",
    b"cross-origin-resource-policy": b"same-origin",
    b"permissions-policy": b"camera=(), microphone=(), geolocation=(), display-capture=(), usb=()",
}


class Guard:
    """An ASGI application around another one. It answers the requests that it does not let through."""

    def __init__(
        self,
        app: ASGIApp,
        settings: PlaygroundSettings,
        access: Access,
        cache: Path,
        handlers: Handlers,
        inline_scripts: Sequence[str] = (),
    ) -> None:
        self._inline_scripts = " ".join(inline_scripts)
        self._app, self._settings, self._access, self._cache = app, settings, access, cache
        self._handlers = handlers
        self._sessions = Sessions(access, settings.port)
        self._login = LoginPages(access, self._sessions)
        self._owners: OrderedDict[str, str] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            nonce = secrets.token_urlsafe(16)
            facts = RequestFacts.of(scope, self._access)
            outwards = _SecuredSend(send, nonce, self._policy(nonce), facts)
            await self._handle(facts, scope, receive, outwards)
        else:
            await send({"type": "websocket.close", "code": 1008})  # The page uses no websockets.

    async def _handle(self, facts: RequestFacts, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(facts)
        visitor = self._visitor(facts) if refusal is None else None
        if refusal is None and not self._is_login(facts) and visitor is None:
            refusal = self._unidentified(facts)
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        body = await _body(facts, receive, self._settings.max_body_bytes)
        if isinstance(body, Response):
            await body(scope, receive, send)
        elif self._is_login(facts):
            answer = await self._login.answer(facts, body)
            await answer(scope, receive, send)
        elif facts.method == "POST" and (fault := body_fault(facts, body, self._handlers)):
            await JSONResponse({"detail": fault}, 400)(scope, receive, send)
        else:
            assert visitor is not None
            if not self._owns_sessions(visitor, facts, body):
                await JSONResponse({"detail": "this session belongs to another user"}, 403)(scope, receive, send)
                return
            headers = forwarded_headers(facts, self._access.header)
            await self._app({**scope, "headers": headers, VISITOR: visitor}, _replayed(body, receive), send)

    def _refusal(self, facts: RequestFacts) -> Response | None:
        """Return the answer to requests that every user is refused, and to the health check, which needs no user."""
        if facts.path == "/healthz" and facts.method in ("GET", "HEAD"):
            return JSONResponse({"status": "ok"})
        if fault := host_fault(facts, self._settings):
            return PlainTextResponse(f"{fault}\n", 421)
        if fault := origin_fault(facts):
            return PlainTextResponse(f"{fault}\n", 403)
        if self._is_login(facts) and facts.method in ("GET", "HEAD", "POST"):
            return None
        if not is_offered(facts, self._cache):
            return PlainTextResponse("not found\n", 404)
        return None

    def _policy(self, nonce: str) -> str:
        """Return the content security policy: only the page's own scripts run.

        Gradio compiles the ``js`` of handlers to functions, which needs 'unsafe-eval'.
        """
        return (
            f"default-src 'self'; script-src 'self' 'unsafe-eval' 'nonce-{nonce}' {self._inline_scripts}; "
            "script-src-attr 'none'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
            "font-src 'self' data:; connect-src 'self'; media-src 'self' blob: data:; worker-src 'self' blob:; "
            "frame-src 'none'; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
        )

    def _is_login(self, facts: RequestFacts) -> bool:
        return self._access.users is not None and facts.path.rstrip("/") in (LOGIN, LOGOUT)

    def _visitor(self, facts: RequestFacts) -> Visitor | None:
        if self._access.header is not None:
            return self._access.from_header(facts.headers.getlist(self._access.header), facts.peer)
        if self._access.users is not None:
            return self._sessions.visitor(session_token(facts, self._sessions.cookie))
        return self._access.visitor(None)

    def _unidentified(self, facts: RequestFacts) -> Response:
        if self._access.users is None:
            fault = (
                f"a trusted proxy must name the user in the header {self._access.header}; this request has no such name"
            )
            return PlainTextResponse(f"{fault}\n", 403)
        if facts.wants_page:
            return RedirectResponse(LOGIN, 303)
        return JSONResponse({"detail": "log in first"}, 401)

    def _owns_sessions(self, visitor: Visitor, facts: RequestFacts, body: bytes) -> bool:
        """Whether the request's Gradio sessions belong to its user. A session belongs to the first user who names it.

        Gradio itself gives the answers of a session to everyone who knows its name.
        """
        if self._access.is_open:
            return True
        for session in named_sessions(facts, _session_of(body)):
            owner = self._owners.setdefault(session[:200], visitor.name)
            self._owners.move_to_end(session[:200])
            if owner != visitor.name:
                return False
        while len(self._owners) > _MOST_BOUND:
            self._owners.popitem(last=False)
        return True


class _SecuredSend:
    """Sends responses with security headers and script nonces, without Gradio's CORS headers."""

    def __init__(self, send: Send, nonce: str, policy: str, facts: RequestFacts) -> None:
        self._send, self._nonce, self._policy = send, nonce.encode(), policy.encode()
        self._is_page, self._is_named_by_content = facts.path == "/", facts.is_named_by_content
        self._start: Message | None = None
        self._body = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = [
                (name, value)
                for name, value in message["headers"]
                if not name.lower().startswith(b"access-control-") and name.lower() not in _HEADERS
            ]
            headers += [*_HEADERS.items(), (b"content-security-policy", self._policy)]
            if self._is_named_by_content and message["status"] in _CACHEABLE_STATUS:
                headers.append((b"cache-control", b"private, max-age=31536000, immutable"))
            message = {**message, "headers": headers}
            if self._is_page and dict(message["headers"]).get(b"content-type", b"").startswith(b"text/html"):
                self._start = message
                return
        elif self._start is not None and message["type"] == "http.response.body":
            self._body += message.get("body", b"")
            if not message.get("more_body", False):
                await self._send_page()
            return
        await self._send(message)

    async def _send_page(self) -> None:
        assert self._start is not None
        page = _SCRIPT.sub(b'<script nonce="' + self._nonce + b'"', self._body).replace(_BASE, b"", 1)
        headers = [(name, value) for name, value in self._start["headers"] if name.lower() != b"content-length"]
        headers += [(b"content-length", str(len(page)).encode()), (b"cache-control", b"no-store")]
        await self._send({**self._start, "headers": headers})
        await self._send({"type": "http.response.body", "body": page})


def script_hashes(head: str) -> tuple[str, ...]:
    """Return the CSP hashes of the inline scripts in a page's head, which Gradio adds without a nonce."""
    scripts = _INLINE_SCRIPT.findall(head)
    return tuple(f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in scripts)


async def _body(facts: RequestFacts, receive: Receive, most: int) -> bytes | Response:
    """Return the whole body, or the answer to a request whose body is refused."""
    too_long = PlainTextResponse(f"the request has more than {most} bytes\n", 413, {"Connection": "close"})
    length = facts.headers.get("content-length", "0")
    if not length.isdecimal() or len(length) > 18:
        return PlainTextResponse("content-length is not a valid number\n", 400, {"Connection": "close"})
    if int(length) > most:
        return too_long
    parts, size = [], 0
    try:
        async with asyncio.timeout(_BODY_S):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return PlainTextResponse("the request ended early\n", 400)
                parts.append(message.get("body", b""))
                size += len(parts[-1])
                if size > most:
                    return too_long
                if not message.get("more_body", False):
                    return b"".join(parts)
    except TimeoutError:
        return PlainTextResponse("the request took too long\n", 408, {"Connection": "close"})


def _replayed(body: bytes, receive: Receive) -> Receive:
    is_sent = False

    async def replay() -> Message:
        nonlocal is_sent
        if is_sent:
            return await receive()  # Waits for the end of the connection.
        is_sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def _session_of(body: bytes) -> str | None:
    try:
        content = json.loads(body) if body else None
    except (ValueError, RecursionError):
        return None
    session = content.get("session_hash") if isinstance(content, dict) else None
    return session if isinstance(session, str) else None
