"""What was seen of a champion since it became one; what was not, with the reason."""

from __future__ import annotations

from dataclasses import dataclass

from mlflow_finetune_plugin.errors import GateError
from mlflow_finetune_plugin.gate.evidence import Gain, Latency
from mlflow_finetune_plugin.gate.policy import GatePolicy
from mlflow_finetune_plugin.gate.statistics.failure_rate import Answered
from mlflow_finetune_plugin.gate.statistics.unpaired import Sample
from mlflow_finetune_plugin.gate.votes import Vote


@dataclass(frozen=True)
class NotMeasured:
    """``why``, for a person: no reason to act, and no reason to believe that all is well."""

    why: str


@dataclass(frozen=True)
class Proof:
    """The champion (as ``gain``'s candidate) against the previous version.

    ``number`` counts the sets of rows on which these two were ever compared, from 1, and makes them share alpha
    (``error_budget``). Raises GateError for a number below 1.
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
    """Whether the champion lost, or both answers were bad (1), in votes against the previous version, in the order cast.

    ``before`` and ``after`` it became champion.
    """

    before: tuple[float, ...]
    after: tuple[float, ...]


@dataclass(frozen=True)
class NewRows:
    """What the champion, and the previous version, answered to rows that were given to the watch."""

    proof: Proof | NotMeasured
    score_fall: Fall | NotMeasured
    nats_fall: Fall | NotMeasured


@dataclass(frozen=True)
class WatchEvidence:
    """``previous``: the version that a rollback would go to, or why there is none.

    ``gate``: the champion's own written policy, which says what of latency and votes. ``votes`` have the previous version
    as candidate. ``new_rows`` is None where none were given.
    """

    previous: str | NotMeasured
    gate: GatePolicy
    proof: Proof | NotMeasured
    failures: Answered | NotMeasured
    previous_failures: Answered | NotMeasured
    latency: Latency | NotMeasured
    votes: tuple[Vote, ...] | NotMeasured
    turns: Turns | NotMeasured
    new_rows: NewRows | None = None


def _check_number(number: int) -> None:
    if number < 1:
        raise GateError(f"set of rows number {number}; fix: count them from 1")
