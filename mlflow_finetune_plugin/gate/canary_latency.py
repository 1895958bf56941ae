"""Judge the latency of a canary by tests that stay valid however often they are repeated."""

from __future__ import annotations

from dataclasses import dataclass

from mlflow_finetune_plugin.gate.criteria import Finding, FindingOutcome, JsonScalar
from mlflow_finetune_plugin.gate.policy import LatencyPolicy
from mlflow_finetune_plugin.gate.statistics.failure_rate import Answered, e_above
from mlflow_finetune_plugin.gate.statistics.failures import FailureTest
from mlflow_finetune_plugin.gate.statistics.latency_quantile import SLOW_SHARE, over_budget
from mlflow_finetune_plugin.store.latency_counts import LatencyCounts


@dataclass(frozen=True)
class CanaryLatency:
    """The latencies at one check of a canary.

    Args:
        policy: The bounds.
        canary: The canary's answers since the canary began.
        champion: The champion's answers in the same time.
        slow_canary: The canary's answers in the windows that were compared, with the slow ones as failed.
        slow_champion: The champion's in the same windows.
        slower: The test of these, window by window.
    """

    policy: LatencyPolicy
    canary: LatencyCounts
    champion: LatencyCounts
    slow_canary: Answered
    slow_champion: Answered
    slower: FailureTest


def judge_canary_latency(latency: CanaryLatency) -> list[Finding]:
    """Return one finding for each bound. Each has its own error ``alpha``; what is not shown to be too slow passes."""
    findings, policy = [], latency.policy
    if policy.p95_ms is not None:
        findings.append(_over_budget(latency, policy.p95_ms))
    if policy.over_champion is not None:
        findings.append(_over_champion(latency, policy.over_champion))
    return findings


def _over_budget(latency: CanaryLatency, budget_ms: float) -> Finding:
    """Compare the canary's latencies with the budget. If the champion exceeds it too, the cause is not the canary."""
    name, boundary = "canary latency p95", 1 / latency.policy.alpha
    if not latency.canary.total:
        return Finding(name, "noted", "no router has reported latencies of the canary", budget_ms)
    canary, champion = (over_budget(side, budget_ms) for side in (latency.canary, latency.champion))
    evidence, of_champion = e_above(canary, SLOW_SHARE), e_above(champion, SLOW_SHARE)
    details: dict[str, JsonScalar] = {
        "p95_ms": latency.canary.quantile_ms(1 - SLOW_SHARE),
        "e_above": evidence,
        "e_above_champion": of_champion,
        "boundary": boundary,
    }
    reason = f"p95 {details['p95_ms']:g} ms, {canary} answers took longer than the budget, {budget_ms:g} ms"
    reason += f": evidence of more than {SLOW_SHARE:g} {evidence:.3g} of {boundary:.3g}"
    outcome: FindingOutcome = "pass"
    if evidence >= boundary and of_champion > 1:
        outcome, reason = "hold", f"{reason}, and so did {champion} of the champion's; fix: find out why both are slow"
    elif evidence >= boundary:
        outcome = "reject"
    return Finding(name, outcome, reason, budget_ms, details=details)


def _over_champion(latency: CanaryLatency, times: float) -> Finding:
    name, boundary, evidence = "canary latency over champion", 1 / latency.policy.alpha, latency.slower.e_worse
    canary, champion = latency.slow_canary, latency.slow_champion
    if not canary.answers:
        return Finding(name, "noted", "no router has reported enough latencies of both versions", times)
    reason = f"{canary} answers took {times:g} times as long as the champion's slow ones, of which it had {champion}"
    reason += f": evidence of more {evidence:.3g} of {boundary:.3g}"
    details: dict[str, JsonScalar] = {
        "answers": canary.answers,
        "slow": canary.failed,
        "champion_answers": champion.answers,
        "champion_slow": champion.failed,
        "e_slower": evidence,
        "boundary": boundary,
    }
    return Finding(name, "reject" if evidence >= boundary else "pass", reason, times, details=details)
