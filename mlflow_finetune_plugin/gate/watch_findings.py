"""Judge each criterion of the watch: one finding with the measurement and whether the champion can stay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import numpy as np

from mlflow_finetune_plugin.evaluation.results import Interval
from mlflow_finetune_plugin.gate.criteria import JsonScalar, judge_votes
from mlflow_finetune_plugin.gate.evidence import Votes
from mlflow_finetune_plugin.gate.policy import HIGHEST_SCORES, GatePolicy, LatencyPolicy, VotesPolicy
from mlflow_finetune_plugin.gate.statistics.detectors.comparison import ComparisonDetector
from mlflow_finetune_plugin.gate.statistics.detectors.failures import FailureDetector
from mlflow_finetune_plugin.gate.statistics.error_budget import candidate_alpha
from mlflow_finetune_plugin.gate.statistics.failure_rate import failure_rate
from mlflow_finetune_plugin.gate.statistics.latency_quantile import p95_interval
from mlflow_finetune_plugin.gate.statistics.paired import PairedRows, paired_interval
from mlflow_finetune_plugin.gate.statistics.sequential import VOTE_STAKES, confidence_sequence
from mlflow_finetune_plugin.gate.statistics.unpaired import difference_interval
from mlflow_finetune_plugin.gate.watch_evidence import Fall, NotMeasured, Proof, Turns, WatchedLatency
from mlflow_finetune_plugin.gate.watch_policy import DriftPolicy, ErrorsPolicy, ProofPolicy, VoteDriftPolicy

WatchOutcome = Literal["keep", "re-tune", "roll back"]


@dataclass(frozen=True)
class WatchFinding:
    """The outcome of one criterion. ``not measured`` triggers no action. ``bound`` is what ``interval`` is compared
    with.
    """

    name: str
    outcome: WatchOutcome | Literal["not measured"]
    reason: str
    bound: float | None = None
    interval: Interval | None = None
    details: Mapping[str, JsonScalar] = field(default_factory=dict)


def judge_proof(policy: ProofPolicy, proof: Proof | NotMeasured, name: str = "proof") -> WatchFinding:
    """Roll back if the previous version is shown to be better: the upper end of the gain's interval is below 0."""
    if isinstance(proof, NotMeasured):
        return _not_measured(name, proof)
    gain, part = proof.gain, candidate_alpha(policy.alpha, proof.number)
    rows, details = gain.measured, {"set_of_rows": proof.number, "alpha": part}
    if isinstance(rows, Interval):
        if proof.number > 1:  # its confidence is fixed, and was spent on the first set
            why = (
                f"{gain.metric} has no score per row, so its interval is good for one set of rows, and this is another"
            )
            return _not_measured(name, NotMeasured(why))
        interval = rows
    else:
        details["rows"] = len(rows.row_ids)
        if not gain.higher_is_better:
            rows = PairedRows(rows.row_ids, rows.champion, rows.candidate, rows.clusters)
        interval = paired_interval(rows, confidence=1 - 2 * part, largest_difference=HIGHEST_SCORES.get(gain.metric))
        interval = replace(interval, method=f"{interval.method}, confidence {1 - 2 * part:.4g}")
    estimate = f"{gain.metric} over the previous version {_shown(interval)}"
    if interval.high < 0:
        return WatchFinding(name, "roll back", f"{estimate}: the previous one is better", 0.0, interval, details)
    meaning = "better" if interval.low > 0 else "no worse, as far as these rows can tell"
    return WatchFinding(name, "keep", f"{estimate}: {meaning}", 0.0, interval, details)


