"""Record a check as a run with its report, and roll back where the verdict says so and the check may act."""

from __future__ import annotations

import hashlib
import logging
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlflow_finetune_plugin.errors import in_short
from mlflow_finetune_plugin.promotion.decision_run import end_run
from mlflow_finetune_plugin.promotion.evidence.answers import ANSWERS_FILE, WATCHED_TAGS, Sources, answers_json
from mlflow_finetune_plugin.promotion.evidence.proven_version import ProvenVersion
from mlflow_finetune_plugin.promotion.moves.audit import promotions_experiment
from mlflow_finetune_plugin.promotion.moves.move import roll_back
from mlflow_finetune_plugin.promotion.moves.settlement import Move
from mlflow_finetune_plugin.store.names import (
    SIDES_TAG,
    WATCH_CHAMPION_TAG,
    WATCH_METRIC,
    WATCH_MOVE_RUN_TAG,
    WATCH_OUTCOME_TAG,
    WATCH_REASON_TAG,
    WATCH_TAG,
)
from mlflow_finetune_plugin.store.registered_model import registry_faults
from mlflow_finetune_plugin.watch.check import WatchCheck
from mlflow_finetune_plugin.watch.report import check_json, check_page
from mlflow_finetune_plugin.watch.state import FILE

if TYPE_CHECKING:
    from mlflow import MlflowClient

_LONGEST_TAG = 1000

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RecordedCheck:
    """A recorded check. ``run_id`` is its run; ``move`` is the rollback, None where nothing was moved."""

    run_id: str
    move: Move | None


def record_check(client: MlflowClient, check: WatchCheck, sources: Sources, *, has_effect: bool) -> RecordedCheck:
    """Write the report of a check to a new run, and roll back where the verdict says so.

    Args:
        client: The tracking server and registry.
        check: The check.
        sources: Where its evidence came from; answers that were measured are stored for later checks.
        has_effect: Whether the champion may be rolled back.

    Raises:
        LeaseError, MoveError, TrackingError: Nothing was moved.
    """
    with registry_faults(check.watched.name):
        run_id = _check_run(client, check)
    try:
        _write_report(client, run_id, check, sources)
        move = _move(client, run_id, check) if has_effect and check.verdict.outcome == "roll back" else None
    except BaseException:
        end_run(client, run_id, "FAILED")
        raise
    end_run(client, run_id, "FINISHED")
    _tag_version(client, check, run_id, move)
    return RecordedCheck(run_id, move)


def _check_run(client: MlflowClient, check: WatchCheck) -> str:
    watched = check.watched
    versions = (watched.champion, watched.previous)
    adapters = [version.adapter_digest for version in versions if isinstance(version, ProvenVersion)]
    tags = {
        **dict(zip(WATCHED_TAGS, adapters, strict=False)),
        WATCH_CHAMPION_TAG: watched.champion.number,
        WATCH_REASON_TAG: check.verdict.reason[:_LONGEST_TAG],
    }
    experiment = promotions_experiment(client, watched.name)
    title = f"watch {watched.champion.number}: {check.verdict.outcome}"
    return str(client.create_run(experiment, run_name=title, tags=tags).info.run_id)


def _write_report(client: MlflowClient, run_id: str, check: WatchCheck, sources: Sources) -> None:
    with registry_faults(check.watched.name):
        client.log_text(run_id, check_json(check), "verdict.json")
        client.log_text(run_id, check_page(check), "report.html")
        client.log_text(run_id, check.state.to_json(), FILE)
        if sources.measured:
            text = answers_json(sources.measured)
            client.log_text(run_id, text, ANSWERS_FILE)
            client.set_tag(run_id, SIDES_TAG, hashlib.sha256(text.encode()).hexdigest())
        _log_numbers(client, run_id, check)
        # The outcome is written last, because the next check continues from a run that has it.
        client.set_tag(run_id, WATCH_OUTCOME_TAG, check.verdict.outcome)


def _log_numbers(client: MlflowClient, run_id: str, check: WatchCheck) -> None:
    """Log each finding's estimate, interval and counts, so that MLflow's tables compare checks."""
    from mlflow.entities import Metric

    from mlflow_finetune_plugin.store.clients import metric_part

    values: dict[str, float] = {}
    for finding in check.verdict.findings:
        name, interval = f"{WATCH_METRIC}{metric_part(finding.name)}", finding.interval
        if interval is not None:
            values |= {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
        numbers = {key: value for key, value in finding.details.items() if type(value) in (int, float)}
        values |= {f"{name}/{metric_part(key)}": float(value or 0) for key, value in numbers.items()}
    at = int(time.time() * 1000)
    client.log_batch(run_id, [Metric(name, value, at, 0) for name, value in values.items() if math.isfinite(value)])


def _move(client: MlflowClient, run_id: str, check: WatchCheck) -> Move:
    from mlflow.exceptions import MlflowException

    watched = check.watched
    assert isinstance(watched.previous, ProvenVersion)  # without one the verdict is never to roll back
    judged = (watched.champion.number, watched.previous.number)
    move = roll_back(client, watched.name, reason=f"watch, run {run_id}: {check.verdict.reason}", judged=judged)
    try:
        client.set_tag(run_id, WATCH_MOVE_RUN_TAG, move.run_id or "not recorded yet")
    except MlflowException as error:  # the move's reason names this run, so the link exists
        logger.warning("the check's run %s has no tag that points to its move: %s", run_id, in_short(error))
    return move


def _tag_version(client: MlflowClient, check: WatchCheck, run_id: str, move: Move | None) -> None:
    from mlflow.exceptions import MlflowException

    watched = check.watched
    effect = ", rolled back" if move is not None else ""
    try:
        text = f"{check.verdict.outcome}{effect}, {check.when}, run {run_id}"
        client.set_model_version_tag(watched.name, watched.champion.number, WATCH_TAG, text)
    except MlflowException as error:  # the check is recorded; the tag only points to it
        logger.warning("the version has no tag that points to its check, run %s: %s", run_id, in_short(error))
