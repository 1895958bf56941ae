"""Limits of HTTP connections: the time until a request's headers are complete, and the connections of one address.

uvicorn itself limits the size of headers (``h11_max_incomplete_event_size``) and the time between two requests
(``timeout_keep_alive``). It has no limit of the time in which headers must arrive, nor of the connections of one client, so
without these limits a client without a key holds connections open until the process has no file descriptor left.
"""

from __future__ import annotations

import asyncio
import ipaddress
import resource
from collections import OrderedDict
from dataclasses import dataclass

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from mlflow_finetune_plugin.serving.versions.names import is_loopback

_MOST_FILES = 65_536
_OTHER_FILES = 128  # logs, databases, engines
_LATE = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
_FULL = b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\nretry-after: 5\r\ncontent-length: 0\r\n\r\n"


@dataclass(frozen=True)
class ConnectionLimits:
    """Limits of a server's connections.

    Attributes:
        per_address: Connections that one address may hold open. An IPv6 network /64 counts as one address; loopback has
            no limit, because a proxy on this machine connects from there.
        total: Connections of all addresses together.
        headers_s: Seconds in which the headers of a request must be complete.
    """

    per_address: int = 256
    total: int = 1024
    headers_s: float = 10.0


def total_connections() -> int:
    """Raise the process's limit of open files as far as allowed, and return how many connections fit into it.

    Each connection may need a second file, for the request to an engine or to another server.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or hard > _MOST_FILES:
        hard_files = _MOST_FILES
    else:
        hard_files = hard
    if soft != resource.RLIM_INFINITY and soft < hard_files:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard_files, hard))
        soft = hard_files
    files = hard_files if soft == resource.RLIM_INFINITY else min(soft, _MOST_FILES)
    return max(16, (files - _OTHER_FILES) // 2)


def limited_protocol(limits: ConnectionLimits) -> type[asyncio.Protocol]:
    """Return the protocol for ``uvicorn.Config(http=...)``. Its connections share the limits."""
    pool = _Pool(limits)

    class LimitedProtocol(_LimitedProtocol):
        _pool = pool

    return LimitedProtocol


class _LimitedProtocol(H11Protocol):
    """A connection. It is idle while no request on it is being answered."""

    _pool: _Pool
    _deadline: asyncio.TimerHandle | None = None
    address = ""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        super().connection_made(transport)
        self.address = _address(self.client[0] if self.client else "")
        if self._pool.admit(self):
            self._expect_headers()
        else:
            transport.write(_FULL)
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_deadline()
        self._pool.remove(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.is_answering:
            self._forget_deadline()
            self._pool.note_busy(self)
        elif self._deadline is None and not self.transport.is_closing():
            self._expect_headers()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self.is_answering:  # a pipelined request may have begun
            self._pool.note_idle(self)

    @property
    def is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _expect_headers(self) -> None:
        self._deadline = self.loop.call_later(self._pool.limits.headers_s, self._end_late)

    def _forget_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _end_late(self) -> None:
        if self.conn.our_state is h11.IDLE:
            self.transport.write(_LATE)
        self.transport.close()


class _Pool:
    """The open connections of a server."""

    def __init__(self, limits: ConnectionLimits) -> None:
        self.limits = limits
        self._idle: dict[str, OrderedDict[_LimitedProtocol, None]] = {}
        self._open: dict[str, set[_LimitedProtocol]] = {}
        self._count = 0

    def admit(self, connection: _LimitedProtocol) -> bool:
        """Add a connection. Where it is one too many, the longest idle one is closed; False if all are answering."""
        address = connection.address
        if not is_loopback(address) and len(self._open.get(address, ())) >= self.limits.per_address:
            is_admitted = self._close_idle(address)
        elif self._count >= self.limits.total:
            is_admitted = self._close_idle(max(self._idle, key=lambda other: len(self._idle[other]), default=""))
        else:
            is_admitted = True
        if is_admitted:
            self._open.setdefault(address, set()).add(connection)
            self._count += 1
            self.note_idle(connection)
        return is_admitted

    def remove(self, connection: _LimitedProtocol) -> None:
        self.note_busy(connection)
        connections = self._open.get(connection.address, set())
        if connection in connections:
            connections.remove(connection)
            self._count -= 1
            if not connections:
                del self._open[connection.address]

    def note_idle(self, connection: _LimitedProtocol) -> None:
        """Note that no request is being answered on a connection, from now on."""
        if connection in self._open.get(connection.address, ()):
            self._idle.setdefault(connection.address, OrderedDict())[connection] = None

    def note_busy(self, connection: _LimitedProtocol) -> None:
        idle = self._idle.get(connection.address)
        if idle is not None:
            idle.pop(connection, None)
            if not idle:
                del self._idle[connection.address]

    def _close_idle(self, address: str) -> bool:
        """Close the connection of an address that has been idle longest. Returns whether there was one."""
        idle = self._idle.get(address)
        if not idle:
            return False
        connection = next(iter(idle))
        self.remove(connection)
        connection.transport.close()
        return True


def _address(host: str) -> str:
    """Return the address, or the /64 network of an IPv6 address, because one client owns all of it."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    if isinstance(address, ipaddress.IPv6Address) and not address.is_loopback:
        return str(ipaddress.ip_network((int(address), 64), strict=False))
    return str(address)
