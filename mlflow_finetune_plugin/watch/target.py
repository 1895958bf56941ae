"""The champion that is checked: since when it is champion, and the version that a rollback would restore."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from mlflow_finetune_plugin.errors import GateError, MoveError
from mlflow_finetune_plugin.gate.policy import GatePolicy
from mlflow_finetune_plugin.gate.watch_evidence import NotMeasured
from mlflow_finetune_plugin.promotion.evidence.proven_version import ProvenVersion, read_version
from mlflow_finetune_plugin.store.names import CHAMPION, MOVED_TAG, PREVIOUS, PROMOTED_TAG, ROLLED_BACK_TAG
from mlflow_finetune_plugin.store.registered_model import read_model

if TYPE_CHECKING:
    from mlflow import MlflowClient


@dataclass(frozen=True)
class Watched:
    """A model's champion and the version before it.

    Args:
        name: The registered model.
        champion: The champion.
        previous: The version that a rollback would restore, or why there is none.
        since: When the champion was promoted, UTC; None where the alias was set by hand.
        gate: The policy that the champion's training recorded.
        notes: What could not be read.
        no_rollback: Why the champion cannot be rolled back; None where it can.
    """

    name: str
    champion: ProvenVersion
    previous: ProvenVersion | NotMeasured
    since: datetime | None
    gate: GatePolicy
    notes: tuple[str, ...]
    no_rollback: str | None = None


def find_watched(client: MlflowClient, name: str) -> Watched:
    """Read the champion and the version before it.

    Raises MoveError where this package registered no champion, TrackingError.
    """
    aliases, tags = read_model(client, name)
    number = aliases.get(CHAMPION)
    if number is None:
        raise MoveError(f"{name}: has no {CHAMPION}, so there is nothing to watch; fix: mlflow-finetune promote {name}")
    champion = read_version(client, name, number)
    try:
        policy, notes = champion.policy, []
    except GateError as error:
        policy, notes = None, [f"its policy cannot be read: {error}"]
    moved = tags.get(f"{MOVED_TAG}{CHAMPION}")
    last = json.loads(moved) if moved is not None else {}
    since = datetime.fromisoformat(last["when"]) if str(last.get("version")) == number else None
    previous = _previous(client, name, number, aliases.get(PREVIOUS))
    gate = policy.policy if policy is not None else GatePolicy()
    return Watched(name, champion, previous, since, gate, tuple(notes), _no_rollback(previous))


def _previous(client: MlflowClient, name: str, champion: str, number: str | None) -> ProvenVersion | NotMeasured:
    if number is None or number == champion:
        return NotMeasured("there is no previous version")
    try:
        return read_version(client, name, number)
    except MoveError as error:
        return NotMeasured(f"the previous version cannot be used: {error}")


def _no_rollback(previous: ProvenVersion | NotMeasured) -> str | None:
    """Say why the previous version is not restored: it was rolled back itself after its last promotion.

    Without this rule two bad versions would replace each other again and again.
    """
    if isinstance(previous, NotMeasured):
        return previous.why
    rolled_back, promoted = (previous.tags.get(tag, "") for tag in (ROLLED_BACK_TAG, PROMOTED_TAG))
    when = rolled_back.partition(" ")[0]
    if when > promoted.partition(" ")[0]:  # ISO 8601, UTC, of one length
        return f"version {previous.number}, the previous one, was rolled back itself on {when}"
    return None
