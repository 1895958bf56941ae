"""Judge each criterion of a policy: one finding with the requirement, the measurement, the outcome and what would
decide it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any, Literal, Protocol

import numpy as np

from mlflow_finetune_plugin.evaluation.results import Interval
from mlflow_finetune_plugin.evaluation.scale import describe_forgetting
from mlflow_finetune_plugin.gate.evidence import Evidence, Forgetting, Gain, Regression, Votes
from mlflow_finetune_plugin.gate.policy import (
    HIGHEST_SCORES,
    ForgettingPolicy,
    GainPolicy,
    RegressionPolicy,
    VotesPolicy,
)
from mlflow_finetune_plugin.gate.statistics.error_budget import discovery_alpha
from mlflow_finetune_plugin.gate.statistics.paired import (
    PairedRows,
    cluster_statistics,
    mcnemar_p,
    mean_interval,
    non_inferiority,
    paired_interval,
    rows_still_needed,
)
from mlflow_finetune_plugin.gate.statistics.skewed_mean import widen_for_skew
from mlflow_finetune_plugin.gate.vote_test import VoteTest, run_vote_test
from mlflow_finetune_plugin.gate.votes import tally

FindingOutcome = Literal["pass", "hold", "reject", "noted"]
JsonScalar = str | int | float | bool | None


@dataclass(frozen=True)
class Finding:
    """The outcome of one criterion.

    Args:
        name: The criterion.
        outcome: ``noted`` neither supports nor prevents a promotion.
        reason: The outcome in words, with the numbers.
        bound: The bound of the policy.
        interval: The estimate.
        still_needed: On hold, how many more of ``still_needed_unit`` would probably decide, if they are like those so
            far; None without an estimate.
        still_needed_unit: What ``still_needed`` counts.
        details: More numbers, for the report.
    """

    name: str
    outcome: FindingOutcome
    reason: str
    bound: float | None = None
    interval: Interval | None = None
    still_needed: int | None = None
    still_needed_unit: Literal["rows", "voters", "decisive votes", "answers"] | None = None
    details: Mapping[str, JsonScalar] = field(default_factory=dict)


def judge_gain(policy: GainPolicy, evidence: Evidence) -> Finding:
    """Pass if the lower end of the paired interval is above ``at_least``, reject if the upper end is below it.

    A lower end that equals the bound does not exclude it, as when two rows of 200 are gained and none is lost.

    The interval's confidence leaves each side the part of ``alpha`` that this test of the model may spend
    (``gain_confidence``).
    """
    over = policy.over if evidence.has_champion else "base"
    comparison = f"{policy.metric or 'a metric'} over the {over}"
    gain = evidence.gain
    if gain is None:
        return missing("gain", f"the gain in {comparison} was not measured", policy.at_least)
    if gain.over != over or (
        policy.metric is not None and PurePath(policy.metric).name.removesuffix(".py") != gain.metric
    ):
        reason = f"the policy asks for the gain in {comparison}, measured was {gain.metric} over the {gain.over}"
        return missing("gain", reason, policy.at_least)
    confidence = gain_confidence(policy, gain.number, gain.discoveries)
    interval, rows, details = _gain_interval(gain, confidence)
    estimate = f"{gain.metric} over the {over} {shown(interval)}{f' on {rows:,} rows' if rows is not None else ''}"
    if gain.number is not None:
        estimate += f", test {gain.number} of this model ({_percent(confidence)} interval)"
    details |= {"confidence": confidence, "test_number": gain.number, "discoveries": gain.discoveries}
    bound = policy.at_least
    if interval.low > bound:
        return Finding("gain", "pass", f"{estimate}: above {bound:g}", bound, interval, details=details)
    if interval.high < bound:
        return Finding("gain", "reject", f"{estimate}: all of it below {bound:g}", bound, interval, details=details)
    needed = None if rows is None else rows_still_needed(interval, rows, bound)
    reason = f"{estimate}: not shown to be above {bound:g}{more_needed(needed, 'rows')}"
    return Finding("gain", "hold", reason, bound, interval, needed, "rows", details)


def judge_champion_rows(margin: float, gain: Gain) -> Finding:
    """Pass if the candidate is shown to lose less than ``margin`` on the champion's held-out rows (non-inferiority).

    A candidate brings the rows that it is judged on. Rows on which only the champion was proven may be of a kind that the
    candidate's data no longer have.
    """
    name = "champion's rows"
    # With a margin of 0.05, 72 rows without any loss would not exclude a rare one, and the candidate's own rows are tested for it.
    interval, rows, details = _gain_interval(gain, 0.95, allows_rare=False)
    harm = Interval(-interval.value, -interval.high, -interval.low, interval.method)
    estimate = f"{gain.metric} over the champion {shown(interval)}{f' on {rows:,} rows' if rows is not None else ''}"
    answer = non_inferiority(harm, margin)
    if answer == "shown":
        return Finding(name, "pass", f"{estimate}: less than {margin:g} worse", -margin, interval, details=details)
    if answer == "refuted":
        return Finding(name, "reject", f"{estimate}: more than {margin:g} worse", -margin, interval, details=details)
    needed = None if rows is None else rows_still_needed(interval, rows, -margin)
    reason = f"{estimate}: not shown to be less than {margin:g} worse{more_needed(needed, 'rows')}"
    return Finding(name, "hold", reason, -margin, interval, needed, "rows", details)


def gain_confidence(policy: GainPolicy, number: int | None, discoveries: int) -> float:
    """Return the two-sided confidence of the interval that decides test ``number`` of a model's gains; None has the whole alpha."""
    part = policy.alpha if number is None else discovery_alpha(policy.alpha, number, discoveries)
    return 1 - 2 * part


