"""Logging in with a password: sessions, their cookie, and the page."""

from __future__ import annotations

import asyncio
import hashlib
import html
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import parse_qs

from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response

from gradio_app.web.access import Access, Visitor
from gradio_app.web.request_rules import LOGIN, LOGOUT, RequestFacts

_LASTS_S = 12 * 3600.0
_MOST_SESSIONS = 10_000
_AT_ONCE = 2
_MOST_BODY = 8_000


@dataclass
class _Session:
    """``password`` is the hash that was right: when it changes, the session ends."""

    name: str
    password: bytes
    ends: float


class Sessions:
    """Who has logged in, in this process's memory: tokens as hashes, each good for twelve hours."""

    def __init__(self, access: Access, port: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._access, self._clock = access, clock
        self._sessions: OrderedDict[bytes, _Session] = OrderedDict()
        self.cookie = f"mlflow_finetune_{port}"  # cookies are shared by all ports of a host

    def begin(self, name: str) -> str | None:
        """The token of a new session; None when the user has been taken out meanwhile."""
        password = self._password(name)
        if password is None:
            return None
        token = secrets.token_urlsafe(32)
        self._sessions[_digest(token)] = _Session(name, password, self._clock() + _LASTS_S)
        while len(self._sessions) > _MOST_SESSIONS:
            self._sessions.popitem(last=False)
        return token

    def visitor(self, token: str | None) -> Visitor | None:
        session = self._sessions.get(_digest(token)) if token else None
        if session is None:
            return None
        if self._clock() > session.ends or self._password(session.name) != session.password:
            self.end(token)
            return None
        return self._access.visitor(session.name)

    def end(self, token: str | None) -> None:
        if token:
            self._sessions.pop(_digest(token), None)

    def _password(self, name: str) -> bytes | None:
        user = self._access.users.find(name) if self._access.users is not None else None
        return user.password.digest if user is not None else None


class LoginPages:
    """``/login`` and ``/logout``. Gradio's own client logs in here too, and is told as Gradio tells it."""

    def __init__(self, access: Access, sessions: Sessions) -> None:
        self._access, self._sessions = access, sessions
        self._hashing = asyncio.Semaphore(_AT_ONCE)  # 32 MB each

    async def answer(self, asked: RequestFacts, body: bytes) -> Response:
        token = session_token(asked, self._sessions.cookie)
        if asked.path == LOGOUT:
            return self._log_out(asked, token)
        if asked.method != "POST":
            return RedirectResponse("/", 303) if self._sessions.visitor(token) else HTMLResponse(_login_page(None))
        return await self._log_in(asked, body, token)

    async def _log_in(self, asked: RequestFacts, body: bytes, before: str | None) -> Response:
        fields = parse_qs(body.decode("utf-8", "replace"), max_num_fields=20) if len(body) <= _MOST_BODY else {}
        name, password = (fields.get(field, [""])[0] for field in ("username", "password"))
        address = asked.client_address(self._access)
        async with self._hashing:
            found = await asyncio.to_thread(self._access.log_in, name, password, address)
        if not isinstance(found, Visitor):
            return _refusal(asked, found)
        self._sessions.end(before)
        token = self._sessions.begin(found.name)
        if token is None:
            return _refusal(asked, 0.0)
        is_page = "text/html" in asked.headers.get("accept", "")
        answer = RedirectResponse("/", 303) if is_page else JSONResponse({"success": True})
        answer.set_cookie(
            self._sessions.cookie,
            token,
            max_age=int(_LASTS_S),
            httponly=True,
            samesite="lax",
            secure=asked.is_secure,
        )
        return answer

    def _log_out(self, asked: RequestFacts, token: str | None) -> Response:
        if asked.method != "POST":  # a link, or a picture's address, logs nobody out
            return HTMLResponse(_LOGOUT_PAGE)
        self._sessions.end(token)
        answer = RedirectResponse(LOGIN, 303)
        answer.delete_cookie(self._sessions.cookie, httponly=True, samesite="lax", secure=asked.is_secure)
        return answer


def session_token(asked: RequestFacts, cookie: str) -> str | None:
    for part in ";".join(asked.headers.getlist("cookie")).split(";"):
        name, _, value = part.strip().partition("=")
        if name == cookie:
            return value
    return None


def _digest(token: str | None) -> bytes:
    return hashlib.sha256((token or "").encode("utf-8", "surrogateescape")).digest()


def _refusal(asked: RequestFacts, wait_s: float) -> Response:
    if wait_s:
        said = f"Too many wrong passwords. Try again in {-(-int(wait_s) // 60)} min."
        status, headers = 429, {"Retry-After": str(int(wait_s))}
    else:
        said, status, headers = "Name or password is wrong.", 401, {}
    if "text/html" in asked.headers.get("accept", ""):
        return HTMLResponse(_login_page(said), status, headers)
    return JSONResponse({"detail": said}, status, headers)


def _login_page(fault: str | None) -> str:
    told = f'<p role="alert">{html.escape(fault)}</p>' if fault else ""
    return _page(
        "Log in",
        f"""<form method="post" action="{LOGIN}"><h1>Playground</h1>{told}
<label for="username">Name</label>
<input id="username" name="username" autocomplete="username" autocapitalize="none" required autofocus>
<label for="password">Password</label>
<input id="password" name="password" type="password" autocomplete="current-password" required>
<button type="submit">Log in</button></form>""",
    )


def _page(title: str, body: str) -> str:
    return f"""<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>
:root {{ color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }}
body {{ display: grid; place-items: center; min-height: 100vh; margin: 0; }}
form {{ display: grid; gap: .5rem; width: min(20rem, 100vw - 3rem); }}
h1 {{ font-size: 1.5rem; margin: 0 0 .5rem; }}
input, button {{ font: inherit; padding: .6rem .7rem; border: 1px solid #8888; border-radius: .5rem; }}
button {{ margin-top: .5rem; background: #4338ca; border-color: #4338ca; color: #fff; cursor: pointer; }}
[role=alert] {{ margin: 0; padding: .5rem .7rem; border-left: 4px solid #dc2626; background: #dc262622; }}
</style></head><body><main>{body}</main></body></html>"""


_LOGOUT_PAGE = _page(
    "Log out", f'<form method="post" action="{LOGOUT}"><h1>Playground</h1><button type="submit">Log out</button></form>'
)
