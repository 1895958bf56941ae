"""Name the person who moves an alias."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

ON_BEHALF_OF = "MLFLOW_FINETUNE_ON_BEHALF_OF"
"""The environment variable by which a service tells the command that it runs who asked for the move."""

_LONGEST_PERSON = 100

_person: ContextVar[str] = ContextVar("_person", default="")


@contextmanager
def on_behalf_of(person: str) -> Iterator[None]:
    """Moves inside, of this thread or task, are recorded as asked for by ``person``, whom a service has let in."""
    token = _person.set(person)
    try:
        yield
    finally:
        _person.reset(token)


def who_moves() -> str:
    """``user@host``: the user of the tracking server where one logs in there, else of this machine.

    ``person via user@host`` where a service moves for a person of its own.
    """
    from mlflow.tracking.context.default_context import _get_user

    mover = f"{os.environ.get('MLFLOW_TRACKING_USERNAME') or _get_user()}@{socket.gethostname()}"
    person = " ".join((_person.get() or os.environ.get(ON_BEHALF_OF, "")).split())[:_LONGEST_PERSON]
    return f"{person} via {mover}" if person else mover
