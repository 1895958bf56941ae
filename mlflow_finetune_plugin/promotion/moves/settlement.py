"""Complete a move: record it and close it. After a crash the next call finds the move and completes or drops it."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from mlflow_finetune_plugin.errors import MoveError, one_line
from mlflow_finetune_plugin.promotion.moves.audit import unrecorded, write_record
from mlflow_finetune_plugin.promotion.moves.canary_moves import end_for_another
from mlflow_finetune_plugin.promotion.moves.canary_state import read_state
from mlflow_finetune_plugin.promotion.moves.intent import Intent, Kind
from mlflow_finetune_plugin.promotion.moves.lease import Lease
from mlflow_finetune_plugin.store.names import (
    CANARY_TAG,
    CHAMPION,
    INTENT_TAG,
    MOVED_TAG,
    PREVIOUS,
    PROMOTED_TAG,
    ROLLED_BACK_TAG,
    UNRECORDED_TAG,
)
from mlflow_finetune_plugin.store.people import who_moves
from mlflow_finetune_plugin.store.registered_model import named, read_model, registry_faults, version_exists

if TYPE_CHECKING:
    from mlflow import MlflowClient


@dataclass(frozen=True)
class Move:
    """A moved alias.

    Args:
        previous: The version that the alias ``previous`` names now; None if it is not set.
        run_id: The run that holds the record. None if the record could not be written; ``unrecorded`` gives the reason,
            and the next call writes it.
        settled: The interrupted move of an earlier call that this call settled first.
    """

    kind: Kind
    name: str
    alias: str
    from_version: str | None
    to_version: str
    previous: str | None
    who: str
    when: str
    run_id: str | None
    unrecorded: str | None
    settled: Settled | None

    @property
    def text(self) -> str:
        change = f"{self.name}: {self.alias} {self.from_version or 'none'} -> {self.to_version}"
        return change if self.previous is None or self.alias != CHAMPION else f"{change}, previous is {self.previous}"


@dataclass(frozen=True)
class Settled:
    """The interrupted move of an earlier call, and its end.

    Args:
        how: finished (it was interrupted after the alias had moved, and the rest is done), dropped (interrupted before,
            so nothing was changed), overtaken (interrupted, and the alias was moved elsewhere from outside, which
            remains), recorded (only its record was missing), or ended (a canary: the split is restored and its alias
            deleted).
        text: The same for a person.
        move: The move that was finished.
        unrecorded: Why a record still cannot be written; None if none is missing.
    """

    how: Literal["finished", "dropped", "overtaken", "recorded", "ended"]
    kind: Kind
    text: str
    move: Move | None = None
    unrecorded: str | None = None


def settle(client: MlflowClient, name: str) -> Settled | None:
    """Complete or drop the interrupted move of an earlier call and return it. Without one, return None and take no
    lease.

    Raises:
        LeaseError: The move is still in progress.
        MoveError: A canary is in progress, or this user may not settle the move.
        TrackingError: The registry failed.
    """
    with registry_faults(name):
        _, tags = read_model(client, name)
        if INTENT_TAG not in tags and not unrecorded(tags):
            if CANARY_TAG not in tags:
                return None
            _check_dead(name, tags)
        with Lease(client, name) as lease:
            return settle_held(client, lease)


def settle_held(
    client: MlflowClient, lease: Lease, *, own_canary: str | None = None, ends_canary: bool = False
) -> Settled | None:
    """Settle as ``settle`` does, under a lease that the caller holds.

    Args:
        own_canary: The id of the caller's canary, which is not ended.
        ends_canary: End any canary.
    """
    moved = _settle_move(client, lease)
    ended = _settle_canary(client, lease, own_canary, ends_canary=ends_canary)
    if moved is None or ended is None:
        return moved or ended
    return replace(moved, text=f"{moved.text}; {ended.text}")


def _settle_canary(client: MlflowClient, lease: Lease, own_canary: str | None, *, ends_canary: bool) -> Settled | None:
    name = lease.name
    _, tags = read_model(client, name)
    state = read_state(tags)
    if state is None or state.id == own_canary:
        return None
    if ends_canary:
        text = end_for_another(client, lease, state, f"ended by a rollback of {who_moves()}", "reject")
    else:
        _check_dead(name, tags)
        text = end_for_another(client, lease, state, "cut off", "hold")
    return Settled("ended", "promote", text)


def _check_dead(name: str, tags: dict[str, str]) -> None:
    state = read_state(tags)
    if state is not None and state.is_alive(tags):
        raise MoveError(
            f"{name}: {state.text}, is under way; fix: wait for its end, or end it: mlflow-finetune rollback {name}"
        )


def _settle_move(client: MlflowClient, lease: Lease) -> Settled | None:
    name = lease.name
    aliases, tags = read_model(client, name)
    settled = _settle_records(client, name, tags)
    if INTENT_TAG not in tags:
        return settled
    intent = Intent.from_json(tags[INTENT_TAG])
    begun = f"{name}: a {intent.kind} of version {intent.to_version} to {intent.alias}, begun {intent.when} by {intent.who},"
    current = aliases.get(intent.alias)
    if current == intent.to_version:
        previous = _set_previous(client, lease, intent, aliases.get(PREVIOUS))
        move = record_and_close(client, lease, intent, previous)
        text = f"{begun} was cut off after the alias had moved; it is finished"
        return Settled("finished", intent.kind, text, move, move.unrecorded)
    lease.check()
    if current == intent.from_version:
        client.delete_registered_model_tag(name, INTENT_TAG)
        return Settled("dropped", intent.kind, f"{begun} was cut off before the alias moved; nothing was changed")
    what = f"was cut off, and {intent.alias} is {named(current)} now, moved by other means"
    write_record(client, name, intent, is_moved=False, note=f"({what})")
    client.delete_registered_model_tag(name, INTENT_TAG)
    return Settled("overtaken", intent.kind, f"{begun} {what}; it stays there")


def record_and_close(client: MlflowClient, lease: Lease, intent: Intent, previous: str | None) -> Move:
    """Write the record of a move whose aliases are set, or the note that it is missing, and close the move."""
    name = lease.name
    run_id, why = _try_to_record(client, name, intent)
    lease.check()
    if why is not None:
        client.set_registered_model_tag(name, f"{UNRECORDED_TAG}{intent.id}", intent.to_json())
    left = json.dumps({"id": intent.id, "version": intent.to_version, "when": intent.when}, sort_keys=True)
    client.set_registered_model_tag(name, f"{MOVED_TAG}{intent.alias}", left)
    client.delete_registered_model_tag(name, INTENT_TAG)
    return Move(
        kind=intent.kind,
        name=name,
        alias=intent.alias,
        from_version=intent.from_version,
        to_version=intent.to_version,
        previous=previous,
        who=intent.who,
        when=intent.when,
        run_id=run_id,
        unrecorded=why,
        settled=None,
    )


def _set_previous(client: MlflowClient, lease: Lease, intent: Intent, current: str | None) -> str | None:
    """Return the version that ``previous`` names now. It does not change if the version that it should name was deleted
    meanwhile.
    """
    previous = intent.previous
    if previous is None or previous == current or not version_exists(client, lease.name, previous):
        return current
    lease.check()
    client.set_registered_model_alias(lease.name, PREVIOUS, previous)
    return previous


def _settle_records(client: MlflowClient, name: str, tags: dict[str, str]) -> Settled | None:
    settled = None
    for intent in unrecorded(tags):
        run_id, why = _try_to_record(client, name, intent)
        text = f"{name}: the record of the {intent.kind} of {intent.when} to version {intent.to_version} was missing"
        if run_id is None:
            return Settled("recorded", intent.kind, f"{text} and still cannot be written: {why}", unrecorded=why)
        client.delete_registered_model_tag(name, f"{UNRECORDED_TAG}{intent.id}")
        settled = Settled("recorded", intent.kind, f"{text}; it is written")
    return settled


def _try_to_record(client: MlflowClient, name: str, intent: Intent) -> tuple[str | None, str | None]:
    """Return the id of the record's run, or the reason why there is none: the move has happened, so no error here may
    hide it.
    """
    from mlflow.exceptions import MlflowException

    try:
        run_id = write_record(client, name, intent, is_moved=True)
        _tag_version(client, name, intent)
    except (MlflowException, MoveError) as error:
        return None, one_line(error)
    return run_id, None


def _tag_version(client: MlflowClient, name: str, intent: Intent) -> None:
    """Tag the version that was promoted or rolled back, unless it was deleted meanwhile."""
    line = f"{intent.when} {intent.alias} {intent.from_version or 'none'} -> {intent.to_version} by {intent.who}"
    is_promotion = intent.kind == "promote"
    tag, version = (PROMOTED_TAG, intent.to_version) if is_promotion else (ROLLED_BACK_TAG, intent.from_version)
    if version is not None and version_exists(client, name, version):
        client.set_model_version_tag(name, version, tag, line)
