"""Judge a canary, a candidate that answers a growing share of the requests: widen, wait, back or hold.

Every check tests for harm: failed answers, latency and people's votes, by tests that stay valid however often they are
repeated. A canary without harm widens when its step has
lasted long enough, it has given enough answers, and they show that it fails in no more than the bound allows. One that gets too
few answers for that holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mlflow_finetune_plugin.gate.canary_latency import CanaryLatency, judge_canary_latency
from mlflow_finetune_plugin.gate.canary_policy import CanaryPolicy
from mlflow_finetune_plugin.gate.criteria import Finding, FindingOutcome, JsonScalar
from mlflow_finetune_plugin.gate.statistics.failure_rate import Answered, e_above, failure_rate
from mlflow_finetune_plugin.gate.statistics.failures import FailureTest

Action = Literal["widen", "wait", "back", "hold"]

_LEAST_OF_USERS = 5.0
"""The evidence of too many failures that users must give who count once each: the failure of a single user gives 6, of one in two 3."""


@dataclass(frozen=True)
class CanaryLook:
    """The measurements at one check of a canary.

    Args:
        step: The current step, from 0.
        in_step_s: Seconds since the step began.
        step_answers: Answers of the canary since the step began.
        canary: The canary's answers since the canary began.
        champion: The champion's answers in the same time.
        first_answers: The answers of canary and champion that count each user once, which are compared; None means all.
        failures: The test of the failures so far, batch by batch.
        latency: The latencies; None where the policy sets no bounds.
        votes: The finding on people's votes; None without votes.
        left_out: Further failures of the canary, of API keys whose failures count as one. They never bring it back, because one client
            may cause them, and they keep it from widening.
    """

    step: int
    in_step_s: float
    step_answers: int
    canary: Answered
    champion: Answered
    failures: FailureTest
    latency: CanaryLatency | None = None
    votes: Finding | None = None
    first_answers: tuple[Answered, Answered] | None = None
    left_out: int = 0

    @property
    def tested(self) -> tuple[Answered, Answered]:
        return self.first_answers or (self.canary, self.champion)


@dataclass(frozen=True)
class CanaryVerdict:
    """What to do with the canary, and the findings that are the reason."""

    action: Action
    findings: tuple[Finding, ...]

    @property
    def reason(self) -> str:
        decisive = {"back": "reject", "hold": "hold"}.get(self.action, "pass")
        return "; ".join(
            f"{finding.name}: {finding.reason}" for finding in self.findings if finding.outcome == decisive
        )


def judge_canary(policy: CanaryPolicy, look: CanaryLook) -> CanaryVerdict:
    """Return ``back`` if any finding shows harm, else widen, wait or hold by the time and the answers of the step."""
    harms = [_compared(policy, look), _bounded(policy, look)]
    if look.latency is not None:
        harms += judge_canary_latency(look.latency)
    if look.votes is not None:
        harms.append(_as_canary(look.votes, "reject" if look.votes.outcome == "reject" else "noted"))
    step = _step(policy, look)
    if any(harm.outcome == "reject" for harm in harms):
        return CanaryVerdict("back", tuple(harms))
    action: Action = "wait"
    if look.in_step_s >= policy.patience * policy.step_s and (step.outcome == "hold" or _is_open(harms)):
        action = "hold"
    elif step.outcome == "pass" and not _is_open(harms):
        action = "widen"
    return CanaryVerdict(action, (*harms, step))


def _is_open(harms: list[Finding]) -> bool:
    return any(harm.outcome == "hold" for harm in harms)


def _compared(policy: CanaryPolicy, look: CanaryLook) -> Finding:
    evidence = look.failures.e_worse
    is_worse = evidence >= policy.boundary
    canary, champion = look.tested
    reason = f"{canary} answers failed, of the champion's {champion}"
    reason += f"{_each_user_once(look)}: evidence of more {evidence:.3g} of {policy.boundary:.3g}"
    details: dict[str, JsonScalar] = {
        "answers": canary.answers,
        "failed": canary.failed,
        "champion_answers": champion.answers,
        "champion_failed": champion.failed,
        "e_worse": evidence,
        "boundary": policy.boundary,
    }
    return Finding("canary failures", "reject" if is_worse else "pass", reason, details=details)


def _bounded(policy: CanaryPolicy, look: CanaryLook) -> Finding:
    """Compare the canary's failures with the policy's bound, all of them: a canary that only fails is noticed with one user too.

    If both sides fail, the cause is not the canary: it neither widens nor goes back. Any evidence against the champion
    is enough for that, because an outage pushes the two sides past the bound by different margins. The same holds where the
    evidence is weak if each user counts once: a few users, who stay on the canary's side, may then cause most of its failures.
    """
    bound = policy.failures_at_most
    evidence, of_champion = e_above(look.canary, bound), e_above(look.champion, bound)
    of_users = e_above(look.tested[0], bound)
    reason = f"{look.canary} answers failed: evidence of more than {bound:.3g} {evidence:.3g} of {policy.boundary:.3g}"
    details: dict[str, JsonScalar] = {"e_above": evidence, "e_above_champion": of_champion, "boundary": policy.boundary}
    details["e_above_users"] = of_users
    outcome: FindingOutcome = "pass"
    if evidence >= policy.boundary and of_champion > 1:
        outcome, reason = "hold", f"{reason}, and some of the champion's {look.champion}; fix: find out why both fail"
    elif evidence >= policy.boundary and of_users < _LEAST_OF_USERS:
        outcome = "hold"
        reason += f", and {look.tested[0]} where each user counts once; fix: find out whose requests fail"
    elif evidence >= policy.boundary:
        outcome = "reject"
    return Finding("canary failure bound", outcome, reason, bound, details=details)


def _each_user_once(look: CanaryLook) -> str:
    return "" if look.tested == (look.canary, look.champion) else " (each user counts once)"


def _step(policy: CanaryPolicy, look: CanaryLook) -> Finding:
    share = f"step {look.step + 1} of {len(policy.steps)} ({policy.steps[look.step]:g} %)"
    progress = f"{share}: {look.step_answers:,} answers in {look.in_step_s:.0f} s"
    has_answers = look.step_answers >= policy.least_answers
    if look.in_step_s < policy.step_s or not has_answers:
        shortfall = f"{progress}; the step needs {policy.least_answers:,} in {policy.step_s:g} s"
        fix = "send more traffic, or lower --least-answers"
    else:
        bound = policy.failures_at_most
        every = look.canary + Answered(look.left_out, look.left_out)
        highest = failure_rate(every, at_most=bound, alpha=policy.alpha).rate.high
        shown = f"{every} answers failed, so up to {highest:.2g} of all may"
        if highest <= bound:
            return Finding("canary step", "pass", f"{progress}; {shown}", bound)
        shortfall = f"{progress}; {shown}, and {bound:g} is allowed"
        fix = "send more traffic, or raise --failures-at-most"
    if look.in_step_s >= policy.patience * policy.step_s:
        reason = f"{shortfall}; it has lasted {policy.patience} times as long as a step; fix: {fix}"
        return Finding("canary step", "hold", reason)
    return Finding("canary step", "noted", shortfall)


def _as_canary(finding: Finding, outcome: FindingOutcome) -> Finding:
    return Finding(
        f"canary {finding.name}",
        outcome,
        finding.reason,
        finding.bound,
        finding.interval,
        details=finding.details,
    )