def _percent(confidence: float) -> str:
    """Return a confidence with two digits of what it leaves out: ``97 %``, ``99.88 %``."""
    rest = 100 * (1 - confidence)
    digits = max(0, 1 - math.floor(math.log10(rest))) if rest > 0 else 0
    return f"{100 - rest:.{digits}f} %"


def judge_forgetting(policy: ForgettingPolicy, measured: Forgetting | Interval | None) -> Finding:
    """Pass if the upper end of the 95 % interval is at or below ``at_most`` nats per token (non-inferiority)."""
    if measured is None:
        return missing("forgetting", "forgetting was not measured", policy.at_most)
    if isinstance(measured, Interval):
        interval, rows = measured, None
    else:
        interval, rows = _forgetting_interval(measured), len(measured.row_ids)
    estimate = f"{describe_forgetting(interval.value)}, {shown(interval)} nats per token"
    answer = non_inferiority(interval, policy.at_most)
    if answer == "shown":
        return Finding("forgetting", "pass", f"{estimate}: at most {policy.at_most:g}", policy.at_most, interval)
    if answer == "refuted":
        return Finding(
            "forgetting", "reject", f"{estimate}: all of it above {policy.at_most:g}", policy.at_most, interval
        )
    needed = None if rows is None else rows_still_needed(interval, rows, policy.at_most)
    reason = f"{estimate}: reaches above {policy.at_most:g}{more_needed(needed, 'rows')}"
    return Finding("forgetting", "hold", reason, policy.at_most, interval, needed, "rows")


def judge_votes(policy: VotesPolicy, evidence: Votes | None) -> Finding:
    """Pass or reject when ``vote_test`` shows that people prefer the candidate, or the other side.

    ``bound`` is 1/2 and ``interval`` the confidence sequence of the mean score. Undecided votes hold if
    the policy requires votes; otherwise they are noted.
    """
    undecided: FindingOutcome = "hold" if policy.required else "noted"
    unit: Literal["voters", "decisive votes"] = "voters" if policy.unit == "voter" else "decisive votes"
    if evidence is None or not evidence.votes:
        return Finding("votes", undecided, "no votes were cast", 0.5, still_needed_unit=unit)
    test = run_vote_test(policy, evidence)
    counts = tally(evidence.votes)
    details: dict[str, JsonScalar] = {
        "unit": policy.unit,
        "alpha": test.alpha,
        "wins": counts.candidate,
        "losses": counts.champion,
        "ties": counts.tie,
        "both_bad": counts.both_bad,
        "voters": counts.voters,
        "counted": test.counted,
        "e_better": test.evidence_for[-1],
        "e_worse": test.evidence_against[-1],
        "boundary": test.boundary,
    }
    if policy.unit == "voter":
        details |= {"open_voters": test.open_voters, "unfinished_voters": test.unfinished}
        details |= {"left_after_win": test.left_after_win, "left_after_loss": test.left_after_loss}
    if test.prompts is not None:
        details |= {"shared_prompts": test.prompts}
        details |= {"e_better_by_prompt": test.prompt_evidence_for, "e_worse_by_prompt": test.prompt_evidence_against}
    for look in test.planned_looks:
        details |= {f"look_at_{look.voters}_alpha": look.alpha}
        details |= {f"look_at_{look.voters}_p_better": look.p_better, f"look_at_{look.voters}_p_worse": look.p_worse}
    whose = "voters" if policy.unit == "voter" else "decisive votes, true of these voters only"
    estimate = f"mean score {shown(test.mean)} of {test.counted} {whose}"
    if test.outcome != "undecided":
        reason = f"{estimate}: {test.outcome} than the {evidence.over}, shown after {test.decided_at}"
        if test.deciding_look is not None:
            p = test.deciding_look.p_better if test.outcome == "better" else test.deciding_look.p_worse
            reason += f", at a planned look: p = {p:.2g}, and {test.deciding_look.alpha:.2g} decides"
        outcome: FindingOutcome = "pass" if test.outcome == "better" else "reject"
        return Finding("votes", outcome, reason, 0.5, test.mean, details=details)
    reason = f"{estimate}: undecided, {_undecided(test, policy)}{more_needed(test.still_needed, unit)}"
    return Finding("votes", undecided, reason, 0.5, test.mean, test.still_needed, unit, details)


