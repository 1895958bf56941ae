"""Rules for requests: pure functions of their method, path and headers."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers
from starlette.types import Scope

from gradio_app.settings import PlaygroundSettings
from gradio_app.web.access import Access
from mlflow_finetune_plugin.serving.host_rules import LOOPBACK_NAMES, host_name, plain_name
from mlflow_finetune_plugin.serving.versions.names import is_loopback

API = "/gradio_api"
LOGIN, LOGOUT = "/login", "/logout"
_GET_PATHS = frozenset(
    {"/", "/config", "/config/", "/theme.css", "/manifest.json", "/favicon.ico", "/robots.txt"}
    | {f"{API}/{name}" for name in ("theme.css", "info", "info/", "startup-events", "queue/data", "app_id", "user")}
)
_GET_PREFIXES = ("/assets/", "/static/", f"{API}/heartbeat/", f"{API}/call/")
_POST_PATHS = frozenset(f"{API}/{name}" for name in ("queue/join", "cancel", "reset"))
_POST_PREFIXES = (f"{API}/run/", f"{API}/call/")
_RUN_NUMBER = f"{API}/run/predict"
_FILE = f"{API}/file="
_FORWARDED = ("x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-forwarded-port", "forwarded")
_SAFE = ("GET", "HEAD")
_NAMED_BY_CONTENT = re.compile(r"/assets/[\w.-]+-[\w-]{8,10}\.(?:js|css|svg|ttf|woff2?)")


@dataclass(frozen=True)
class Handlers:
    """The event handlers of a page: their numbers, and the names of those that programs may call."""

    numbers: frozenset[int]
    names: frozenset[str]


@dataclass(frozen=True)
class RequestFacts:
    """The facts of a request. ``peer`` is the socket's address; ``is_proxied`` says that it is a trusted proxy's."""

    method: str
    path: str
    headers: Headers
    query: dict[str, list[str]]
    peer: str | None
    is_proxied: bool

    @classmethod
    def of(cls, scope: Scope, access: Access) -> RequestFacts:
        peer = scope["client"][0] if scope.get("client") else None
        query = parse_qs(scope.get("query_string", b"").decode("latin-1"))
        return cls(
            scope["method"],
            scope["path"],
            Headers(scope=scope),
            query,
            peer,
            peer is not None and access.is_trusted_proxy(peer),
        )

    @property
    def is_named_by_content(self) -> bool:
        """Whether the path is a file of Gradio with a hash of its content in its name, so that it can be cached."""
        return self.method in _SAFE and _NAMED_BY_CONTENT.fullmatch(self.path) is not None

    @property
    def is_near(self) -> bool:
        """Whether the request comes from this machine, where compression takes longer than the transfer."""
        return self.peer is not None and not self.is_proxied and is_loopback(self.peer)

    @property
    def is_secure(self) -> bool:
        """Whether the browser uses TLS, by a trusted proxy's header."""
        return self.is_proxied and self.headers.get("x-forwarded-proto", "").partition(",")[0].strip() == "https"

    @property
    def wants_page(self) -> bool:
        return self.method in _SAFE and "text/html" in self.headers.get("accept", "")

    def client_address(self, access: Access) -> str:
        """Return the address to count attempts by: the peer, or the last one before trusted proxies."""
        if self.is_proxied:
            for hop in reversed(",".join(self.headers.getlist("x-forwarded-for")).split(",")):
                if not access.is_trusted_proxy(hop.strip()):
                    return hop.strip()[:60] or str(self.peer)
        return str(self.peer)


def host_fault(facts: RequestFacts, settings: PlaygroundSettings) -> str | None:
    """Return why the Host header is refused, or None.

    This stops DNS rebinding: such a page sends its own name as Host.
    """
    hosts = facts.headers.getlist("host")
    if len(hosts) != 1 or (name := host_name(hosts[0])) is None:
        return "a request needs exactly one valid Host header"
    known = {plain_name(host) for host in (*settings.public_hosts, settings.host)}
    if settings.is_loopback or settings.user_header is not None:
        known |= set(LOOPBACK_NAMES)
    elif not settings.public_hosts:
        return None  # The login protects the page, and its cookie belongs to one host name.
    if name in known:
        return None
    return f"the host name {name} is not allowed; fix: --public-host {name}"


