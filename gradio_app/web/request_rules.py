"""What a request may ask for, and from where: pure questions about its method, path and headers."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers
from starlette.types import Scope

from gradio_app.settings import LOOPBACK_NAMES, PlaygroundSettings
from gradio_app.web.access import Access
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
_FILE = f"{API}/file="
_FORWARDED = ("x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-forwarded-port", "forwarded")
_SAFE = ("GET", "HEAD")
_NAMED_BY_CONTENT = re.compile(r"/assets/[\w.-]+-[\w-]{8,10}\.(?:js|css|svg|ttf|woff2?)")


@dataclass(frozen=True)
class RequestFacts:
    """``peer``: the socket's own address. ``is_proxied``: that address is a trusted proxy's."""

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
        """A file of Gradio's page whose name is made of what is in it: another content has another name."""
        return self.method in _SAFE and _NAMED_BY_CONTENT.fullmatch(self.path) is not None

    @property
    def is_near(self) -> bool:
        """From this machine, where a file is read sooner than it is packed and unpacked."""
        return self.peer is not None and not self.is_proxied and is_loopback(self.peer)

    @property
    def is_secure(self) -> bool:
        """The browser speaks TLS, as a trusted proxy says."""
        return self.is_proxied and self.headers.get("x-forwarded-proto", "").partition(",")[0].strip() == "https"

    @property
    def wants_page(self) -> bool:
        return self.method in _SAFE and "text/html" in self.headers.get("accept", "")

    def client_address(self, access: Access) -> str:
        """Whose attempts are counted: the peer, or the last address that no trusted proxy has, where one forwards."""
        if self.is_proxied:
            for hop in reversed(",".join(self.headers.getlist("x-forwarded-for")).split(",")):
                if not access.is_trusted_proxy(hop.strip()):
                    return hop.strip()[:60] or str(self.peer)
        return str(self.peer)


def host_fault(asked: RequestFacts, settings: PlaygroundSettings) -> str | None:
    """A page elsewhere whose name has been made to mean this machine still sends its own name as Host."""
    hosts = asked.headers.getlist("host")
    if len(hosts) != 1 or (name := _host_name(hosts[0])) is None:
        return "a request has one Host"
    known = {_plain(host) for host in (*settings.public_hosts, settings.host)}
    if settings.is_loopback or settings.user_header is not None:
        known |= set(LOOPBACK_NAMES)
    elif not settings.public_hosts:
        return None  # a login stands before everything, and its cookie belongs to one name
    if name in known:
        return None
    return f"this page is not known as {name}; fix: --public-host {name}"


def origin_fault(asked: RequestFacts) -> str | None:
    """Other sites may link to the page, and nothing else. Programs, which send neither header, are no browsers."""
    site = asked.headers.get("sec-fetch-site")
    if site not in (None, "same-origin", "none"):
        is_link = (
            asked.headers.get("sec-fetch-mode") == "navigate" and asked.headers.get("sec-fetch-dest") == "document"
        )
        if not (is_link and asked.method in _SAFE and asked.path in ("/", LOGIN, LOGOUT)):
            return "another site may not ask this"
    if site is not None or asked.method in _SAFE:
        return None
    origins = asked.headers.getlist("origin")
    if not origins:
        return None
    here = {asked.headers.get("host", "").lower()}
    if asked.is_proxied:
        here |= {host.strip().lower() for host in asked.headers.get("x-forwarded-host", "").split(",")} - {""}
    if len(origins) == 1 and urlsplit(origins[0]).netloc.lower() in here:
        return None
    return "another site may not ask this"


def is_offered(asked: RequestFacts, cache: Path) -> bool:
    """Gradio has fifty routes more (uploads, files of the disk, monitoring, code editing); the page needs these."""
    method, path = asked.method, asked.path
    if any(part in ("..", ".") for part in path.split("/")) or "\\" in path or "\0" in path:
        return False
    if method in _SAFE:
        return path in _GET_PATHS or path.startswith(_GET_PREFIXES) or _is_generated_file(path, cache)
    return method == "POST" and (path in _POST_PATHS or path.startswith(_POST_PREFIXES))


def forwarded_headers(asked: RequestFacts, user_header: str | None) -> list[tuple[bytes, bytes]]:
    """The headers that Gradio may see: what only a proxy may say, from nobody else."""
    dropped = {"x-gradio-server", user_header or "", *(() if asked.is_proxied else _FORWARDED)}
    if asked.path == "/" or asked.is_near:  # the page is changed on its way out; for this machine nothing is packed
        dropped.add("accept-encoding")
    return [(name, value) for name, value in asked.headers.raw if name.decode("latin-1").lower() not in dropped]


def named_sessions(asked: RequestFacts, body_session: str | None) -> list[str]:
    """Every Gradio session that the request names."""
    found = list(asked.query.get("session_hash", ()))
    if asked.path.startswith(f"{API}/heartbeat/"):
        found.append(asked.path.removeprefix(f"{API}/heartbeat/").strip("/"))
    return found + ([body_session] if body_session is not None else [])


def _is_generated_file(path: str, cache: Path) -> bool:
    """A file that a handler of this process made for a download, in this process's own folder; links do not lead out."""
    if not path.startswith(_FILE):
        return False
    try:
        found = Path(path.removeprefix(_FILE)).resolve(strict=True)
    except (OSError, ValueError, RuntimeError):
        return False
    return found.is_file() and found.is_relative_to(cache.resolve())


def _host_name(host: str) -> str | None:
    try:
        parts = urlsplit(f"//{host}")
        if parts.hostname is None or parts.username is not None or parts.path:
            return None
        _ = parts.port
    except ValueError:
        return None
    return _plain(parts.hostname)


def _plain(host: str) -> str:
    try:
        return str(ipaddress.ip_address(host.strip("[]")))
    except ValueError:
        return host.lower().rstrip(".")
