"""The login with a password: sessions, their cookie, and the login page."""

from __future__ import annotations

import asyncio
import hashlib
import html
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import parse_qs

from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response

from gradio_app.web.access import Access, Visitor
from gradio_app.web.attempts import LONGEST_DELAY_S, Attempts
from gradio_app.web.request_rules import LOGIN, LOGOUT, RequestFacts
from mlflow_finetune_plugin.credentials.users import MAX_NAME_CHARS

_LASTS_S = 12 * 3600.0
_MOST_SESSIONS = 10_000
_AT_ONCE = 2
_MOST_BODY = 8_000
_MOST_FIELDS = 20
_WRONG = "Name or password is wrong."
_NO_HEADERS: Mapping[str, str] = {}


@dataclass
class _Session:
    """A login. ``password`` is the hash at the login; when the user's hash changes, the session ends."""

    name: str
    password: bytes
    ends: float


class Sessions:
    """The logged-in users, in this process's memory. Tokens are stored as hashes and are valid for twelve hours."""

    def __init__(self, access: Access, port: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._access, self._clock = access, clock
        self._sessions: OrderedDict[bytes, _Session] = OrderedDict()
        self.cookie = f"mlflow_finetune_{port}"  # All ports of a host share their cookies.

    def begin(self, name: str) -> str | None:
        """Begin a session and return its token; None when the user was deleted meanwhile."""
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
    """Answers ``/login`` and ``/logout``, for browsers as a page, for Gradio's client as Gradio's own login does."""

    def __init__(self, access: Access, sessions: Sessions) -> None:
        self._access, self._sessions = access, sessions
        self._attempts = Attempts()
        self._hashing = asyncio.Semaphore(_AT_ONCE)  # A hash takes 32 MB.

    async def answer(self, facts: RequestFacts, body: bytes) -> Response:
        token = session_token(facts, self._sessions.cookie)
        if facts.path == LOGOUT:
            return self._log_out(facts, token)
        if facts.method != "POST":
            return RedirectResponse("/", 303) if self._sessions.visitor(token) else HTMLResponse(_login_page(None))
        return await self._log_in(facts, body, token)

    async def _log_in(self, facts: RequestFacts, body: bytes, before: str | None) -> Response:
        if len(body) > _MOST_BODY:
            return _refusal(facts, 413, f"the form is larger than {_MOST_BODY:,} bytes")
        try:
            fields = parse_qs(body.decode("utf-8", "replace"), max_num_fields=_MOST_FIELDS)
        except ValueError:
            return _refusal(facts, 400, f"the form has more than {_MOST_FIELDS} fields")
        name, password = (fields.get(field, [""])[0] for field in ("username", "password"))
        visitor = await self._checked(name.strip()[: MAX_NAME_CHARS + 1], password, facts)
        if isinstance(visitor, Response):
            return visitor
        self._sessions.end(before)
        token = self._sessions.begin(visitor.name)
        if token is None:
            return _refusal(facts, 401, _WRONG)
        is_page = "text/html" in facts.headers.get("accept", "")
        answer = RedirectResponse("/", 303) if is_page else JSONResponse({"success": True})
        answer.set_cookie(
            self._sessions.cookie,
            token,
            max_age=int(_LASTS_S),
            httponly=True,
            samesite="lax",
            secure=facts.is_secure,
        )
        return answer

    async def _checked(self, name: str, password: str, facts: RequestFacts) -> Visitor | Response:
        """Return the user of a name and password, or the refusal, after the delay that wrong passwords before it cause."""
        address = facts.client_address(self._access)
        delay_s = self._attempts.begin(name, address)
        if delay_s is None:
            message = "Too many logins are being checked. Try again in a few seconds."
            return _refusal(facts, 429, message, {"Retry-After": str(int(LONGEST_DELAY_S))})
        visitor = None
        try:
            await asyncio.sleep(delay_s)
            async with self._hashing:
                visitor = await asyncio.to_thread(self._access.log_in, name, password)
        finally:
            self._attempts.end(name, address, is_right=visitor is not None)
        return visitor if visitor is not None else _refusal(facts, 401, _WRONG)

    def _log_out(self, facts: RequestFacts, token: str | None) -> Response:
        if facts.method != "POST":  # GET changes nothing, because links and images send it.
            return HTMLResponse(_LOGOUT_PAGE)
        self._sessions.end(token)
        answer = RedirectResponse(LOGIN, 303)
        answer.delete_cookie(self._sessions.cookie, httponly=True, samesite="lax", secure=facts.is_secure)
        return answer


def session_token(facts: RequestFacts, cookie: str) -> str | None:
    for part in ";".join(facts.headers.getlist("cookie")).split(";"):
        name, _, value = part.strip().partition("=")
        if name == cookie:
            return value
    return None


def _digest(token: str | None) -> bytes:
    return hashlib.sha256((token or "").encode("utf-8", "surrogateescape")).digest()


def _refusal(facts: RequestFacts, status: int, message: str, headers: Mapping[str, str] = _NO_HEADERS) -> Response:
    if "text/html" in facts.headers.get("accept", ""):
        return HTMLResponse(_login_page(message), status, headers)
    return JSONResponse({"detail": message}, status, headers)


def _login_page(fault: str | None) -> str:
    alert = f'<p role="alert">{html.escape(fault)}</p>' if fault else ""
    return _page(
        "Log in",
        f"""<form method="post" action="{LOGIN}"><h1>Playground</h1>{alert}
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
