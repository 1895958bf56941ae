"""Judge the latency of a candidate by bounds on its 95th percentile that hold at all times."""

from __future__ import annotations

from functools import partial

from mlflow_finetune_plugin.evaluation.results import Interval
from mlflow_finetune_plugin.gate.criteria import Finding, FindingOutcome, JsonScalar, missing, more_needed, shown
from mlflow_finetune_plugin.gate.evidence import Evidence, Latency
from mlflow_finetune_plugin.gate.policy import LatencyPolicy
from mlflow_finetune_plugin.gate.statistics.latency_quantile import (
    SLOW_SHARE,
    answers_still_needed,
    p95_interval,
    p95_ratio,
)

_TIME_IT = "--endpoint URL times it, or serve it until a router has reported enough answers"


def judge_latency(policy: LatencyPolicy, evidence: Evidence) -> list[Finding]:
    """Return one finding for each bound: pass if the interval is within it, reject if it is above it, else hold.

    Each bound has its own error ``alpha``, over all times. Without a champion the comparison with it is only noted.
    """
    findings = []
    if policy.p95_ms is not None:
        findings.append(_within_budget(policy, policy.p95_ms, evidence.latency))
    if policy.over_champion is not None and evidence.has_champion:
        findings.append(_over_champion(policy, policy.over_champion, evidence.latency))
    elif policy.over_champion is not None:
        findings.append(Finding("latency over champion", "noted", "there is no champion to be slower than"))
    return findings


def latency_details(latency: Latency) -> dict[str, JsonScalar]:
    """Return the numbers of both sides for the report."""
    details: dict[str, JsonScalar] = {
        "candidate_p95_ms": latency.candidate.quantile_ms(1 - SLOW_SHARE),
        "candidate_answers": latency.candidate.total,
        "champion_p95_ms": None,
    }
    if latency.champion is not None:
        details["champion_p95_ms"] = latency.champion.quantile_ms(1 - SLOW_SHARE)
        details["champion_answers"] = latency.champion.total
    return details


def _within_budget(policy: LatencyPolicy, budget_ms: float, latency: Latency | None) -> Finding:
    name = "latency p95"
    if latency is None:
        return missing(name, "latency was not measured", budget_ms, _TIME_IT)
    measure = partial(p95_interval, latency.candidate, alpha=policy.alpha)
    interval, answers = measure(), latency.candidate.total
    estimate = f"p95 {shown(interval)} ms of {answers:,} answers"
    finding = partial(Finding, name, bound=budget_ms, interval=interval, details=latency_details(latency))
    match _compared(interval, budget_ms):
        case "pass":
            return finding("pass", f"{estimate}: within the budget, {budget_ms:g} ms")
        case "reject":
            return finding("reject", f"{estimate}: above the budget, {budget_ms:g} ms")
    needed = answers_still_needed(lambda repeats: _compared(measure(repeats=repeats), budget_ms) != "hold", answers)
    reason = f"{estimate}: not shown to be within the budget, {budget_ms:g} ms{more_needed(needed, 'answers')}"
    return finding("hold", reason, still_needed=needed, still_needed_unit="answers")


def _over_champion(policy: LatencyPolicy, times: float, latency: Latency | None) -> Finding:
    name = "latency over champion"
    if latency is None:
        return missing(name, "latency was not measured", times, _TIME_IT)
    if latency.champion is None:
        return missing(name, "the champion's latency was not measured", times, _TIME_IT)
    measure = partial(p95_ratio, latency.candidate, latency.champion, alpha=policy.alpha)
    ratio, answers = measure(), min(latency.candidate.total, latency.champion.total)
    details = latency_details(latency)
    sides = f"p95 {details['candidate_p95_ms']:g} ms, of the champion's {details['champion_p95_ms']:g} ms"
    estimate = f"{sides}: {shown(ratio)} times as long, of {answers:,} answers of each"
    finding = partial(Finding, name, bound=times, interval=ratio, details=details)
    match _compared(ratio, times):
        case "pass":
            return finding("pass", f"{estimate}: within {times:g} times")
        case "reject":
            return finding("reject", f"{estimate}: above {times:g} times")
    needed = answers_still_needed(lambda repeats: _compared(measure(repeats=repeats), times) != "hold", answers)
    reason = f"{estimate}: not shown to be within {times:g} times{more_needed(needed, 'answers of each')}"
    return finding("hold", reason, still_needed=needed, still_needed_unit="answers")


def _compared(interval: Interval, bound: float) -> FindingOutcome:
    if interval.high <= bound:
        return "pass"
    return "reject" if interval.low > bound else "hold"
