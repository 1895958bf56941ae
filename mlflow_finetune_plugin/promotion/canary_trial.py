"""A decision to promote goes through a canary first, and says in the end what came of that."""

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
from mlflow_finetune_plugin.promotion.answers import Sources
from mlflow_finetune_plugin.promotion.canary.course import CanaryCourse, CanaryStep
from mlflow_finetune_plugin.promotion.canary.interruption import Interruption
from mlflow_finetune_plugin.promotion.canary.run import CanaryPlan, leave, run_canary
from mlflow_finetune_plugin.promotion.collect import collect
from mlflow_finetune_plugin.promotion.decision import Decision
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
    """How a decision is to be tried; ``say`` is told each step."""

    policy: CanaryPolicy
    say: Say


@dataclass(frozen=True)
class TrialResult:
    """``move``: None where nothing was moved; ``interruption``: the signal that ended it, if one did."""

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
    """The decision with the canary's findings and outcome, which ``report`` is given before any move.

    ``evidence``: with the decision's run. Raises as ``carry_out_canary``.
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
        tell=lambda step, told: _log_step(client, run_id, step, told),
    )

    def conclude(course: CanaryCourse) -> MoveEvidence:
        tried = _with_course(decision, course)
        report(tried)
        return replace(evidence, outcome=tried.verdict.outcome, reason=tried.verdict.reason)

    tried = carry_out_canary(client, plan, trial.say, conclude)
    return _with_course(decision, tried.course), tried


def carry_out_canary(
    client: MlflowClient, plan: CanaryPlan, say: Say, conclude: Callable[[CanaryCourse], MoveEvidence]
) -> TrialResult:
    """The canary, then the move or the record that there is none. ``conclude`` gives the evidence for either.

    Raises as ``run_canary`` and ``promote_version``; then the split is put back, if the registry lets us.
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
            say(f"{error}; tried again")
            time.sleep(1)


def _close(client: MlflowClient, name: str, course: CanaryCourse, say: Say) -> None:
    """All is recorded: the state goes, and before it, where the alias was moved, the split and the alias ``canary``."""
    if course.outcome == "promote":
        leave(client, name, course.state, say, is_closed=True)
        return
    try:
        with registry_faults(name), Lease(client, name) as lease:
            close_canary(client, lease, course.state)
    except FinetuneError as error:  # split and alias are back; what is left is a tag that the next call takes away
        logger.warning("the canary's tag is left for the next call: %s", error)


def _with_course(decision: Decision, course: CanaryCourse) -> Decision:
    verdict = Verdict(course.outcome, (*decision.verdict.findings, *course.findings), decision.verdict.policy_digest)
    return replace(decision, verdict=verdict, notes=(*decision.notes, *course.notes), canary=course)


def _votes(decision: Decision, sources: Sources) -> Finding | None:
    """None where nobody voted between the two."""
    policy = decision.policy.policy.votes or VotesPolicy.model_validate({})
    asked = GatePolicy.model_validate({"gain": None, "votes": {**policy.model_dump(), "required": True}})
    try:
        votes = collect(asked, decision.candidate, decision.champion, sources, lambda text: None).evidence.votes
    except FinetuneError as error:  # who cannot be read says nothing for or against; it is told
        return Finding("votes", "noted", f"could not be read: {error}")
    return None if votes is None else judge_votes(policy, votes)


def _log_step(client: MlflowClient, run_id: str, step: int, told: CanaryStep) -> None:
    from mlflow.exceptions import MlflowException

    try:
        for key, value in told.metrics():
            client.log_metric(run_id, key, value, step=step)
    except MlflowException as error:  # the report tells the steps as well
        logger.warning("step %d of the canary is not in the run's metrics: %s", step, in_short(error))
