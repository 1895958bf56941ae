"""Identify the user of a request: by a password, by a trusted proxy's header, or as the one local user."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from gradio_app.settings import PlaygroundSettings
from mlflow_finetune_plugin.credentials.users import Users, name_fault

LOCAL_NAME = "local"
_LOOPBACK = ("127.0.0.0/8", "::1/128")


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
        address = parsed_address(peer)
        return address is not None and any(address in network for network in self._proxies)

    def from_header(self, values: list[str], peer: str | None) -> Visitor | None:
        """Return the user that a trusted proxy names; None unless the header occurs once and holds a valid name."""
        if self.header is None or not self.is_trusted_proxy(peer) or len(values) != 1:
            return None
        name = values[0].strip()
        return self.visitor(name) if name_fault(name) is None else None

    def log_in(self, name: str, password: str) -> Visitor | None:
        """Return the user; None for a wrong name or password. Takes 0.1 s."""
        assert self.users is not None
        user = self.users.with_password(name, password)
        return Visitor(user.name, user.may_promote) if user is not None else None


def parsed_address(text: str | None) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address((text or "").partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address
