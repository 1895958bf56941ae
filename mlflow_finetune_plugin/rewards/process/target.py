"""What a scoring process loads, what it reports of it, and the messages between it and the trainer."""

from __future__ import annotations

import json
import pickle
import socket
import struct
import time
from dataclasses import dataclass, field
from typing import Any, Literal

TargetKind = Literal["function", "source", "scorer", "model"]

_LONGEST_REPLY_BYTES = 1 << 20
_LENGTH = struct.Struct(">Q")


class ScoringError(Exception):
    """A scoring process could not load its target, ended, or did not answer in time. The text says which."""


@dataclass(frozen=True)
class ScoringTarget:
    """What a scoring process loads.

    Attributes:
        kind: A ``function`` of a file, ``source`` text with ``grade(sample, item)``, an MLflow ``scorer`` or a pyfunc ``model``.
        path: The file, or the folder of the model; empty for a scorer of MLflow.
        name: The function or scorer; for MLflow's the whole dotted name; empty: the file's only function.
        source: The text of a ``source``.
        arguments: Arguments of the scorer's class.
        gets_messages: Whether a function gets messages instead of texts.
        timeout_s: The longest time of one call.
    """

    kind: TargetKind
    path: str = ""
    name: str = ""
    source: str = ""
    arguments: dict[str, Any] = field(default_factory=dict)
    gets_messages: bool = False
    timeout_s: float = 30.0


@dataclass(frozen=True)
class Description:
    """A loaded target: whether one call scores a ``row`` or a ``batch``, and the columns that it needs."""

    form: Literal["row", "batch"]
    name: str
    columns: tuple[str, ...] = ()
    is_async: bool = False

    @classmethod
    def of_reply(cls, reply: Any) -> Description:
        """Return the description that a scoring process sent."""
        return cls(reply["form"], str(reply["name"]), tuple(reply["columns"]), bool(reply["is_async"]))


class Requests:
    """The scoring process's end: it receives pickled objects of the trainer and sends lines of JSON."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def receive(self) -> bytes | None:
        """Return the next pickled request; None once the trainer closed the connection."""
        length = self._read(_LENGTH.size)
        return None if length is None else self._read(_LENGTH.unpack(length)[0])

    def send(self, reply: dict[str, Any]) -> None:
        """Send one reply."""
        self._connection.sendall(json.dumps(reply).encode() + b"\n")

    def _read(self, size: int) -> bytes | None:
        data = bytearray()
        while len(data) < size:
            part = self._connection.recv(min(size - len(data), 1 << 20))
            if not part:
                return None
            data += part
        return bytes(data)


class Replies:
    """The trainer's end: it sends pickled requests and reads lines of JSON, and nothing that could run code."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._data = bytearray()

    def send(self, request: object, timeout_s: float) -> None:
        """Send a request. Raises OSError, also when it is not taken in time."""
        data = pickle.dumps(request)
        self._connection.settimeout(timeout_s)
        self._connection.sendall(_LENGTH.pack(len(data)) + data)

    def receive(self, timeout_s: float) -> dict[str, Any]:
        """Return the next reply.

        Raises:
            TimeoutError: none came in time.
            EOFError: the process ended.
            ValueError: what came is not a reply.
        """
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._data:
            if len(self._data) > _LONGEST_REPLY_BYTES:
                raise ValueError("the reply is too long")
            self._connection.settimeout(max(1e-3, deadline - time.monotonic()))
            self._data += self._part()
        line, _, rest = self._data.partition(b"\n")
        self._data = bytearray(rest)
        reply = json.loads(line)
        if not isinstance(reply, dict):
            raise ValueError("the reply is not an object")
        return reply

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _part(self) -> bytes:
        try:
            part = self._connection.recv(1 << 16)
        except ConnectionError as error:
            raise EOFError from error
        if not part:
            raise EOFError
        return part
