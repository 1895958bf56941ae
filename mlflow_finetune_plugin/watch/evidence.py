"""Collect the evidence on a champion from MLflow. Models answer rows only where no run has the answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from mlflow_finetune_plugin.errors import FinetuneError, GateError, MoveError, TrackingError
from mlflow_finetune_plugin.evaluation.comparison import compare
from mlflow_finetune_plugin.gate.evidence import Votes
from mlflow_finetune_plugin.gate.policy import VotesPolicy
from mlflow_finetune_plugin.gate.statistics.detectors.comparison import ComparisonDetector
from mlflow_finetune_plugin.gate.statistics.detectors.failures import FailureDetector
from mlflow_finetune_plugin.gate.statistics.unpaired import Sample
from mlflow_finetune_plugin.gate.votes import Vote
from mlflow_finetune_plugin.gate.watch_evidence import (
    Fall,
    NewRows,
    NotMeasured,
    Proof,
    Turns,
    WatchedLatency,
    WatchEvidence,
)
from mlflow_finetune_plugin.gate.watch_policy import WatchPolicy
from mlflow_finetune_plugin.promotion.evidence.answers import Note, Sources, answers_on, are_unseen, gain_of, metric_of
from mlflow_finetune_plugin.promotion.evidence.held_out import HeldOut
from mlflow_finetune_plugin.promotion.evidence.proven_version import ProvenVersion, check_comparable
from mlflow_finetune_plugin.store.served_tags import served
from mlflow_finetune_plugin.watch.state import WatchState
from mlflow_finetune_plugin.watch.target import Watched

T = TypeVar("T")


@dataclass(frozen=True)
class CollectedEvidence:
    """The evidence of a check.

    ``state`` is where the next check continues; ``notes`` say how the evidence came about.
    """

    evidence: WatchEvidence
    state: WatchState
    notes: tuple[str, ...]


def collect_evidence(
    watched: Watched,
    policy: WatchPolicy,
    state: WatchState,
    rows: HeldOut | NotMeasured | None,
    sources: Sources,
    say: Note,
) -> CollectedEvidence:
    """Collect what the tracking server, the routers, voters and the models know about a champion.

    Args:
        watched: The champion and the version before it.
        policy: The criteria.
        state: The counts of the last check.
        rows: New rows of the user; None where there are none.
        sources: Where answers come from.
        say: Receives a line before each step that takes time.

    Raises:
        TrackingError: MLflow does not answer. Any other fault is a ``NotMeasured`` in the evidence.
    """
    notes = list(watched.notes)
    champion, previous = watched.champion, watched.previous
    state, failures = _failures(champion, state, policy.errors.at_most, notes)
    previous_failures: FailureDetector | NotMeasured = NotMeasured("there is no previous version")
    if isinstance(previous, ProvenVersion):
        state, previous_failures = _failures(previous, state, policy.errors.at_most, notes)
    if isinstance(rows, HeldOut):
        state = state.with_rows(champion.number, rows.digest)
    state, latency = _latency(watched, state)
    votes, turns = _votes(watched, notes)
    evidence = WatchEvidence(
        previous=_rollback_target(watched),
        gate=watched.gate,
        proof=_or_why(lambda: _proof(watched, _held_out(champion), 1, sources, say, notes)),
        failures=failures,
        previous_failures=previous_failures,
        latency=latency,
        votes=votes,
        turns=turns,
        new_rows=_new_rows(watched, rows, state, sources, say, notes),
    )
    return CollectedEvidence(evidence, state, tuple(dict.fromkeys(notes)))


def _rollback_target(watched: Watched) -> str | NotMeasured:
    if watched.no_rollback is not None or isinstance(watched.previous, NotMeasured):
        return NotMeasured(watched.no_rollback or "there is no previous version")
    return watched.previous.number


def _or_why(measure: Callable[[], T | NotMeasured]) -> T | NotMeasured:
    """Return what ``measure`` returns, or why it failed. Only a registry that does not answer ends the check."""
    try:
        return measure()
    except TrackingError:
        raise
    except FinetuneError as error:
        return NotMeasured(" ".join(str(error).split()))


# rows ----------------------------------------------------------------------------------------------------------------


def _proof(
    watched: Watched, rows: HeldOut, number: int, sources: Sources, say: Note, notes: list[str]
) -> Proof | NotMeasured:
    champion, previous = watched.champion, watched.previous
    if isinstance(previous, NotMeasured):
        return previous
    try:
        check_comparable(champion, previous)
    except MoveError as error:
        return NotMeasured(str(error))
    indices = _unseen(rows, [champion, previous], notes)
    module = metric_of(_metric_name(watched), champion, rows)
    answers, previous_answers = (answers_on(version, rows, sources, say) for version in (champion, previous))
    return Proof(gain_of(module, rows, indices, answers, previous_answers, "champion"), number)


def _new_rows(
    watched: Watched,
    rows: HeldOut | NotMeasured | None,
    state: WatchState,
    sources: Sources,
    say: Note,
    notes: list[str],
) -> NewRows | None:
    if rows is None:
        return None
    if isinstance(rows, NotMeasured):
        return NewRows(rows, rows, rows)
    number = state.rows[watched.champion.number].index(rows.digest) + 1
    return NewRows(
        proof=_or_why(
            lambda: _proof(watched, rows, number + 1, sources, say, notes)
        ),  # the held-out rows are the first
        score_fall=_or_why(lambda: _score_fall(watched, rows, number, sources, say, notes)),
        nats_fall=_or_why(lambda: _nats_fall(watched.champion, rows, number, sources, say, notes)),
    )


def _score_fall(
    watched: Watched, rows: HeldOut, number: int, sources: Sources, say: Note, notes: list[str]
) -> Fall | NotMeasured:
    champion = watched.champion
    module = metric_of(_metric_name(watched), champion, rows)
    if not module.scores_single_rows:
        return NotMeasured(f"{module.name} has no score per row")
    samples = []
    for row_set in (_held_out(champion), rows):
        indices = _unseen(row_set, [champion], notes)
        answers = answers_on(champion, row_set, sources, say).at(indices)
        _, scores = compare(module, [row_set.rows[i] for i in indices], answers, answers, seed=0)
        samples.append(Sample(tuple(scores[f"adapter_{module.name}"]), clusters=_clusters(row_set, indices)))
    return Fall(module.name, samples[0], samples[1], number, module.higher_is_better)


def _nats_fall(
    champion: ProvenVersion, rows: HeldOut, number: int, sources: Sources, say: Note, notes: list[str]
) -> Fall | NotMeasured:
    samples = []
    for row_set in (_held_out(champion), rows):
        indices = _unseen(row_set, [champion], notes)
        nats = answers_on(champion, row_set, sources, say).nats
        tokens = [len(row_set.rows[i].completion_ids) for i in indices]
        per_token = tuple(float(nats[i]) / count for i, count in zip(indices, tokens, strict=True))
        samples.append(Sample(per_token, tuple(map(float, tokens)), _clusters(row_set, indices)))
    return Fall("nats per token of the references", samples[0], samples[1], number, higher_is_better=False)


def _held_out(champion: ProvenVersion) -> HeldOut:
    if champion.held_out is None:
        raise GateError(f"{champion.uri}: its run recorded no held-out rows")
    return champion.held_out


def _unseen(rows: HeldOut, versions: Sequence[ProvenVersion], notes: list[str]) -> list[int]:
    """Return the indices of the rows that no version was trained on.

    Raises GateError where there are none, or it is not known.
    """
    champion = versions[0]
    if champion.trained_rows is None:
        raise GateError(f"{champion.uri}: what it was trained on is not known, so no rows are evidence")
    is_own = champion.held_out is not None and rows.digest == champion.held_out.digest
    unseen = are_unseen(rows.rows, versions, notes, "held-out rows" if is_own else "new rows")
    indices = [index for index, is_new in enumerate(unseen) if is_new]
    if not indices:
        raise GateError("one of the versions was trained on every row")
    return indices


def _clusters(rows: HeldOut, indices: Sequence[int]) -> tuple[str, ...] | None:
    """Return the clusters of these rows; None where no two of them share one."""
    all_clusters = rows.clusters
    clusters = tuple(all_clusters[i] for i in indices) if all_clusters is not None else ()
    return clusters if len(set(clusters)) < len(clusters) else None


def _metric_name(watched: Watched) -> str | None:
    return watched.gate.gain.metric if watched.gate.gain is not None else None


# reports of routers, and votes --------------------------------------------------------------------------------------


def _failures(
    version: ProvenVersion, state: WatchState, at_most: float, notes: list[str]
) -> tuple[WatchState, FailureDetector | NotMeasured]:
    try:
        reported = served(version.tags, version.uri)
    except GateError as error:
        return state, NotMeasured(str(error))
    after = state.with_served(version.number, reported, at_most)
    notes += [
        f"{version.uri}: {summary.left_out + 1:,} failures of one API key count as one; fix: see its requests in the log of router {router}"
        for router, summary in sorted(reported.items())
        if summary.left_out
    ]
    detector = after.detectors[version.number]
    if detector.total.answers == 0:
        return after, NotMeasured(f"no router reported an answer of {version.uri}; fix: serve it")
    return after, detector


def _latency(watched: Watched, state: WatchState) -> tuple[WatchState, WatchedLatency | NotMeasured]:
    champion, previous, policy = watched.champion, watched.previous, watched.gate.latency
    if policy is None:
        return state, NotMeasured("the champion's policy sets no limit")
    other: ProvenVersion | None = previous if isinstance(previous, ProvenVersion) else None
    try:
        reports = served(champion.tags, champion.uri)
        beside = (other.number, served(other.tags, other.uri)) if other is not None else None
    except GateError as error:
        return state, NotMeasured(str(error))
    latencies = state.latencies.after(policy, (champion.number, reports), beside)
    state = replace(state, latencies=latencies)
    counts = latencies.total(champion.number)
    if not counts.total:
        older = sorted(router for router, report in reports.items() if report.latencies is None)
        fix = f"restart {', '.join(older)} with this version" if older else "serve it"
        return state, NotMeasured(f"no router reported latencies of {champion.uri}; fix: {fix}")
    budget_ms, times = policy.p95_ms, policy.over_champion
    compared: ComparisonDetector | NotMeasured = NotMeasured("there is no previous version")
    if other is not None and times is not None:
        compared = latencies.comparison(champion.number, other.number, times)
    return state, WatchedLatency(
        counts=counts,
        over_budget=latencies.budget_test(champion.number, budget_ms) if budget_ms is not None else None,
        previous_over_budget=(
            latencies.budget_test(other.number, budget_ms) if budget_ms is not None and other is not None else None
        ),
        compared=compared,
    )


def _votes(watched: Watched, notes: list[str]) -> tuple[Votes | NotMeasured, Turns | NotMeasured]:
    """Return the votes between champion and previous version since the promotion.

    Earlier votes led to the promotion itself.
    """
    from mlflow_finetune_plugin.votes.mlflow.reading import gate_votes, read_votes

    champion, previous, since = watched.champion, watched.previous, watched.since
    if isinstance(previous, NotMeasured):
        return previous, previous
    reading = read_votes(watched.name)
    not_counted = reading.not_counted_between(champion.number, previous.number)
    refused = [f"{count:,} {why}" for why, count in not_counted.items()]
    if refused:
        notes.append(f"votes that do not count: {', '.join(refused)}")
    after = gate_votes(reading, previous.number, champion.number, since=since)
    votes = (
        Votes(after, read_at=reading.read_at)
        if after
        else NotMeasured(f"no votes between versions {champion.number} and {previous.number} since the promotion")
    )
    if since is None:
        return votes, NotMeasured("the time of the promotion is not known, because the alias was set by hand")
    policy = watched.gate.votes or VotesPolicy()
    counted = 1 if policy.unit == "voter" else policy.per_voter
    before = gate_votes(reading, previous.number, champion.number, until=since)
    return votes, Turns(_bad_turns(before, counted), _bad_turns(after, counted))


def _bad_turns(votes: Sequence[Vote], per_voter: int) -> tuple[float, ...]:
    """Return 1 for each vote that the previous version won or that found both bad, of a voter's first ``per_voter``."""
    cast: Counter[str] = Counter()
    turns = []
    for vote in votes:
        cast[vote.voter] += 1
        if cast[vote.voter] <= per_voter:
            turns.append(1.0 if vote.choice in ("candidate", "both_bad") else 0.0)
    return tuple(turns)
