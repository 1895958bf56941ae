"""Move an alias so that a crash at any point leaves the old state or the new one, and the next call knows which.

Under the lease, a move writes its intent to the registered model, then the alias, then ``previous``, reads both back,
writes the record, and deletes the intent. If the record cannot be written, the move remains valid and is reported as
unrecorded. The next call writes the record; a promotion waits for that, a rollback never does. The alias changes first,
so nothing that a crash leaves behind must ever be undone, which would need the right to delete aliases. If the alias
still names the old version, nothing has happened and the intent is dropped. If it names the new version, the rest is
done. At every point ``previous`` names a version that was champion before.

Every write to an alias follows directly after a ``check`` of the lease. A process that stalls between the two for
longer than the lease lasts can still write once. The registry cannot prevent this; the history then shows an
unexplained move.

Moves need only the registry: no run and no logged model of a version is read. Under MLflow's basic-auth they need EDIT
on the registered model, permission to create one (the lease), and EDIT on the experiment ``NAME.promotions`` for the
record.
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
    """Set the alias to this version. If the alias is champion, set ``previous`` to the former champion.

    If an earlier call began this move and only the rest is done here, it is returned as the move.

    Args:
        own_canary: The id of the caller's canary, which may be in progress.

    Raises:
        MoveError: The verdict is not to promote, the version does not exist or has the alias already, the alias is not
            where it was when the evidence was judged, or another canary is in progress.
        LeaseError: Another process is moving aliases.
        TrackingError: The registry failed.
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
                f"{name}: another process ended the canary of version {version}; nothing was moved; fix: see history"
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
    """Set champion to ``previous`` and previous to the former champion, so that a second call undoes the first. No gate
    is asked.

    If an earlier call began this rollback and only the rest is done here, it is returned as the move, and there is no
    second rollback. A canary in progress is ended first.

    Args:
        judged: The (champion, previous) to which the decision refers; None accepts any. If the aliases have changed
            since, nothing is moved.

    Raises:
        MoveError: There is no previous version; nothing was moved.
        LeaseError: Another process is moving aliases; nothing was moved.
        TrackingError: The registry failed.
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
            f"{name}: {intent.alias} was set to version {intent.to_version}, but is {named(aliases.get(intent.alias))}: another "
            "process moved it at the same moment; fix: see mlflow-finetune history, then call again"
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
