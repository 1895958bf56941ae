"""Try a candidate on a growing share of the requests while no regression is shown.

The routers follow the split that is set here and report to the registry how each version answered. Every check reads
these reports and lets ``gate.canary`` decide what follows. When the registry does not answer, the canary tries again.
It gives up after the time without a heartbeat at which other processes would consider it dead.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from mlflow_finetune_plugin.errors import MoveError, TrackingError
from mlflow_finetune_plugin.gate.canary import CanaryLook, CanaryVerdict, judge_canary
from mlflow_finetune_plugin.gate.canary_policy import CanaryPolicy
from mlflow_finetune_plugin.gate.criteria import Finding
from mlflow_finetune_plugin.gate.policy import LatencyPolicy
from mlflow_finetune_plugin.gate.statistics.failure_rate import Answered
from mlflow_finetune_plugin.promotion.canary.answers import CanaryAnswers
from mlflow_finetune_plugin.promotion.canary.course import CanaryCourse, CanaryStep
from mlflow_finetune_plugin.promotion.canary.interruption import Interruption
from mlflow_finetune_plugin.promotion.moves.audit import record_of
from mlflow_finetune_plugin.promotion.moves.canary_moves import (
    begin_canary,
    close_canary,
    disturbance,
    keep_alive,
    put_back,
    widen_canary,
)
from mlflow_finetune_plugin.promotion.moves.canary_state import DEAD_S, HEARTBEAT_S, CanaryState, read_state
from mlflow_finetune_plugin.promotion.moves.intent import MoveEvidence
from mlflow_finetune_plugin.promotion.moves.lease import Lease
from mlflow_finetune_plugin.promotion.moves.settlement import settle_held
from mlflow_finetune_plugin.store.registered_model import read_model, registry_faults

if TYPE_CHECKING:
    from mlflow import MlflowClient

_CHECK_S = 5.0
_VOTES_S = 60.0
_END_S = 60.0
"""How long the end is retried while another process has the lease or the registry does not answer."""


@dataclass(frozen=True)
class CanaryPlan:
    """What a canary needs.

    Args:
        name: The registered model.
        candidate: The version that is tried.
        champion: The version that answers the other requests.
        policy: Steps and limits.
        evidence: The gate's evidence for the promotion.
        latency: The latency limits of the gate's policy; None means no limits.
        votes: Returns the finding of the votes as they are now; None where there are none.
        on_step: Called with the number, from 1, and the step at the end of each step.
    """

    name: str
    candidate: str
    champion: str
    policy: CanaryPolicy
    evidence: MoveEvidence
    latency: LatencyPolicy | None = None
    votes: Callable[[], Finding | None] = lambda: None
    on_step: Callable[[int, CanaryStep], None] = lambda number, step: None


def run_canary(
    client: MlflowClient, plan: CanaryPlan, interruption: Interruption, say: Callable[[str], None]
) -> CanaryCourse:
    """Run the canary from the first step to the end.

    Where the outcome is to promote, the split and the alias ``canary`` stay for the move; otherwise they are restored
    here. In both cases the caller calls ``close_canary`` when all is recorded.

    Raises:
        GateError, LeaseError, MoveError, TrackingError: The split is restored first, if the registry answers.
    """
    with registry_faults(plan.name), Lease(client, plan.name) as lease:
        settled = settle_held(client, lease)
        if settled is not None:
            say(settled.text)
        answers = CanaryAnswers(client, plan.name, plan.candidate, plan.champion, plan.latency)
        state = begin_canary(client, lease, plan.candidate, plan.policy, plan.evidence)
    canary = _Canary(client, plan, interruption, say, state, answers)
    try:
        course = canary.follow()
    except BaseException:
        leave(client, plan.name, canary.state, say, is_closed=True)
        raise
    if course.outcome != "promote":
        leave(client, plan.name, canary.state, say)
    return course


def leave(
    client: MlflowClient, name: str, state: CanaryState, say: Callable[[str], None], *, is_closed: bool = False
) -> None:
    """Restore split and alias where this canary is still under way, and report it.

    This is retried for a minute. After that the next command does it, and ``say`` receives that message.

    Args:
        client: The tracking server and registry.
        name: The registered model.
        state: The canary.
        say: Receives the outcome.
        is_closed: Also remove the canary's state from the registered model.
    """
    until = time.monotonic() + _END_S
    while True:
        try:
            with registry_faults(name), Lease(client, name) as lease:
                current = read_state(read_model(client, name)[1])
                if current is not None and current.id == state.id:
                    say(f"canary ended: {put_back(client, lease, state)}")
                    if is_closed:
                        close_canary(client, lease, state)
            return
        except (TrackingError, MoveError) as error:
            if time.monotonic() > until:
                say(
                    f"the split could not be restored: {error}; the next command does it, "
                    f"for example mlflow-finetune history {name}"
                )
                return
            time.sleep(1)


@dataclass
class _Canary:
    client: MlflowClient
    plan: CanaryPlan
    interruption: Interruption
    say: Callable[[str], None]
    state: CanaryState
    answers: CanaryAnswers
    steps: list[CanaryStep] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._check_s = min(_CHECK_S, self.plan.policy.step_s / 5)
        self._votes_s = self._heartbeat_s = self._checked_s = time.monotonic()
        self._votes: Finding | None = None
        self._begin_step()

    def follow(self) -> CanaryCourse:
        while True:
            self.interruption.wait(self._check_s)
            if self.interruption.signal is not None:
                return self._ended(
                    "hold", f"stopped by signal {self.interruption.signal} in step {self.state.step + 1}"
                )
            try:
                with registry_faults(self.plan.name):
                    course = self._check()
            except (TrackingError, MoveError) as error:
                if time.monotonic() - self._checked_s > DEAD_S:
                    raise
                self.say(f"canary: the registry cannot be read now, trying again: {error}")
                continue
            self._checked_s = time.monotonic()
            if course is not None:
                return course

    def _check(self) -> CanaryCourse | None:
        """Check the canary once. Returns its course when it has ended, else None."""
        change = disturbance(self.client, self.plan.name, self.state)
        if change is not None:
            with Lease(self.client, self.plan.name):  # read again when no other process can be in the middle of a move
                change = disturbance(self.client, self.plan.name, self.state)
        if change is not None:
            return self._disturbed(change)
        now_s = time.monotonic()
        if now_s - self._heartbeat_s >= HEARTBEAT_S:
            keep_alive(self.client, self.plan.name, self.state)
            self._heartbeat_s = now_s
            self._report_progress()
        self.answers.read()
        if now_s - self._votes_s >= _VOTES_S:
            self._votes, self._votes_s = self.plan.votes(), now_s
        verdict = judge_canary(self.plan.policy, self._evidence())
        if verdict.action == "wait":
            return None
        is_last = self.state.step + 1 == len(self.plan.policy.steps)
        if verdict.action == "widen" and not is_last:
            with Lease(self.client, self.plan.name) as lease:
                wider = widen_canary(self.client, lease, self.state)
            self._end_step()
            self.state = wider
            self._begin_step()
            return None
        return self._judged(verdict)

    def _report_progress(self) -> None:
        evidence, policy = self._evidence(), self.plan.policy
        self.say(
            f"canary: step {evidence.step + 1}: {evidence.step_answers:,} of at least {policy.least_answers:,} "
            f"answers, {evidence.in_step_s:.0f} of at least {policy.step_s:.0f} s; gives up after "
            f"{policy.patience * policy.step_s:.0f} s"
        )

    def _evidence(self) -> CanaryLook:
        return CanaryLook(
            step=self.state.step,
            in_step_s=time.monotonic() - self._step_s,
            step_answers=self.answers.canary.answers - self._at_step[0].answers,
            canary=self.answers.canary,
            champion=self.answers.champions,
            first_answers=self.answers.first_answers,
            left_out=self.answers.left_out,
            failures=self.answers.failures,
            latency=self.answers.latencies.evidence,
            votes=self._votes,
        )

    def _begin_step(self) -> None:
        self._step_s, self._began_s = time.monotonic(), time.time()
        self._at_step: tuple[Answered, Answered] = (self.answers.canary, self.answers.champions)
        self.say(
            f"canary: version {self.state.candidate} answers {self.state.share:g} % of the requests, step "
            f"{self.state.step + 1} of {len(self.state.steps)}"
        )

    def _end_step(self) -> None:
        canary, champion = (
            Answered(now.answers - then.answers, now.failed - then.failed)
            for now, then in zip((self.answers.canary, self.answers.champions), self._at_step, strict=True)
        )
        p95_ms, champion_p95_ms = (
            counts.quantile_ms(0.95) if counts.total else None
            for counts in (self.answers.latencies.total(0), self.answers.latencies.total(1))
        )
        step = CanaryStep(
            share=self.state.share,
            seconds=round(time.monotonic() - self._step_s, 1),
            canary=canary,
            champion=champion,
            e_worse=self.answers.failures.e_worse,
            p95_ms=p95_ms,
            champion_p95_ms=champion_p95_ms,
        )
        self.steps.append(step)
        silent = self.answers.silent(self._began_s)
        if silent:
            self.notes.append(f"canary at {step.share:g} %: no new reports from {', '.join(silent)}")
        self.say(f"canary: {step.text}")
        self.plan.on_step(len(self.steps), step)

    def _judged(self, verdict: CanaryVerdict) -> CanaryCourse:
        self._end_step()
        outcomes: dict[str, Literal["promote", "hold", "reject"]] = {"widen": "promote", "back": "reject"}
        outcome = outcomes.get(verdict.action, "hold")
        return CanaryCourse(self.state, tuple(self.steps), outcome, verdict.findings, tuple(self.notes))

    def _disturbed(self, change: str) -> CanaryCourse:
        record = record_of(self.client, self.state.run_id) if self.state.run_id is not None else None
        if record is not None and record.outcome == "reject":
            return self._ended("reject", record.reason)
        return self._ended("hold", change)

    def _ended(self, outcome: Literal["hold", "reject"], reason: str) -> CanaryCourse:
        self._end_step()
        finding = Finding("canary", outcome, reason)
        return CanaryCourse(self.state, tuple(self.steps), outcome, (finding,), tuple(self.notes))
