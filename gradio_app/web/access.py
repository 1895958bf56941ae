"""Identify the user of a request: by a password, by a trusted proxy's header, or as the one local user."""

from __future__ import annotations

import ipaddress
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from gradio_app.settings import PlaygroundSettings
from mlflow_finetune_plugin.credentials.users import MAX_NAME_CHARS, Users, name_fault

LOCAL_NAME = "local"
_LOOPBACK = ("127.0.0.0/8", "::1/128")
_WINDOW_S = 15 * 60.0
_WRONG_PER_NAME = 10
_WRONG_PER_ADDRESS = 30
_MOST_REMEMBERED = 10_000


@dataclass(frozen=True)
class Visitor:
    """A user. ``name`` is also ``gr.Request.username``; the only user of a page without a login is ``LOCAL_NAME``."""

    name: str
    may_promote: bool


class Access:
    """The access rules of the settings. Raises ConfigError for an auth file that cannot be read."""

    def __init__(self, settings: PlaygroundSettings) -> None:
        self.users = Users(settings.auth_file) if settings.auth_file is not None else None
        self.header = settings.user_header.lower() if settings.user_header is not None else None
        self._promoters = frozenset(settings.promoters)
        trusted = settings.trusted_proxies or (_LOOPBACK if self.header is not None else ())
        self._proxies = tuple(ipaddress.ip_network(address, strict=False) for address in trusted)
        self.attempts = Attempts()

    @property
    def is_open(self) -> bool:
        """Whether there is no login. The settings allow that on loopback only."""
        return self.users is None and self.header is None

    def visitor(self, name: str | None) -> Visitor | None:
        """Return the user of a handler's ``request.username``; None without a name and for a deleted user."""
        if self.is_open:
            return Visitor(LOCAL_NAME, may_promote=True)  # Only the machine's user can open a loopback page.
        if name is None:
            return None
        if self.users is not None:
            user = self.users.find(name)
            return Visitor(user.name, user.may_promote) if user is not None else None
        return Visitor(name, name in self._promoters)

    def may_promote(self, name: str | None) -> bool:
        visitor = self.visitor(name)
        return visitor is not None and visitor.may_promote

    def is_trusted_proxy(self, peer: str | None) -> bool:
        """Whether a connection comes from a trusted proxy.

        ``peer`` is the socket's address, because headers can be forged.
        """
        address = _address(peer)
        return address is not None and any(address in network for network in self._proxies)

    def from_header(self, values: list[str], peer: str | None) -> Visitor | None:
        """Return the user that a trusted proxy names; None unless the header occurs once and holds a valid name."""
        if self.header is None or not self.is_trusted_proxy(peer) or len(values) != 1:
            return None
        name = values[0].strip()
        return self.visitor(name) if name_fault(name) is None else None

    def log_in(self, name: str, password: str, address: str) -> Visitor | float:
        """Return the user, 0.0 for a wrong name or password, or the seconds until the next attempt is allowed.

        Takes 0.1 s.
        """
        assert self.users is not None
        name = name.strip()[: MAX_NAME_CHARS + 1]
        if wait_s := self.attempts.begin(name, address):
            return wait_s
        user = self.users.with_password(name, password)
        if user is None:
            return 0.0
        self.attempts.succeeded(name, address)
        return Visitor(user.name, user.may_promote)


class Attempts:
    """Limits wrong passwords per name and per address within 15 minutes. Unknown names count like known ones.

    An attempt counts when it begins, so that concurrent attempts cannot pass the limit. A successful one is subtracted.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._at: OrderedDict[str, list[float]] = OrderedDict()
        self._lock = threading.Lock()

    def begin(self, name: str, address: str) -> float:
        """Count an attempt and return 0, or return the seconds until this name and address may try again."""
        now = self._clock()
        with self._lock:
            wait_s = max(self._wait_s(key, most, now) for key, most in _limits(name, address))
            if wait_s > 0:
                return wait_s
            for key, _ in _limits(name, address):
                self._at.setdefault(key, []).append(now)
                self._at.move_to_end(key)
            while len(self._at) > _MOST_REMEMBERED:
                self._at.popitem(last=False)
        return 0.0

    def succeeded(self, name: str, address: str) -> None:
        """Clear the attempts of the name, and one of the address: a login must not clear attempts on other names."""
        (of_name, _), (of_address, _) = _limits(name, address)
        with self._lock:
            self._at.pop(of_name, None)
            if attempts := self._at.get(of_address):
                attempts.pop()

    def _wait_s(self, key: str, most: int, now: float) -> float:
        recent = [at for at in self._at.get(key, ()) if now - at < _WINDOW_S]
        if key in self._at:
            self._at[key] = recent
        return math.ceil(recent[-most] + _WINDOW_S - now) if len(recent) >= most else 0.0


def _limits(name: str, address: str) -> tuple[tuple[str, int], tuple[str, int]]:
    return (f"name {name}", _WRONG_PER_NAME), (f"address {_neighbourhood(address)}", _WRONG_PER_ADDRESS)


def _neighbourhood(address: str) -> str:
    """Return the address, or the /64 network of an IPv6 address, because one client owns all of it."""
    parsed = _address(address)
    if isinstance(parsed, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((int(parsed), 64), strict=False))
    return address


def _address(text: str | None) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address((text or "").partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address
