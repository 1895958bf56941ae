"""The measurements of a candidate. Invalid numbers are refused here, so that no verdict is based on them."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from mlflow_finetune_plugin.errors import GateError
from mlflow_finetune_plugin.evaluation.results import Interval
from mlflow_finetune_plugin.gate.statistics.paired import PairedRows, check_rows
from mlflow_finetune_plugin.gate.votes import Vote
from mlflow_finetune_plugin.store.latency_counts import LatencyCounts


@dataclass(frozen=True)
class Gain:
    """The candidate's gain over ``over`` in ``metric``.

    ``measured`` holds the score of each row on both sides, in the metric's own direction. For metrics without a score
    per row it is an interval of the gain, where positive means that the candidate is better.

    ``number`` counts the gains of the registered model that were tested, from 1, and ``discoveries`` those before this one
    that were shown; they share the policy's alpha (``error_budget``), because they may use the same held-out rows. None gives
    the whole alpha to this gain. An interval must have been computed with the confidence of ``gain_confidence``.

    Raises:
        GateError: The interval has no numbers, or the number is below 1.
    """

    metric: str
    over: Literal["champion", "base"]
    measured: PairedRows | Interval
    higher_is_better: bool = True
    number: int | None = None
    discoveries: int = 0

    def __post_init__(self) -> None:
        if self.number is not None and self.number < 1:
            raise GateError(f"gain test number {self.number}; fix: count tests from 1")
        if isinstance(self.measured, Interval):
            _check_interval(self.measured, f"gain in {self.metric}")


@dataclass(frozen=True)
class Forgetting:
    """For each text the candidate's minus the base's nats per token (rows,), where positive is worse, and the text's
    tokens.

    With ``tokens`` every token has the same weight, as in the evaluation; without, every text has.

    Raises:
        GateError: The rows are invalid (``check_rows``), or a text has no tokens.
    """

    row_ids: tuple[str, ...]
    nats_per_token: tuple[float, ...]
    tokens: tuple[float, ...] | None = None
    clusters: tuple[Hashable, ...] | None = None

    def __post_init__(self) -> None:
        columns = {"nats_per_token": self.nats_per_token}
        check_rows(self.row_ids, columns | ({} if self.tokens is None else {"tokens": self.tokens}), self.clusters)
        if self.tokens is not None and min(self.tokens) <= 0:
            raise GateError("a forgetting text has no tokens; fix: leave it out")


@dataclass(frozen=True)
class Votes:
    """Votes between the candidate and ``over`` in the order in which they were cast, each ``vote_id`` once.

    ``number`` counts the pairs of the model that were tested by votes, from 1, and ``discoveries`` those before this one
    whose candidate was shown to be better; they share the policy's alpha (``error_budget``). None gives the whole alpha to
    this pair. ``read_at`` is the time at which the votes
    were read; None: no more votes will come.

    Raises:
        GateError: The number is below 1.
    """

    votes: tuple[Vote, ...]
    number: int | None = None
    over: Literal["champion", "base"] = "champion"
    read_at: datetime | None = None
    discoveries: int = 0

    def __post_init__(self) -> None:
        if self.number is not None and self.number < 1:
            raise GateError(f"pair number {self.number}; fix: count pairs from 1")


@dataclass(frozen=True)
class Latency:
    """The answers of both sides by their latency, from the same router. Raises GateError for a side without answers."""

    candidate: LatencyCounts
    champion: LatencyCounts | None = None

    def __post_init__(self) -> None:
        for side, counts in (("candidate", self.candidate), ("champion", self.champion)):
            if counts is not None and not counts.total:
                raise GateError(f"no answer of the {side} was timed; fix: give measured latencies, or none at all")


@dataclass(frozen=True)
class Regression:
    """The candidate's own score on one file. Raises GateError for a score that is not finite."""

    data: str
    metric: str
    score: float

    def __post_init__(self) -> None:
        if not math.isfinite(self.score):
            raise GateError(f"{self.metric} on {self.data} is {self.score}; fix: find out why there is no number")


@dataclass(frozen=True)
class Evidence:
    """All measurements of a candidate; None or empty means not measured. ``has_champion``: there is a champion to
    replace.

    ``champion_rows`` is the gain on the champion's held-out rows where the candidate brought others. ``forgetting`` may be a
    95 % interval in nats per token if the rows were not stored.

    Raises:
        GateError: An interval has no numbers, or a regression file was measured twice under one metric.
    """

    has_champion: bool
    gain: Gain | None = None
    champion_rows: Gain | None = None
    forgetting: Forgetting | Interval | None = None
    votes: Votes | None = None
    latency: Latency | None = None
    regressions: tuple[Regression, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.forgetting, Interval):
            _check_interval(self.forgetting, "forgetting")
        named = [(r.data, r.metric) for r in self.regressions]
        if len(set(named)) != len(named):
            raise GateError("a regression file is measured twice under one metric; fix: give one score")


def _check_interval(interval: Interval, name: str) -> None:
    if not math.isfinite(interval.value) or not interval.low <= interval.value <= interval.high:
        raise GateError(
            f"the interval of {name} is {interval.low} to {interval.high} around {interval.value}; "
            "fix: find out why the evaluation gave no number"
        )
