"""The measurements of a champion since it became the champion. A missing one gives its reason."""

from __future__ import annotations

from dataclasses import dataclass

from mlflow_finetune_plugin.errors import GateError
from mlflow_finetune_plugin.gate.evidence import Gain, Votes
from mlflow_finetune_plugin.gate.policy import GatePolicy
from mlflow_finetune_plugin.gate.statistics.detectors.comparison import ComparisonDetector
from mlflow_finetune_plugin.gate.statistics.detectors.failures import FailureDetector
from mlflow_finetune_plugin.gate.statistics.unpaired import Sample
from mlflow_finetune_plugin.store.latency_counts import LatencyCounts


@dataclass(frozen=True)
class NotMeasured:
    """A missing measurement, with the reason for a person. It triggers no action and does not mean that all is well."""

    why: str


@dataclass(frozen=True)
class Proof:
    """The champion (as ``gain``'s candidate) compared with the previous version.

    ``number`` counts the sets of rows on which these two were compared, from 1. The sets share alpha
    (``error_budget``).

    Raises:
        GateError: The number is below 1.
    """

    gain: Gain
    number: int

    def __post_init__(self) -> None:
        _check_number(self.number)


@dataclass(frozen=True)
class Fall:
    """The champion's own scores on its held-out rows and on new ones; ``number`` counts the sets of new rows, from 1."""

    metric: str
    held_out: Sample
    new: Sample
    number: int
    higher_is_better: bool = True

    def __post_init__(self) -> None:
        _check_number(self.number)


@dataclass(frozen=True)
class Turns:
    """The champion's votes against the previous version in the order cast: 1 if it lost or both answers were bad, else
    0.

    ``before`` holds those from before it became champion, ``after`` those since.
    """

    before: tuple[float, ...]
    after: tuple[float, ...]


@dataclass(frozen=True)
class WatchedLatency:
    """The champion's latencies and the tests of them.

    Args:
        counts: Its answers since its routers were started.
        over_budget: The test of answers that took longer than the budget; None without a budget.
        previous_over_budget: The same for the previous version; None without one.
        compared: The test whether the champion is slower than the previous version by more than the policy allows.
    """

    counts: LatencyCounts
    over_budget: FailureDetector | None
    previous_over_budget: FailureDetector | None
    compared: ComparisonDetector | NotMeasured


@dataclass(frozen=True)
class NewRows:
    """The answers of the champion and of the previous version to the new rows that the watch was started with."""

    proof: Proof | NotMeasured
    score_fall: Fall | NotMeasured
    nats_fall: Fall | NotMeasured


@dataclass(frozen=True)
class WatchEvidence:
    """All measurements for one check.

    Args:
        previous: The version that a rollback would restore, or the reason why there is none.
        gate: The policy by which the champion was promoted. It sets the bounds of latency and votes.
        votes: Votes in which the previous version is the candidate.
        new_rows: None without new rows.
    """

    previous: str | NotMeasured
    gate: GatePolicy
    proof: Proof | NotMeasured
    failures: FailureDetector | NotMeasured
    previous_failures: FailureDetector | NotMeasured
    latency: WatchedLatency | NotMeasured
    votes: Votes | NotMeasured
    turns: Turns | NotMeasured
    new_rows: NewRows | None = None


def _check_number(number: int) -> None:
    if number < 1:
        raise GateError(f"set of rows number {number}; fix: count them from 1")
