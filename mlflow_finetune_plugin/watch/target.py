"""Who is watched: the champion of a model, since when, and the version that a rollback would go to."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from mlflow_finetune_plugin.errors import GateError, MoveError
from mlflow_finetune_plugin.gate.policy import GatePolicy
from mlflow_finetune_plugin.gate.watch_evidence import NotMeasured
from mlflow_finetune_plugin.promotion.proven_version import ProvenVersion, read_version
from mlflow_finetune_plugin.store.names import CHAMPION, MOVED_TAG, PREVIOUS, PROMOTED_TAG, ROLLED_BACK_TAG
from mlflow_finetune_plugin.store.registered_model import read_model

if TYPE_CHECKING:
    from mlflow import MlflowClient


@dataclass(frozen=True)
class Watched:
    """``since``: when it became champion, UTC; None where it was made so by hand. ``gate``: its own written policy.

    ``no_way_back``: why there is no rolling back to ``previous``; None where it can be.
    """

    name: str
    champion: ProvenVersion
    previous: ProvenVersion | NotMeasured
    since: datetime | None
    gate: GatePolicy
    notes: tuple[str, ...]
    no_way_back: str | None = None


def find_watched(client: MlflowClient, name: str) -> Watched:
    """Raises MoveError for a model without a champion of this package's, TrackingError."""
    aliases, tags = read_model(client, name)
    number = aliases.get(CHAMPION)
    if number is None:
        raise MoveError(f"{name}: has no {CHAMPION}, so there is nothing to watch; fix: mlflow-finetune promote {name}")
    champion = read_version(client, name, number)
    try:
        policy, notes = champion.policy, []
    except GateError as error:
        policy, notes = None, [f"what its policy asks is not known: {error}"]
    moved = tags.get(f"{MOVED_TAG}{CHAMPION}")
    last = json.loads(moved) if moved is not None else {}
    since = datetime.fromisoformat(last["when"]) if str(last.get("version")) == number else None
    previous = _previous(client, name, number, aliases.get(PREVIOUS))
    gate = policy.policy if policy is not None else GatePolicy()
    return Watched(name, champion, previous, since, gate, tuple(notes), _no_way_back(previous))


def _previous(client: MlflowClient, name: str, champion: str, number: str | None) -> ProvenVersion | NotMeasured:
    if number is None or number == champion:
        return NotMeasured("there is no previous version")
    try:
        return read_version(client, name, number)
    except MoveError as error:
        return NotMeasured(f"the previous version is none: {error}")


def _no_way_back(previous: ProvenVersion | NotMeasured) -> str | None:
    """Not to one that was itself rolled back from since it was last promoted: two versions would take turns for ever."""
    if isinstance(previous, NotMeasured):
        return previous.why
    rolled_back, promoted = (previous.tags.get(tag, "") for tag in (ROLLED_BACK_TAG, PROMOTED_TAG))
    when = rolled_back.partition(" ")[0]
    if when > promoted.partition(" ")[0]:  # ISO 8601, UTC, of one length
        return f"version {previous.number}, the previous one, was itself rolled back from on {when}"
    return None