def judge_errors(
    policy: ErrorsPolicy, failures: FailureDetector | NotMeasured, previous: FailureDetector | NotMeasured
) -> WatchFinding:
    """Roll back if more than ``at_most`` of the answers fail, unless the same is true of the previous version.

    Answers since any earlier check can show it, so good answers from before do not hide a rise.
    """
    if isinstance(failures, NotMeasured):
        return _not_measured("errors", failures)
    boundary, total, recent = 1 / policy.alpha, failures.total, failures.recent
    details: dict[str, JsonScalar] = {
        "answers": total.answers,
        "failed": total.failed,
        "evidence": failures.evidence,
        "boundary": boundary,
    }
    rate = failure_rate(total, at_most=policy.at_most, alpha=policy.alpha).rate
    finding = partial(WatchFinding, "errors", bound=policy.at_most, interval=rate, details=details)
    counts = f"{total} answers failed, {_shown(rate)}"
    if total.answers < policy.minimum:
        return finding("keep", f"{counts}: decides from {policy.minimum} answers on")
    if failures.evidence < boundary:
        evidence = f"evidence {failures.evidence:.3g} of {boundary:.3g}"
        return finding("keep", f"{counts}: not shown to be above {policy.at_most:g}, {evidence}")
    if recent != total:
        counts = f"{recent} answers failed recently, of all {total}"
    above = f"{counts}: above {policy.at_most:g}"
    control = previous if isinstance(previous, FailureDetector) else None
    if control is not None and control.total.answers >= policy.minimum and control.evidence >= boundary:
        others = f"but so are the previous version's, {control.recent}"
        return finding("keep", f"{above}, {others}: going back would not help; fix: see the engine's log")
    return finding("roll back", above)


def judge_latency(policy: LatencyPolicy | None, latency: WatchedLatency | NotMeasured) -> list[WatchFinding]:
    """Apply the champion's own gate policy, with the previous version in the place of the champion.

    Each bound is tested at the policy's ``alpha``. The tests restart at every check.
    """
    if policy is None:
        return [_not_measured("latency", NotMeasured("the champion's policy asks nothing of it"))]
    if isinstance(latency, NotMeasured):
        return [_not_measured("latency", latency)]
    findings = []
    if policy.p95_ms is not None and latency.over_budget is not None:
        findings.append(_over_budget(policy, policy.p95_ms, latency, latency.over_budget))
    if policy.over_champion is not None:
        findings.append(_slower_than_previous(policy, policy.over_champion, latency.compared))
    return findings


def judge_people(gate: GatePolicy, votes: Votes | NotMeasured) -> WatchFinding:
    """Roll back if people's votes show that they prefer the previous version, by the test of the champion's gate."""
    if isinstance(votes, NotMeasured):
        return _not_measured("votes", votes)
    finding = judge_votes(gate.votes or VotesPolicy(), votes)
    meanings = {"pass": "the previous version is preferred", "reject": "the champion is preferred"}
    estimate = finding.reason.partition(":")[0]
    reason = f"{estimate} (1: the previous version's): {meanings.get(finding.outcome, 'undecided')}"
    outcome: WatchOutcome = "roll back" if finding.outcome == "pass" else "keep"
    return WatchFinding("votes", outcome, reason, 0.5, finding.interval, finding.details)


def judge_turns(policy: VoteDriftPolicy, turns: Turns | NotMeasured) -> WatchFinding:
    """Ask for a tuning if the champion's share of bad turns has risen: two confidence sequences that do not overlap.

    Each sequence is valid at all times, at half of alpha on the side that counts (``sequential.confidence_sequence``).
    The first ended because votes made the version champion, and the second is read repeatedly. So the chance of ever
    asking for a tuning while the share is unchanged is at most alpha.
    """
    name = "drift of votes"
    if isinstance(turns, NotMeasured):
        return _not_measured(name, turns)
    if not turns.before or not turns.after:
        counted = f"{len(turns.before)} votes before it became champion, {len(turns.after)} since"
        return _not_measured(name, NotMeasured(counted))
    before, after = (
        confidence_sequence(np.array(side), VOTE_STAKES, alpha=policy.alpha / 2) for side in (turns.before, turns.after)
    )
    shares = f"lost or both bad in {_shown(after)} of {len(turns.after)} votes, before {_shown(before)} of {len(turns.before)}"
    details: dict[str, JsonScalar] = {"before": before.value, "before_high": before.high, "alpha": policy.alpha}
    finding = partial(WatchFinding, name, bound=before.high, interval=after, details=details)
    if after.low > before.high:
        return finding("re-tune", f"{shares}: more often")
    return finding("keep", f"{shares}: no rise is shown")


