"""Record the decisions on a model's aliases: one MLflow run per decision, in the model's experiment
``NAME.promotions``.

Records are only added. The run of a decision may exist before the move, with its report, and then gets the record as
tags. A rollback creates its own run. A move that was made by hand has no run; it shows as a record that does not start
where the previous one ended.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from mlflow_finetune_plugin.errors import MoveError
from mlflow_finetune_plugin.promotion.moves.intent import REASON_LIMIT, Intent, MoveEvidence
from mlflow_finetune_plugin.store.names import (
    CHAMPION,
    INTENT_TAG,
    MOVE_TAG,
    MOVED_TAG,
    PROMOTIONS_OF_TAG,
    UNRECORDED_TAG,
)
from mlflow_finetune_plugin.store.people import who_moves

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import RegisteredModel

_PAGE = 500


@dataclass(frozen=True)
class Record:
    """A decision and its effect.

    Args:
        kind: promote, rollback, or unexplained for a move that was made without this package. ``when`` is then the time
            at which it was noticed.
        expected: As in Intent.
        is_moved: False for decisions that held or rejected.
        run_id: The run that holds the record; None for an unexplained move, and while the record could not be written.
    """

    id: str
    kind: str
    model: str
    alias: str
    from_version: str | None
    to_version: str | None
    previous: str | None
    expected: str | None
    is_moved: bool
    who: str
    when: str
    reason: str
    outcome: str | None
    policy_digest: str | None
    candidate_digest: str | None
    champion_digest: str | None
    evidence_run_id: str | None
    run_id: str | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def now() -> str:
    """Return the time as ISO 8601 in UTC, with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def promotions_experiment(client: MlflowClient, name: str) -> str:
    """Return the id of the experiment ``NAME.promotions``, and create it if it does not exist.

    Raises:
        MoveError: The experiment is deleted, or belongs to something else.
    """
    from mlflow.exceptions import MlflowException

    title = f"{name}.promotions"
    experiment = client.get_experiment_by_name(title)
    if experiment is None:
        try:
            return str(client.create_experiment(title, tags={PROMOTIONS_OF_TAG: name}))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            experiment = client.get_experiment_by_name(title)  # another was first
    if experiment is None or experiment.lifecycle_stage == "deleted":
        raise MoveError(
            f"the experiment {title!r} is deleted, and holds the record of every move; fix: mlflow experiments restore"
        )
    if experiment.tags.get(PROMOTIONS_OF_TAG) != name:
        raise MoveError(f"the experiment {title!r} is not of this package; fix: rename it")
    return str(experiment.experiment_id)


def check_decision_run(client: MlflowClient, name: str, run_id: str) -> None:
    """Check that the run can carry the record. Raises MoveError if it cannot."""
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if not _is_gone(error):
            raise
        raise MoveError(f"{name}: the decision's run {run_id} does not exist; fix: decide again") from error
    if run.info.lifecycle_stage == "deleted" or run.info.experiment_id != promotions_experiment(client, name):
        raise MoveError(
            f"{name}: the decision's run {run_id} is deleted, or not in the experiment {name}.promotions; fix: decide again"
        )


def record_decision(
    client: MlflowClient, name: str, version: str, *, alias: str = CHAMPION, evidence: MoveEvidence
) -> str:
    """Record a decision that moves nothing (hold, reject) and return the id of its run. MLflow's exceptions are passed
    on.
    """
    from uuid import uuid4

    expected = last_moved(client.get_registered_model(name).tags, alias)
    intent = Intent(
        id=uuid4().hex,
        kind="promote",
        alias=alias,
        from_version=evidence.champion,
        to_version=str(version),
        previous=None,
        expected=expected,
        who=who_moves(),
        when=now(),
        reason=evidence.reason[:REASON_LIMIT],
        evidence=evidence,
    )
    return write_record(client, name, intent, is_moved=False)


def write_record(client: MlflowClient, name: str, intent: Intent, *, is_moved: bool, note: str = "") -> str:
    """Write the record of this move, once however often it is called, and return the id of its run.

    The record goes to the decision's run. If that run has been deleted since, it goes to a new run that mentions this.
    """
    from mlflow.entities import RunTag
    from mlflow.exceptions import MlflowException

    experiment = promotions_experiment(client, name)
    tags = _tags(name, intent, is_moved=is_moved, note=note)
    decided = intent.evidence.run_id if intent.evidence is not None else None
    if decided is not None:
        try:
            client.log_batch(decided, tags=[RunTag(key, value) for key, value in tags.items()])
            return decided
        except MlflowException as error:
            if not _is_gone(error):
                raise
        tags = _tags(name, intent, is_moved=is_moved, note=f"{note} (the decision's run {decided} is gone)".strip())
    runs = client.search_runs([experiment], f"tags.`{MOVE_TAG}id` = '{intent.id}'", max_results=1)
    if runs:
        run = runs[0]
    else:
        started_ms = int(datetime.fromisoformat(intent.when).timestamp() * 1000)
        title = f"{intent.kind} {intent.alias} {intent.from_version or 'none'} -> {intent.to_version}"
        run = client.create_run(experiment, start_time=started_ms, tags=tags, run_name=title)
    if run.info.status != "FINISHED":
        client.set_terminated(run.info.run_id, "FINISHED")
    return str(run.info.run_id)


