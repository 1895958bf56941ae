"""Record a decision as a run with its report, and move the alias where the verdict is to promote."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from mlflow_finetune_plugin.errors import in_short
from mlflow_finetune_plugin.promotion.canary_trial import CanaryTrial, decide_by_canary
from mlflow_finetune_plugin.promotion.decision import Decision
from mlflow_finetune_plugin.promotion.error_rates.recording import record_tests
from mlflow_finetune_plugin.promotion.evidence.answers import ANSWERS_FILE, Sources, answers_json
from mlflow_finetune_plugin.promotion.moves.audit import promotions_experiment, record_decision
from mlflow_finetune_plugin.promotion.moves.intent import MoveEvidence
from mlflow_finetune_plugin.promotion.moves.move import promote_version
from mlflow_finetune_plugin.promotion.moves.settlement import Move
from mlflow_finetune_plugin.promotion.report import decision_json, decision_page
from mlflow_finetune_plugin.store.names import SIDES_TAG, VERDICT_TAG
from mlflow_finetune_plugin.store.registered_model import registry_faults

if TYPE_CHECKING:
    from mlflow import MlflowClient

_MARK = "\n\nGate: "
_LONGEST_DESCRIPTION = 5000

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RecordedDecision:
    """A recorded decision. ``move`` is None where nothing was moved; ``decision`` includes the outcome of a canary."""

    run_id: str
    move: Move | None
    decision: Decision


def carry_out(
    client: MlflowClient,
    decision: Decision,
    sources: Sources,
    *,
    run_id: str | None = None,
    trial: CanaryTrial | None = None,
) -> RecordedDecision:
    """Write the report of a decision to a run, and move the alias where the verdict is to promote.

    Args:
        client: The tracking server and registry.
        decision: The decision.
        sources: Where its evidence came from; answers that were measured are stored for later decisions.
        run_id: An existing run in the model's experiment of promotions; None creates one.
        trial: The canary before the move; None moves at once.

    Raises:
        LeaseError, MoveError, TrackingError: The report is written, and nothing was moved.
        KeyboardInterrupt, SystemExit: A signal ended the canary; its outcome is recorded first.
    """
    from mlflow.exceptions import MlflowException

    with registry_faults(decision.name):
        run_id = run_id or _decision_run(client, decision)
    interruption = None
    try:
        _write_report(client, run_id, decision, sources)
        record_tests(client, decision)
        if trial is not None and decision.verdict.outcome == "promote":
            report = partial(_write_report, client, run_id, sources=sources)
            evidence = _evidence(decision, run_id)
            decision, trial_result = decide_by_canary(client, decision, sources, evidence, trial, report)
            move, interruption = trial_result.move, trial_result.interruption
        else:
            move = _move(client, run_id, decision)
    except BaseException:
        end_run(client, run_id, "FAILED")
        raise
    is_stopped = move is None and interruption is not None and interruption.signal is not None
    end_run(client, run_id, "KILLED" if is_stopped else "FINISHED")
    try:
        _tag_version(client, decision, run_id)
    except MlflowException as error:  # the decision is recorded; the tag only points to it
        logger.warning("the version has no tag that points to its decision, run %s: %s", run_id, in_short(error))
    if is_stopped and interruption is not None:
        interruption.raise_again()
    return RecordedDecision(run_id, move, decision)


def _write_report(client: MlflowClient, run_id: str, decision: Decision, sources: Sources) -> None:
    with registry_faults(decision.name):
        client.log_text(run_id, decision_json(decision), "verdict.json")
        client.log_text(run_id, decision_page(decision), "report.html")
        if sources.measured:
            text = answers_json(sources.measured)
            client.log_text(run_id, text, ANSWERS_FILE)
            client.set_tag(run_id, SIDES_TAG, hashlib.sha256(text.encode()).hexdigest())
        _log_numbers(client, run_id, decision)


def _move(client: MlflowClient, run_id: str, decision: Decision) -> Move | None:
    name, number, evidence = decision.name, decision.candidate.number, _evidence(decision, run_id)
    if evidence.outcome == "promote":
        return promote_version(client, name, number, alias=decision.alias, evidence=evidence)
    with registry_faults(name):
        record_decision(client, name, number, alias=decision.alias, evidence=evidence)
    return None


def _evidence(decision: Decision, run_id: str) -> MoveEvidence:
    champion = decision.champion
    return MoveEvidence(
        outcome=decision.verdict.outcome,
        policy_digest=decision.policy.digest,
        reason=decision.verdict.reason,
        run_id=run_id,
        champion=champion.number if champion is not None else None,
        candidate_digest=decision.candidate.adapter_digest,
        champion_digest=champion.adapter_digest if champion is not None else None,
    )


def end_run(client: MlflowClient, run_id: str, status: str) -> None:
    """End the run. A server that does not answer now must not hide what was moved, or why nothing was."""
    from mlflow.exceptions import MlflowException

    try:
        client.set_terminated(run_id, status)
    except MlflowException as error:
        logger.warning("the decision's run %s could not be ended as %s: %s", run_id, status, in_short(error))


def _decision_run(client: MlflowClient, decision: Decision) -> str:
    experiment = promotions_experiment(client, decision.name)
    over = decision.champion.number if decision.champion is not None else "none"
    title = f"{decision.alias} {over} -> {decision.candidate.number}: {decision.verdict.outcome}"
    return str(client.create_run(experiment, run_name=title).info.run_id)


def _log_numbers(client: MlflowClient, run_id: str, decision: Decision) -> None:
    """Log each finding's estimate and interval as metrics, so that MLflow's tables compare decisions."""
    from mlflow_finetune_plugin.store.clients import metric_part

    for finding in decision.verdict.findings:
        if finding.interval is None:
            continue
        for end, value in (
            ("", finding.interval.value),
            ("_low", finding.interval.low),
            ("_high", finding.interval.high),
        ):
            client.log_metric(run_id, f"gate/{metric_part(finding.name)}{end}", value)


def _tag_version(client: MlflowClient, decision: Decision, run_id: str) -> None:
    name, number, verdict = decision.name, decision.candidate.number, decision.verdict
    client.set_model_version_tag(name, number, VERDICT_TAG, f"{verdict.outcome} for {decision.alias}, run {run_id}")
    before = str(client.get_model_version(name, number).description or "").partition(_MARK)[0]
    text = f"{before}{_MARK}{verdict.outcome} for {decision.alias}, {verdict.reason} (run {run_id})"
    client.update_model_version(name, number, description=text[:_LONGEST_DESCRIPTION])