def origin_fault(facts: RequestFacts) -> str | None:
    """Return why the origin is refused, or None. Other sites may only link to the page.

    A program that is not a browser sends neither header and is let through.
    """
    site = facts.headers.get("sec-fetch-site")
    if site not in (None, "same-origin", "none"):
        is_link = (
            facts.headers.get("sec-fetch-mode") == "navigate" and facts.headers.get("sec-fetch-dest") == "document"
        )
        if not (is_link and facts.method in _SAFE and facts.path in ("/", LOGIN, LOGOUT)):
            return "requests from other sites are refused"
    if site is not None or facts.method in _SAFE:
        return None
    origins = facts.headers.getlist("origin")
    if not origins:
        return None
    here = {facts.headers.get("host", "").lower()}
    if facts.is_proxied:
        here |= {host.strip().lower() for host in facts.headers.get("x-forwarded-host", "").split(",")} - {""}
    if len(origins) == 1 and urlsplit(origins[0]).netloc.lower() in here:
        return None
    return "requests from other sites are refused"


def is_offered(facts: RequestFacts, cache: Path) -> bool:
    """Whether the page needs this route.

    Gradio has fifty more: uploads, files of the disk, monitoring, code editing.
    """
    method, path = facts.method, facts.path
    if any(part in ("..", ".") for part in path.split("/")) or "\\" in path or "\0" in path:
        return False
    if method in _SAFE:
        return path in _GET_PATHS or path.startswith(_GET_PREFIXES) or _is_generated_file(path, cache)
    return method == "POST" and (path in _POST_PATHS or path.startswith(_POST_PREFIXES))


def body_fault(facts: RequestFacts, body: bytes, handlers: Handlers) -> str | None:
    """Return why the body of a POST is refused, or None. Gradio answers such bodies with 500 and a traceback in the log."""
    try:
        content = json.loads(body, parse_constant=_no_number)
        json.dumps(content, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        return "the body is not valid JSON"
    number = content.get("fn_index") if isinstance(content, dict) else None
    if isinstance(number, int) and number not in handlers.numbers:
        return "the page has no such event handler"
    prefix = next((prefix for prefix in _POST_PREFIXES if facts.path.startswith(prefix)), None)
    name = None if prefix is None else facts.path.removeprefix(prefix).strip("/")
    is_numbered = facts.path == _RUN_NUMBER and isinstance(number, int)  # how the page calls handlers without a queue
    if name is not None and name.removeprefix("v2/") not in handlers.names and not is_numbered:
        return "the page has no such event handler"
    return None


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is not a number in JSON")


def forwarded_headers(facts: RequestFacts, user_header: str | None) -> list[tuple[bytes, bytes]]:
    """Return the headers for Gradio. Headers that only a proxy may set are dropped from other clients."""
    dropped = {"x-gradio-server", user_header or "", *(() if facts.is_proxied else _FORWARDED)}
    if facts.path == "/" or facts.is_near:  # The guard changes the page, and local files stay uncompressed.
        dropped.add("accept-encoding")
    return [(name, value) for name, value in facts.headers.raw if name.decode("latin-1").lower() not in dropped]


def named_sessions(facts: RequestFacts, body_session: str | None) -> list[str]:
    """Return every Gradio session that the request names."""
    sessions = list(facts.query.get("session_hash", ()))
    if facts.path.startswith(f"{API}/heartbeat/"):
        sessions.append(facts.path.removeprefix(f"{API}/heartbeat/").strip("/"))
    return sessions + ([body_session] if body_session is not None else [])


def _is_generated_file(path: str, cache: Path) -> bool:
    """Whether the path is a download in this process's own folder. Symbolic links are resolved first."""
    if not path.startswith(_FILE):
        return False
    try:
        file = Path(path.removeprefix(_FILE)).resolve(strict=True)
    except (OSError, ValueError, RuntimeError):
        return False
    return file.is_file() and file.is_relative_to(cache.resolve())