def judge_fall(policy: DriftPolicy, fall: Fall | NotMeasured, name: str, at_most: float) -> WatchFinding:
    """Ask for a tuning if the lower end of the fall from held-out rows to new rows is above ``at_most``.

    The tests of the metric and of the nats per token share the policy's ``alpha``.
    """
    if isinstance(fall, NotMeasured):
        return _not_measured(name, fall)
    part = candidate_alpha(policy.alpha / 2, fall.number)
    first, second = (fall.held_out, fall.new) if fall.higher_is_better else (fall.new, fall.held_out)
    interval = difference_interval(first, second, confidence=1 - 2 * part)
    details: dict[str, JsonScalar] = {
        "rows": len(fall.new.values),
        "held_out_rows": len(fall.held_out.values),
        "set_of_rows": fall.number,
        "alpha": part,
    }
    estimate = f"{fall.metric} is worse by {_shown(interval)} on the new rows"
    finding = partial(WatchFinding, name, bound=at_most, interval=interval, details=details)
    if interval.low > at_most:
        return finding("re-tune", f"{estimate}: all of it above {at_most:g}")
    return finding("keep", f"{estimate}: not shown to be above {at_most:g}")


def _over_budget(
    policy: LatencyPolicy, budget_ms: float, latency: WatchedLatency, test: FailureDetector
) -> WatchFinding:
    boundary, control = 1 / policy.alpha, latency.previous_over_budget
    interval = p95_interval(latency.counts, alpha=policy.alpha)
    details: dict[str, JsonScalar] = {
        "p95_ms": interval.value,
        "answers": test.total.answers,
        "over_budget": test.total.failed,
        "evidence": test.evidence,
        "boundary": boundary,
    }
    finding = partial(WatchFinding, "latency p95", bound=budget_ms, interval=interval, details=details)
    estimate = f"p95 {_shown(interval)} ms, {test.total} answers took longer than the budget, {budget_ms:g} ms"
    if test.evidence < boundary:
        return finding("keep", f"{estimate}: not shown to be above it, evidence {test.evidence:.3g} of {boundary:.3g}")
    above = f"{estimate}, {test.recent} recently: above it"
    if control is not None and control.evidence >= boundary:
        others = f"but so are the previous version's, {control.recent}"
        return finding("keep", f"{above}, {others}: going back would not help; fix: see the engine's load")
    return finding("roll back", above)


def _slower_than_previous(
    policy: LatencyPolicy, times: float, compared: ComparisonDetector | NotMeasured
) -> WatchFinding:
    name, boundary = "latency over previous", 1 / policy.alpha
    if isinstance(compared, NotMeasured):
        return _not_measured(name, compared)
    if not compared.batches:
        why = "no router answered with both versions between two checks; fix: send some requests to the previous one"
        return _not_measured(name, NotMeasured(why))
    details: dict[str, JsonScalar] = {
        "answers": compared.candidate.answers,
        "slow": compared.candidate.failed,
        "previous_answers": compared.champion.answers,
        "previous_slow": compared.champion.failed,
        "evidence": compared.evidence,
        "boundary": boundary,
    }
    finding = partial(WatchFinding, name, bound=times, details=details)
    estimate = f"{compared.candidate} answers took {times:g} times as long as the previous version's slow ones, of which it had {compared.champion}"
    if compared.evidence >= boundary:
        return finding("roll back", f"{estimate}: above {times:g} times")
    evidence = f"evidence {compared.evidence:.3g} of {boundary:.3g}"
    return finding("keep", f"{estimate}: not shown to be above {times:g} times, {evidence}")


def _not_measured(name: str, missing: NotMeasured) -> WatchFinding:
    return WatchFinding(name, "not measured", missing.why)


def _shown(interval: Interval) -> str:
    return f"{interval.value:.4g} [{interval.low:.4g}, {interval.high:.4g}]"
