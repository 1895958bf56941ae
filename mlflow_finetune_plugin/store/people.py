"""Name the person who moves an alias."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

ON_BEHALF_OF = "MLFLOW_FINETUNE_ON_BEHALF_OF"
"""The environment variable in which a service passes on the person who requested a move to the command that it runs."""

_LONGEST_PERSON = 100

_person: ContextVar[str] = ContextVar("_person", default="")


@contextmanager
def on_behalf_of(person: str) -> Iterator[None]:
    """Record ``person``, whom a service has authenticated, as the one who requests moves inside this block of this
    thread or task.
    """
    token = _person.set(person)
    try:
        yield
    finally:
        _person.reset(token)


def who_moves() -> str:
    """Return ``user@host``: the user of the tracking server if it has a login, else of this machine.

    For a service that moves on behalf of a person it is ``person via user@host``.
    """
    from mlflow_finetune_plugin.internals.mlflow import user_name

    mover = f"{os.environ.get('MLFLOW_TRACKING_USERNAME') or user_name()}@{socket.gethostname()}"
    person = " ".join((_person.get() or os.environ.get(ON_BEHALF_OF, "")).split())[:_LONGEST_PERSON]
    return f"{person} via {mover}" if person else mover
