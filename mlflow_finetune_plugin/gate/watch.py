"""Judge whether the champion should stay: from evidence to keep, re-tune or roll back, with a finding for each
criterion.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from mlflow_finetune_plugin.gate.criteria import finding_json
from mlflow_finetune_plugin.gate.watch_evidence import NewRows, NotMeasured, WatchEvidence
from mlflow_finetune_plugin.gate.watch_findings import (
    WatchFinding,
    WatchOutcome,
    judge_errors,
    judge_fall,
    judge_latency,
    judge_people,
    judge_proof,
    judge_turns,
)
from mlflow_finetune_plugin.gate.watch_policy import WatchPolicy


@dataclass(frozen=True)
class WatchVerdict:
    """The outcome, the reason in one line, and the finding of each criterion."""

    outcome: WatchOutcome
    findings: tuple[WatchFinding, ...]
    reason: str

    def to_json(self) -> str:
        """Return RFC 8259 JSON with sorted keys. An unbounded end of an interval is null."""
        content = {
            "outcome": self.outcome,
            "reason": self.reason,
            "findings": [finding_json(finding) for finding in self.findings],
        }
        return json.dumps(content, sort_keys=True, allow_nan=False)


def judge_watch(policy: WatchPolicy, evidence: WatchEvidence) -> WatchVerdict:
    """Return the worst outcome of all findings: roll back, else re-tune, else keep.

    Missing measurements never trigger an action. The errors of the findings add up: a champion without fault is rolled
    back with a chance of at most the sum of the alphas of proof, errors, votes and each bound of latency, however often it
    is checked. If there is no version to go back to, a reason to roll back asks for a
    tuning instead.
    """
    findings = [
        judge_proof(policy.proof, evidence.proof),
        judge_errors(policy.errors, evidence.failures, evidence.previous_failures),
        *judge_latency(evidence.gate.latency, evidence.latency),
        judge_people(evidence.gate, evidence.votes),
        judge_turns(policy.vote_drift, evidence.turns),
        *_judge_new_rows(policy, evidence.new_rows),
    ]
    outcomes = {finding.outcome for finding in findings}
    outcome: WatchOutcome = "roll back" if "roll back" in outcomes else "re-tune" if "re-tune" in outcomes else "keep"
    reason = _reason(outcome, findings)
    if outcome == "roll back" and isinstance(evidence.previous, NotMeasured):
        return WatchVerdict("re-tune", tuple(findings), f"it cannot be rolled back, {evidence.previous.why}; {reason}")
    return WatchVerdict(outcome, tuple(findings), reason)


def _judge_new_rows(policy: WatchPolicy, rows: NewRows | None) -> list[WatchFinding]:
    if rows is None:
        return []
    drift = policy.drift
    return [
        judge_proof(policy.proof, rows.proof, "proof on new rows"),
        judge_fall(drift, rows.score_fall, "drift of data", drift.at_most),
        judge_fall(drift, rows.nats_fall, "drift of nats per token", drift.nats_at_most),
    ]


def _reason(outcome: WatchOutcome, findings: list[WatchFinding]) -> str:
    reasons = "; ".join(f"{finding.name}: {finding.reason}" for finding in findings if finding.outcome == outcome)
    return reasons or "nothing that is watched could be measured"