def _undecided(test: VoteTest, policy: VotesPolicy) -> str:
    parts = [f"evidence {max(test.evidence_for[-1], test.evidence_against[-1]):.3g} of {test.boundary:.3g}"]
    if test.lacks_prompts:
        parts.append(f"the voters share only {test.prompts} prompts, so more prompts are needed")
    if test.open_voters:
        parts.append(f"{test.open_voters} voters can still vote, and missing votes count against a decision")
    parts.append(f"at least {policy.minimum} count")
    return ", ".join(parts)


def judge_regression(policy: RegressionPolicy, measured: tuple[Regression, ...]) -> Finding:
    """Compare the score with a plain bound.

    These rows are the whole population, so there is no interval, and only a missing score holds.
    """
    name = f"must-pass {policy.data}, {policy.metric}"
    score = next((r.score for r in measured if (r.data, r.metric) == (policy.data, policy.metric)), None)
    if score is None:
        return missing(name, f"{policy.metric} on {policy.data} was not measured", policy.at_least)
    passes = score >= policy.at_least
    compared = "at least" if passes else "below"
    reason = f"{score:.4g}: {compared} {policy.at_least:g}"
    return Finding(name, "pass" if passes else "reject", reason, policy.at_least, details={"score": score})


def _gain_interval(
    gain: Gain, confidence: float, *, allows_rare: bool = True
) -> tuple[Interval, int | None, dict[str, JsonScalar]]:
    if isinstance(gain.measured, Interval):
        return gain.measured, None, {}
    rows = gain.measured
    details: dict[str, JsonScalar] = {"rows": len(rows.row_ids)}
    if rows.is_binary:
        details["mcnemar_p"] = mcnemar_p(rows)
    if not gain.higher_is_better:
        rows = PairedRows(rows.row_ids, rows.champion, rows.candidate, rows.clusters)
    largest = HIGHEST_SCORES.get(gain.metric) if allows_rare else None  # the lowest score of these metrics is 0
    return paired_interval(rows, confidence=confidence, largest_difference=largest), len(rows.row_ids), details


def _forgetting_interval(measured: Forgetting) -> Interval:
    nats = np.asarray(measured.nats_per_token, dtype=np.float64)
    tokens = np.ones_like(nats) if measured.tokens is None else np.asarray(measured.tokens, dtype=np.float64)
    interval = mean_interval(nats, weights=tokens, clusters=measured.clusters)
    sums = cluster_statistics(nats * tokens, tokens, measured.clusters)
    return widen_for_skew(interval, sums[:, 0], sums[:, 1], confidence=0.95, seed=0)


def missing(name: str, reason: str, bound: float | None, fix: str = "measure it") -> Finding:
    """Return a finding that holds because a measurement is missing."""
    return Finding(name, "hold", f"{reason}; fix: {fix}", bound)


def shown(interval: Interval) -> str:
    """Return the estimate with its interval, for a reason."""
    return f"{interval.value:.4g} [{interval.low:.4g}, {interval.high:.4g}]"


def more_needed(needed: int | None, unit: str) -> str:
    """Return the end of a reason to hold: how many more would likely decide."""
    if needed is None:
        return "; how many more would decide cannot be estimated yet"
    return f"; about {needed:,} more {unit} like these would likely decide"


class AnyFinding(Protocol):
    """What findings of the gate and of the watch have in common."""

    @property
    def name(self) -> str: ...
    @property
    def outcome(self) -> str: ...
    @property
    def reason(self) -> str: ...
    @property
    def bound(self) -> float | None: ...
    @property
    def interval(self) -> Interval | None: ...
    @property
    def details(self) -> Mapping[str, Any]: ...


def finding_json(finding: AnyFinding) -> dict[str, Any]:
    interval = finding.interval
    return {
        "name": finding.name,
        "outcome": finding.outcome,
        "reason": finding.reason,
        "bound": finding.bound,
        "estimate": None if interval is None else interval.value,
        "interval": None if interval is None else [_bounded(interval.low), _bounded(interval.high)],
        "method": None if interval is None else interval.method,
        "details": dict(finding.details),
    }


def _bounded(end: float) -> float | None:
    return end if math.isfinite(end) else None
