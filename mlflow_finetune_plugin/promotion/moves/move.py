"""Moving an alias so that a crash at any point leaves the old state or the new one, and the next call knows which.

Under the lease: the intent is written to the registered model; then the alias; then ``previous``; both are read back; the
record is written; the intent is removed. Where the record cannot be written the move stands all the same, is told as
unrecorded, and the next call writes the record; only promotions wait for that, rollbacks never. The alias is the first thing that changes, so what a crash left needs never be
undone, which would take the right to delete aliases: where the alias still names the old version nothing has happened
and the intent is dropped, where it names the new one the rest is done. ``previous`` names at every point a version that
was champion before. ``check`` of the lease stands directly before every write to an alias; a process that stalls between
the two longer than the lease lasts can still write once. The registry has nothing to prevent that: it shows as a move
that the history cannot explain.

Moves need the registry alone: no run and no logged model of a version is read. Under MLflow's basic-auth they need EDIT
on the registered model, leave to create one (the lease), and EDIT on the experiment ``NAME.promotions`` for the record.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING
from uuid import uuid4

from mlflow_finetune_plugin.errors import MoveError
from mlflow_finetune_plugin.promotion.moves.audit import check_decision_run, last_moved, now
from mlflow_finetune_plugin.promotion.moves.canary_state import read_state
from mlflow_finetune_plugin.promotion.moves.intent import REASON_LIMIT, Intent, Kind, MoveEvidence
from mlflow_finetune_plugin.promotion.moves.lease import Lease
from mlflow_finetune_plugin.promotion.moves.settlement import Move, Settled, record_and_close, settle_held
from mlflow_finetune_plugin.store.names import CHAMPION, INTENT_TAG, PREVIOUS
from mlflow_finetune_plugin.store.people import who_moves
from mlflow_finetune_plugin.store.registered_model import named, read_model, registry_faults, version_exists

if TYPE_CHECKING:
    from mlflow import MlflowClient


def promote_version(
    client: MlflowClient,
    name: str,
    version: str,
    *,
    alias: str = CHAMPION,
    evidence: MoveEvidence,
    own_canary: str | None = None,
) -> Move:
    """The alias to this version; where the alias is champion, ``previous`` to what was champion.

    A move to this version that an earlier call began and that is only finished here is returned as the move. Raises
    MoveError when the verdict is not to promote, the version is gone or has the alias already, or the alias is not where
    it was when the evidence was judged, or a canary is under way other than ``own_canary`` (its id); LeaseError when somebody
    else moves aliases now; TrackingError.
    """
    version = str(version)
    if alias == PREVIOUS:
        raise MoveError(f"{name}: the alias {PREVIOUS!r} follows {CHAMPION!r}; fix: promote to another alias")
    if evidence.outcome != "promote":
        raise MoveError(
            f"{name}: the verdict on version {version} is {evidence.outcome!r}; fix: more evidence, see its report"
        )
    with registry_faults(name), Lease(client, name) as lease:
        settled = settle_held(client, lease, own_canary=own_canary)
        done = settled.move if settled is not None else None
        if done is not None and (done.kind, done.alias, done.to_version) == ("promote", alias, version):
            return replace(done, settled=settled)
        if settled is not None and settled.unrecorded is not None:
            raise MoveError(f"{settled.text}; nothing was moved; fix: that, then call again")
        aliases, tags = read_model(client, name)
        canary = read_state(tags)
        if own_canary is not None and (canary is None or canary.id != own_canary):
            raise MoveError(
                f"{name}: somebody else ended the canary of version {version}; nothing was moved; fix: see history"
            )
        current = aliases.get(alias)
        if current == version:
            raise MoveError(f"{name}: version {version} is {alias} already; fix: nothing, or name another version")
        if current != evidence.champion:
            raise MoveError(
                f"{name}: version {version} was judged against {named(evidence.champion)}, but {alias} is {named(current)} now; "
                "fix: judge again"
            )
        _check_version(client, name, version, "named to promote", "name a version that the registry has")
        if evidence.run_id is not None:
            check_decision_run(client, name, evidence.run_id)
        intent = _intent("promote", alias, current, version, aliases, tags, evidence.reason, evidence)
        return _carry_out(client, lease, intent, settled)


def roll_back(
    client: MlflowClient, name: str, *, reason: str | None = None, judged: tuple[str, str] | None = None
) -> Move:
    """Champion to ``previous`` and previous to what was champion, so that the same call undoes it. No gate.

    ``judged``: the (champion, previous) for which somebody found that it should be; None: whoever they are. Where they are
    others by now nothing is moved.
    A rollback that an earlier call began and that is only finished here is returned as the move: it is not rolled back
    again. A canary that is under way is ended first. Raises MoveError when there is no previous version, LeaseError,
    TrackingError; then nothing was moved.
    """
    with registry_faults(name), Lease(client, name) as lease:
        settled = settle_held(client, lease, ends_canary=True)
        if settled is not None and settled.move is not None and settled.move.kind == "rollback":
            return replace(settled.move, settled=settled)
        ended = f"{settled.text}; " if settled is not None else ""
        aliases, tags = read_model(client, name)
        current, target = aliases.get(CHAMPION), aliases.get(PREVIOUS)
        if target is None:
            raise MoveError(
                f"{ended}{name}: no version has the alias {PREVIOUS!r}, so there is nothing to go back to (it is set by the second "
                "promotion, and goes with its version when that is deleted); fix: set the alias to the version to go back to"
            )
        if target == current:
            raise MoveError(
                f"{name}: {CHAMPION} and {PREVIOUS} are both version {target}; fix: set {PREVIOUS} to another"
            )
        if judged is not None and judged != (current, target):
            raise MoveError(
                f"{name}: {CHAMPION} is {named(current)} and {PREVIOUS} {target} now, not versions {' and '.join(judged)} that were "
                "judged; fix: judge again"
            )
        _check_version(
            client, name, target, f"named by {PREVIOUS}", f"set {PREVIOUS} to a version that the registry has"
        )
        intent = _intent("rollback", CHAMPION, current, target, aliases, tags, reason or "", None)
        return _carry_out(client, lease, intent, settled)


def _carry_out(client: MlflowClient, lease: Lease, intent: Intent, settled: Settled | None) -> Move:
    name = lease.name
    lease.check()
    client.set_registered_model_tag(name, INTENT_TAG, intent.to_json())
    lease.check()
    client.set_registered_model_alias(name, intent.alias, intent.to_version)
    if intent.previous is not None:
        lease.check()
        client.set_registered_model_alias(name, PREVIOUS, intent.previous)
    aliases, _ = read_model(client, name)
    if aliases.get(intent.alias) != intent.to_version:
        raise MoveError(
            f"{name}: {intent.alias} was set to version {intent.to_version}, but is {named(aliases.get(intent.alias))}: somebody "
            "moved it at the same moment; fix: see mlflow-finetune history, then call again"
        )
    return replace(record_and_close(client, lease, intent, aliases.get(PREVIOUS)), settled=settled)


def _intent(
    kind: Kind,
    alias: str,
    current: str | None,
    target: str,
    aliases: dict[str, str],
    tags: dict[str, str],
    reason: str,
    evidence: MoveEvidence | None,
) -> Intent:
    return Intent(
        id=uuid4().hex,
        kind=kind,
        alias=alias,
        from_version=current,
        to_version=target,
        previous=current if alias == CHAMPION and current != aliases.get(PREVIOUS) else None,
        expected=last_moved(tags, alias),
        who=who_moves(),
        when=now(),
        reason=reason[:REASON_LIMIT],
        evidence=evidence,
    )


def _check_version(client: MlflowClient, name: str, version: str, whence: str, fix: str) -> None:
    if not version_exists(client, name, version):
        raise MoveError(f"{name}: version {version}, {whence}, does not exist; nothing was moved; fix: {fix}")
