"""Judge a candidate: from a policy and evidence to a verdict of promote, hold or reject, with a finding for each
criterion.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

from mlflow_finetune_plugin.errors import GateError
from mlflow_finetune_plugin.gate.criteria import (
    Finding,
    finding_json,
    judge_champion_rows,
    judge_forgetting,
    judge_gain,
    judge_regression,
    judge_votes,
)
from mlflow_finetune_plugin.gate.evidence import Evidence
from mlflow_finetune_plugin.gate.latency import judge_latency
from mlflow_finetune_plugin.gate.policy import GatePolicy, VotesPolicy


@dataclass(frozen=True)
class Verdict:
    """The outcome with the finding of each criterion. ``policy_digest`` is the SHA-256 of the policy."""

    outcome: Literal["promote", "hold", "reject"]
    findings: tuple[Finding, ...]
    policy_digest: str

    @property
    def reason(self) -> str:
        """The findings that decided the outcome, in one line."""
        decisive = {"promote": "pass"}.get(self.outcome, self.outcome)
        reasons = "; ".join(f"{f.name}: {f.reason}" for f in self.findings if f.outcome == decisive)
        return reasons or "nothing that the policy asks for could be judged"

    def to_json(self) -> str:
        """Return RFC 8259 JSON with sorted keys. An unbounded end of an interval is null."""
        content = {
            "outcome": self.outcome,
            "reason": self.reason,
            "policy_digest": self.policy_digest,
            "findings": [{**finding_json(finding), **_needed(finding)} for finding in self.findings],
        }
        return json.dumps(content, sort_keys=True, allow_nan=False)


def judge(policy: GatePolicy, evidence: Evidence) -> Verdict:
    """Reject if any criterion is shown to be missed, else hold if any is undecided or not measured, else promote.

    A promotion needs every criterion, so the errors of the criteria do not add up: the chance of promoting a candidate
    that misses one is at most the error of that one (intersection-union test: Berger 1982, Technometrics 24, 295-300).
    For forgetting that is 2.5 % per look, for votes alpha over all looks, for the gain alpha over all tests of a model.
    """
    findings: list[Finding] = []
    if policy.gain is not None:
        findings.append(judge_gain(policy.gain, evidence))
        if policy.gain.champion_rows_margin is not None and evidence.champion_rows is not None:
            findings.append(judge_champion_rows(policy.gain.champion_rows_margin, evidence.champion_rows))
    if policy.forgetting is not None:
        findings.append(judge_forgetting(policy.forgetting, evidence.forgetting))
    if policy.votes is not None and (policy.votes.required or (evidence.votes is not None and evidence.votes.votes)):
        findings.append(_judged_votes(policy.votes, evidence))
    if policy.latency is not None:
        findings += judge_latency(policy.latency, evidence)
    findings += [judge_regression(regression, evidence.regressions) for regression in policy.regressions]
    outcomes = {finding.outcome for finding in findings}
    outcome: Literal["promote", "hold", "reject"] = "hold"
    if "reject" in outcomes:
        outcome = "reject"
    elif "hold" not in outcomes and "pass" in outcomes:
        outcome = "promote"
    return Verdict(outcome, tuple(findings), policy.digest())


def _judged_votes(policy: VotesPolicy, evidence: Evidence) -> Finding:
    """Judge the votes. While there is no champion they compare the candidate with the base: they can decide, but the
    gate does not wait for them.
    """
    votes = evidence.votes
    if evidence.has_champion:
        if votes is not None and votes.over != "champion":
            raise GateError("votes over the base, where there is a champion; fix: those between it and the candidate")
        return judge_votes(policy, votes)
    if votes is None or not votes.votes:
        return Finding("votes", "noted", "there is no champion yet, and no votes compare it with the base")
    if votes.over != "base":
        raise GateError("votes over a champion, where there is none; fix: those between the base and the candidate")
    return judge_votes(policy.model_copy(update={"required": False}), votes)


def _needed(finding: Finding) -> dict[str, Any]:
    return {"still_needed": finding.still_needed, "still_needed_unit": finding.still_needed_unit}
