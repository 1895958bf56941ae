"""What a candidate must show to become champion, written before the evidence: the ``gate`` section of a recipe."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any, Literal

from pydantic import Field, model_validator

from mlflow_finetune_plugin.section import DataLocation, Section

HIGHEST_SCORES = {"accuracy": 1.0, "exact_match": 1.0, "f1": 1.0, "rougeL": 1.0, "token_f1": 1.0}
"""Packaged metrics whose best score is 1, so that a bound beyond it can be refused when it is written."""

LEAST_PLANNED_VOTERS = 10
"""Fewer voters are too few for a t-test."""

RULES = 5
"""Part of every digest. Increase it when the same policy and evidence can give another verdict. Policies that were recorded
under earlier rules are still read."""


class GainPolicy(Section):
    """The metric's gain over the champion, or over the base while there is no champion."""

    metric: str | None = Field(None, min_length=1, description="Metric by its name; default: the evaluation's first.")
    over: Literal["champion", "base"] = Field(
        "champion", description="What the candidate is compared with; champion means the base while there is none."
    )
    through: Literal["model", "serving"] = Field(
        "model", description="Where the answers come from: the loaded model, or the router that serves both versions."
    )
    at_least: float = Field(
        0.0,
        description="What the lower end of the paired interval of the gain must be above, in the metric's unit.",
    )
    alpha: float = Field(
        0.025,
        ge=1e-6,
        lt=0.5,
        description="Chance of ever promoting a candidate whose gain is not above at_least, over all versions of the model "
        "that are judged until one is shown to be better.",
    )
    champion_rows_margin: float | None = Field(
        0.05,
        gt=0,
        description="How much worse than the champion the candidate may be on the champion's held-out rows, where it brought "
        "others; the lower end of the 95 % interval must be above minus this, in the metric's unit; null: not required.",
    )

    @model_validator(mode="after")
    def _can_be_reached(self) -> GainPolicy:
        best = HIGHEST_SCORES.get(self.metric or "")
        if best is not None and self.at_least >= best:
            raise ValueError(
                f"no candidate can pass: the lower end of a gain in {self.metric} is always below {best:g}; "
                f"fix: put at_least below {best:g} (now {self.at_least:g})"
            )
        return self


class ForgettingPolicy(Section):
    """How much the candidate may lose on general text that it was not trained on."""

    at_most: float = Field(
        0.05, description="Bound on the upper end of the 95 % interval of forgetting, in nats per token."
    )


class VotesPolicy(Section):
    """Whether people prefer the candidate, by a test that stays valid when it is evaluated after every vote."""

    alpha: float = Field(
        0.05, ge=1e-6, lt=0.5, description="Chance of ever promoting a candidate that is not preferred."
    )
    unit: Literal["voter", "vote"] = Field(
        "voter", description="What is counted: voter generalises to other people, vote describes only these voters."
    )
    minimum: int = Field(10, ge=1, le=10_000, description="Voters (unit voter) or decisive votes needed to decide.")
    per_voter: int = Field(5, ge=1, le=1000, description="Votes of one voter that count: the first ones.")
    planned_voters: int | None = Field(
        20,
        ge=LEAST_PLANNED_VOTERS,
        le=10_000,
        description="With unit voter: voters after whom a t-test is made once, as after minimum voters; null: no such test.",
    )
    closes_after_h: float = Field(
        24.0, gt=0, le=8760, description="Hours without a vote after which a voter with fewer votes counts as finished."
    )
    required: bool = Field(False, description="Hold until the votes decide; by default votes can only reject.")


class LatencyPolicy(Section):
    """Bounds on the candidate's latency, by its 95th percentile."""

    p95_ms: float | None = Field(None, gt=0, description="At most this many milliseconds.")
    over_champion: float | None = Field(None, gt=0, description="At most this many times the champion's.")
    alpha: float = Field(
        0.05,
        ge=1e-6,
        lt=0.5,
        description="Chance, for each bound, of ever passing a version that exceeds it, and of ever rejecting one that does not.",
    )

    @model_validator(mode="after")
    def _asks_something(self) -> LatencyPolicy:
        if self.p95_ms is None and self.over_champion is None:
            raise ValueError("asks nothing; fix: give p95_ms, over_champion, or leave latency out")
        return self


class RegressionPolicy(Section):
    """Rows on which the candidate must keep a score, however few they are."""

    data: DataLocation = Field(min_length=1, description="Data file of the rows.")
    metric: str = Field(min_length=1, description="Metric by its name.")
    at_least: float = Field(1.0, description="Lowest accepted score of the candidate.")

    @model_validator(mode="after")
    def _can_be_reached(self) -> RegressionPolicy:
        best = HIGHEST_SCORES.get(self.metric)
        if best is not None and self.at_least > best:
            raise ValueError(
                f"no candidate can pass: {self.metric} is at most {best:g}; fix: lower at_least (now {self.at_least:g})"
            )
        return self


class GatePolicy(Section):
    """What a candidate must show. By default: a gain whose interval is not below 0."""

    gain: GainPolicy | None = Field(default_factory=GainPolicy, description="Gain in a metric; null: not required.")
    forgetting: ForgettingPolicy | None = Field(None, description="Bound on forgetting; default: none.")
    votes: VotesPolicy | None = Field(
        default_factory=VotesPolicy,
        description="Test of people's votes, where there are any; null: votes are not read.",
    )
    latency: LatencyPolicy | None = Field(None, description="Latency budget; default: none.")
    regressions: list[RegressionPolicy] = Field(
        default_factory=list, description="Data on which the candidate must keep a score."
    )

    @model_validator(mode="after")
    def _decides(self) -> GatePolicy:
        asks = [self.gain, self.forgetting, self.latency, *self.regressions]
        if not any(asks) and not (self.votes and self.votes.required):
            raise ValueError(
                "asks nothing that a candidate must show, so it would promote any; "
                "fix: leave gain in, or ask for forgetting, latency, regressions or required votes"
            )
        named = [(r.data, r.metric) for r in self.regressions]
        twice = next((pair for pair in named if named.count(pair) > 1), None)
        if twice is not None:
            raise ValueError(f"regressions names {twice[1]} on {twice[0]} twice; fix: keep one of them")
        paths = dict.fromkeys(r.data for r in self.regressions)
        names = [PurePath(path).name for path in paths]
        same = next((name for name in names if names.count(name) > 1), None)
        if same is not None:
            raise ValueError(f"two regression files are named {same}; fix: rename one of them")
        return self

    def digest(self) -> str:
        """sha256 (hex) of the policy with its defaults filled in: equal meaning, equal digest, in any order of keys."""
        return content_digest(self.model_dump(mode="json"), RULES)


def content_digest(gate: Mapping[str, Any], rules: int) -> str:
    """Return the sha256 (hex) of a policy's JSON under one of the rules, 1 to ``RULES``."""
    content = {"rules": rules, "gate": gate}
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
