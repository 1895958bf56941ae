"""Refuse requests that a page of another site makes a browser send to a service on this machine.

By DNS rebinding a foreign page reaches 127.0.0.1 under its own name: its requests have that name as ``Host``. Without
rebinding, a page may still send simple requests, with its own ``Origin``.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")


def host_name(host: str) -> str | None:
    """Return the name of a Host header without its port, or None if it is not valid."""
    try:
        parts = urlsplit(f"//{host}")
        if parts.hostname is None or parts.username is not None or parts.path:
            return None
        _ = parts.port
    except ValueError:
        return None
    return plain_name(parts.hostname)


def plain_name(host: str) -> str:
    """Return a host name or an address as it is compared."""
    try:
        return str(ipaddress.ip_address(host.strip("[]")))
    except ValueError:
        return host.lower().rstrip(".")


def foreign_host(headers: Headers, allowed: Collection[str]) -> str | None:
    """Return why the Host header is refused, or None.

    Args:
        headers: The request's headers.
        allowed: Names as ``plain_name`` returns them.
    """
    hosts = headers.getlist("host")
    if len(hosts) != 1 or (name := host_name(hosts[0])) is None:
        return "a request needs exactly one valid Host header"
    return None if name in allowed else f"the host name {name[:200]} is not allowed here"


def foreign_origin(headers: Headers) -> str | None:
    """Return why the origin is refused, or None. A client that is not a browser sends no ``Origin``."""
    origins = headers.getlist("origin")
    is_own = not origins or (
        len(origins) == 1 and urlsplit(origins[0]).netloc.lower() == headers.get("host", "").lower()
    )
    if is_own and headers.get("sec-fetch-site") in (None, "same-origin", "none"):
        return None
    return "requests from pages of other sites are refused"