def record_of(client: MlflowClient, run_id: str) -> Record | None:
    """Return the record in a decision's run; None if the run has none or was deleted."""
    from mlflow.exceptions import MlflowException

    try:
        tags = client.get_run(run_id).data.tags
    except MlflowException as error:
        if not _is_gone(error):
            raise
        return None
    return _record(tags, run_id) if f"{MOVE_TAG}id" in tags else None


def last_moved(tags: Mapping[str, str], alias: str) -> str | None:
    """Return the version to which the last recorded move set the alias, from the registered model's tags."""
    text = tags.get(f"{MOVED_TAG}{alias}")
    return None if text is None else str(json.loads(text)["version"])


def unrecorded(tags: Mapping[str, str]) -> list[Intent]:
    """Return the moves whose record could not be written yet, from the registered model's tags."""
    return [Intent.from_json(value) for key, value in sorted(tags.items()) if key.startswith(UNRECORDED_TAG)]


def history(client: MlflowClient, name: str) -> list[Record]:
    """Return every record, newest first. Before a record that does not start where the previous one ended comes the
    unexplained move.

    Only reads. Call ``settle`` first, so that an interrupted move is reported as what it became.
    """
    model = client.get_registered_model(name)
    waiting = [_record(_tags(name, intent, is_moved=True, note=""), None) for intent in unrecorded(model.tags)]
    known = {record.id: record for record in waiting} | _recorded(client, name)
    records = sorted(known.values(), key=lambda record: record.when, reverse=True)
    entries = [] if INTENT_TAG in model.tags else _unexplained_now(model)
    for record in records:
        entries.append(record)
        if record.is_moved and record.from_version != record.expected:
            entries.append(_unexplained(name, record.alias, record.expected, record.from_version, record.when))
    return entries


def _recorded(client: MlflowClient, name: str) -> dict[str, Record]:
    experiment = client.get_experiment_by_name(f"{name}.promotions")
    if experiment is None:
        return {}
    by_id: dict[str, Record] = {}
    is_record = f"tags.`{MOVE_TAG}id` LIKE '%'"  # looks of a watch lie there, too, and are no moves
    token: str | None = None
    while True:
        page = client.search_runs([experiment.experiment_id], is_record, max_results=_PAGE, page_token=token)
        records = [_record(run.data.tags, run.info.run_id) for run in page]
        by_id |= {record.id: record for record in records if record.model == name}
        token = page.token
        if not token:
            return by_id


def _unexplained_now(model: RegisteredModel) -> list[Record]:
    """Return the aliases that do not name the version to which the last recorded move set them."""
    noticed_at = now()
    aliases = {CHAMPION, *(key.removeprefix(MOVED_TAG) for key in model.tags if key.startswith(MOVED_TAG))}
    pairs = [(alias, last_moved(model.tags, alias), model.aliases.get(alias)) for alias in sorted(aliases)]
    return [
        _unexplained(model.name, alias, expected, None if version is None else str(version), noticed_at)
        for alias, expected, version in pairs
        if expected != (None if version is None else str(version))
    ]


def _unexplained(name: str, alias: str, expected: str | None, to_version: str | None, when: str) -> Record:
    tags = {
        "kind": "unexplained",
        "model": name,
        "alias": alias,
        "from": expected,
        "to": to_version,
        "expected": expected,
        "moved": "true",
        "who": "unknown",
        "when": when,
        "reason": "moved by other means; the time is when it was seen",
    }
    return _record({f"{MOVE_TAG}{key}": value for key, value in tags.items() if value is not None}, None)


def _tags(name: str, intent: Intent, *, is_moved: bool, note: str) -> dict[str, str]:
    evidence = intent.evidence
    values: dict[str, str | None] = {
        "id": intent.id,
        "kind": intent.kind,
        "model": name,
        "alias": intent.alias,
        "from": intent.from_version,
        "to": intent.to_version,
        "previous": intent.previous,
        "expected": intent.expected,
        "moved": "true" if is_moved else "false",
        "who": intent.who,
        "when": intent.when,
        "reason": f"{intent.reason} {note}".strip(),
    }
    if evidence is not None:
        values |= {
            "outcome": evidence.outcome,
            "policy_digest": evidence.policy_digest,
            "candidate_digest": evidence.candidate_digest,
            "champion_digest": evidence.champion_digest,
            "evidence": evidence.run_id,
        }
    return {f"{MOVE_TAG}{key}": value for key, value in values.items() if value is not None}


def _record(run_tags: Mapping[str, str], run_id: str | None) -> Record:
    tags = {key.removeprefix(MOVE_TAG): value for key, value in run_tags.items() if key.startswith(MOVE_TAG)}
    return Record(
        id=tags.get("id", ""),
        kind=tags.get("kind", ""),
        model=tags.get("model", ""),
        alias=tags.get("alias", ""),
        from_version=tags.get("from"),
        to_version=tags.get("to"),
        previous=tags.get("previous"),
        expected=tags.get("expected"),
        is_moved=tags.get("moved") == "true",
        who=tags.get("who", ""),
        when=tags.get("when", ""),
        reason=tags.get("reason", ""),
        outcome=tags.get("outcome"),
        policy_digest=tags.get("policy_digest"),
        candidate_digest=tags.get("candidate_digest"),
        champion_digest=tags.get("champion_digest"),
        evidence_run_id=tags.get("evidence"),
        run_id=run_id,
    )


def _is_gone(error: Any) -> bool:
    """Return whether a run was deleted, permanently or not."""
    return error.error_code == "RESOURCE_DOES_NOT_EXIST" or (
        error.error_code in ("INVALID_PARAMETER_VALUE", "INVALID_STATE") and "active" in str(error)
    )
