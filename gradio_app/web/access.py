"""Who is asking, and what they may do: a password, a header of a trusted proxy, or whoever sits at this machine."""

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
    """``name`` is what ``gr.Request.username`` says; the one visitor of a page without a login is ``LOCAL_NAME``."""

    name: str
    may_promote: bool


class Access:
    """What the settings say of who may come in. Raises ConfigError for an auth file that cannot be read."""

    def __init__(self, settings: PlaygroundSettings) -> None:
        self.users = Users(settings.auth_file) if settings.auth_file is not None else None
        self.header = settings.user_header.lower() if settings.user_header is not None else None
        self._promoters = frozenset(settings.promoters)
        trusted = settings.trusted_proxies or (_LOOPBACK if self.header is not None else ())
        self._proxies = tuple(ipaddress.ip_network(address, strict=False) for address in trusted)
        self.attempts = Attempts()

    @property
    def is_open(self) -> bool:
        """No login at all: loopback only."""
        return self.users is None and self.header is None

    def visitor(self, name: str | None) -> Visitor | None:
        """Whom a handler's ``request.username`` means; None for nobody, and for a user who has been taken out."""
        if self.is_open:
            return Visitor(LOCAL_NAME, may_promote=True)  # it is their own machine
        if name is None:
            return None
        if self.users is not None:
            user = self.users.find(name)
            return Visitor(user.name, user.may_promote) if user is not None else None
        return Visitor(name, name in self._promoters)

    def may_promote(self, name: str | None) -> bool:
        found = self.visitor(name)
        return found is not None and found.may_promote

    def is_trusted_proxy(self, peer: str | None) -> bool:
        """``peer`` is the socket's own address: what headers say of it anybody can write."""
        found = _address(peer)
        return found is not None and any(found in network for network in self._proxies)

    def from_header(self, values: list[str], peer: str | None) -> Visitor | None:
        """Whom the proxy names; None where that is not said once, by a trusted proxy, as a name."""
        if self.header is None or not self.is_trusted_proxy(peer) or len(values) != 1:
            return None
        name = values[0].strip()
        return self.visitor(name) if name_fault(name) is None else None

    def log_in(self, name: str, password: str, address: str) -> Visitor | float:
        """The visitor, or the seconds until another attempt is heard; 0.0 for a wrong name or password. Takes 0.1 s."""
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
    """Wrong passwords per name and per address within a quarter of an hour; names that nobody has count as others do.

    An attempt counts when it begins, so that many at the same time are no way around; one that succeeds is taken back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._at: OrderedDict[str, list[float]] = OrderedDict()
        self._lock = threading.Lock()

    def begin(self, name: str, address: str) -> float:
        """0 and it counts; else the seconds until one of this name from this address may."""
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
        """The name's are forgotten; of the address's only this one: somebody's own name clears nobody else's."""
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
    """An IPv6 client has a whole /64 to choose from."""
    found = _address(address)
    if isinstance(found, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((int(found), 64), strict=False))
    return address


def _address(text: str | None) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        found = ipaddress.ip_address((text or "").partition("%")[0])
    except ValueError:
        return None
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return mapped or found
