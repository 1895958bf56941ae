"""Try a decision to promote with a canary, and add the canary's outcome to the decision."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mlflow_finetune_plugin.errors import FinetuneError, LeaseError, in_short
from mlflow_finetune_plugin.gate.canary_policy import CanaryPolicy
from mlflow_finetune_plugin.gate.criteria import Finding, judge_votes
from mlflow_finetune_plugin.gate.policy import GatePolicy, VotesPolicy
from mlflow_finetune_plugin.gate.verdict import Verdict
from mlflow_finetune_plugin.promotion.canary.course import CanaryCourse, CanaryStep
from mlflow_finetune_plugin.promotion.canary.interruption import Interruption
from mlflow_finetune_plugin.promotion.canary.run import CanaryPlan, leave, run_canary
from mlflow_finetune_plugin.promotion.decision import Decision
from mlflow_finetune_plugin.promotion.evidence.answers import Sources
from mlflow_finetune_plugin.promotion.evidence.collection import collect
from mlflow_finetune_plugin.promotion.moves.canary_moves import close_canary, record_canary
from mlflow_finetune_plugin.promotion.moves.intent import MoveEvidence
from mlflow_finetune_plugin.promotion.moves.lease import Lease
from mlflow_finetune_plugin.promotion.moves.move import promote_version
from mlflow_finetune_plugin.promotion.moves.settlement import Move
from mlflow_finetune_plugin.store.registered_model import registry_faults

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

_LEASE_S = 60.0
Say = Callable[[str], None]


@dataclass(frozen=True)
class CanaryTrial:
    """How a decision is tried. ``say`` receives a line at each step."""

    policy: CanaryPolicy
    say: Say


@dataclass(frozen=True)
class TrialResult:
    """What a canary led to.

    ``move`` is None where nothing was moved; ``interruption`` holds the signal that ended it, if any.
    """

    course: CanaryCourse
    move: Move | None
    interruption: Interruption


def decide_by_canary(
    client: MlflowClient,
    decision: Decision,
    sources: Sources,
    evidence: MoveEvidence,
    trial: CanaryTrial,
    report: Callable[[Decision], None],
) -> tuple[Decision, TrialResult]:
    """Run the canary, and return the decision with the canary's findings and outcome.

    Args:
        client: The tracking server and registry.
        decision: A decision to promote.
        sources: Where newer votes come from.
        evidence: The evidence for the move, with the decision's run.
        trial: How the canary runs.
        report: Writes the decision's report; called before any move.

    Raises:
        The errors of ``carry_out_canary``.
    """
    champion = decision.champion
    assert champion is not None
    run_id = str(evidence.run_id)
    plan = CanaryPlan(
        name=decision.name,
        candidate=decision.candidate.number,
        champion=champion.number,
        policy=trial.policy,
        evidence=evidence,
        latency=decision.policy.policy.latency,
        votes=lambda: _votes(decision, sources),
        on_step=lambda number, step: _log_step(client, run_id, number, step),
    )

    def conclude(course: CanaryCourse) -> MoveEvidence:
        final = _with_course(decision, course)
        report(final)
        return replace(evidence, outcome=final.verdict.outcome, reason=final.verdict.reason)

    result = carry_out_canary(client, plan, trial.say, conclude)
    return _with_course(decision, result.course), result


def carry_out_canary(
    client: MlflowClient, plan: CanaryPlan, say: Say, conclude: Callable[[CanaryCourse], MoveEvidence]
) -> TrialResult:
    """Run the canary, then move the alias or record that it was not moved.

    Args:
        client: The tracking server and registry.
        plan: The canary.
        say: Receives a line at each step.
        conclude: Returns the evidence for the move or the record.

    Raises:
        The errors of ``run_canary`` and ``promote_version``. The split is restored first, if the registry answers.
    """
    with Interruption() as interruption:
        course = run_canary(client, plan, interruption, say)
        try:
            evidence, move = conclude(course), None
            if course.outcome == "promote":
                move = _promote(client, plan, course, evidence, say)
            else:
                with registry_faults(plan.name):
                    record_canary(client, plan.name, course.state, evidence)
        except BaseException:
            leave(client, plan.name, course.state, say, is_closed=True)
            raise
        _close(client, plan.name, course, say)
    return TrialResult(course, move, interruption)


def _promote(client: MlflowClient, plan: CanaryPlan, course: CanaryCourse, evidence: MoveEvidence, say: Say) -> Move:
    until = time.monotonic() + _LEASE_S
    while True:
        try:
            return promote_version(client, plan.name, plan.candidate, evidence=evidence, own_canary=course.state.id)
        except LeaseError as error:
            if time.monotonic() > until:
                raise
            say(f"{error}; trying again")
            time.sleep(1)


def _close(client: MlflowClient, name: str, course: CanaryCourse, say: Say) -> None:
    """Remove the canary's state once all is recorded; after a move, restore the split and the alias first."""
    if course.outcome == "promote":
        leave(client, name, course.state, say, is_closed=True)
        return
    try:
        with registry_faults(name), Lease(client, name) as lease:
            close_canary(client, lease, course.state)
    except FinetuneError as error:  # the split is restored; only a tag remains, which the next call removes
        logger.warning("the canary's tag could not be removed; the next command removes it: %s", error)


def _with_course(decision: Decision, course: CanaryCourse) -> Decision:
    verdict = Verdict(course.outcome, (*decision.verdict.findings, *course.findings), decision.verdict.policy_digest)
    return replace(decision, verdict=verdict, notes=(*decision.notes, *course.notes), canary=course)


def _votes(decision: Decision, sources: Sources) -> Finding | None:
    """Judge the votes between the two versions; None where there are none."""
    policy = decision.policy.policy.votes or VotesPolicy.model_validate({})
    votes_only = GatePolicy.model_validate({"gain": None, "votes": {**policy.model_dump(), "required": True}})
    try:
        votes = collect(votes_only, decision.candidate, decision.champion, sources, lambda text: None).evidence.votes
    except FinetuneError as error:  # unreadable votes decide nothing, and the finding shows it
        return Finding("votes", "noted", f"could not be read: {error}")
    return None if votes is None else judge_votes(policy, votes)


def _log_step(client: MlflowClient, run_id: str, number: int, step: CanaryStep) -> None:
    from mlflow.exceptions import MlflowException

    try:
        for key, value in step.metrics():
            client.log_metric(run_id, key, value, step=number)
    except MlflowException as error:  # the report holds the steps as well
        logger.warning("step %d of the canary is not in the run's metrics: %s", number, in_short(error))
