"""What there is to see of a champion, out of MLflow; models are asked only what no run knows yet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from mlflow_finetune_plugin.errors import FinetuneError, GateError, MoveError, TrackingError
from mlflow_finetune_plugin.evaluation.comparison import compare
from mlflow_finetune_plugin.gate.evidence import Latency
from mlflow_finetune_plugin.gate.policy import VotesPolicy
from mlflow_finetune_plugin.gate.statistics.failure_rate import Answered
from mlflow_finetune_plugin.gate.statistics.unpaired import Sample
from mlflow_finetune_plugin.gate.votes import Vote
from mlflow_finetune_plugin.gate.watch_evidence import Fall, NewRows, NotMeasured, Proof, Turns, WatchEvidence
from mlflow_finetune_plugin.promotion.answers import Note, Sources, answers_on, are_unseen, compared, metric_of
from mlflow_finetune_plugin.promotion.held_out import HeldOut
from mlflow_finetune_plugin.promotion.proven_version import ProvenVersion, check_comparable
from mlflow_finetune_plugin.store.served_tags import logged_latencies, served
from mlflow_finetune_plugin.watch.state import WatchState
from mlflow_finetune_plugin.watch.target import Watched

T = TypeVar("T")


@dataclass(frozen=True)
class Seen:
    """``state``: what the next look goes on from; ``notes``: what a person should know of how this came about."""

    evidence: WatchEvidence
    state: WatchState
    notes: tuple[str, ...]


def collect_evidence(
    watched: Watched, state: WatchState, rows: HeldOut | NotMeasured | None, sources: Sources, say: Note
) -> Seen:
    """``rows``: new ones that somebody gave; None: nobody did. Raises TrackingError; all other faults are told in the evidence."""
    notes = list(watched.notes)
    champion, previous = watched.champion, watched.previous
    state, failures = _failures(champion, state)
    previous_failures: Answered | NotMeasured = NotMeasured("there is no previous version")
    if isinstance(previous, ProvenVersion):
        state, previous_failures = _failures(previous, state)
    if isinstance(rows, HeldOut):
        state = state.with_rows(champion.number, rows.digest)
    votes, turns = _people(watched, notes)
    evidence = WatchEvidence(
        previous=_way_back(watched),
        gate=watched.gate,
        proof=_or_why(lambda: _proof(watched, _held_out(champion), 1, sources, say, notes)),
        failures=failures,
        previous_failures=previous_failures,
        latency=_or_why(lambda: _latency(watched, notes)),
        votes=votes,
        turns=turns,
        new_rows=_new_rows(watched, rows, state, sources, say, notes),
    )
    return Seen(evidence, state, tuple(dict.fromkeys(notes)))


def _way_back(watched: Watched) -> str | NotMeasured:
    if watched.no_way_back is not None or isinstance(watched.previous, NotMeasured):
        return NotMeasured(watched.no_way_back or "there is no previous version")
    return watched.previous.number


def _or_why(measure: Callable[[], T | NotMeasured]) -> T | NotMeasured:
    """What cannot be measured is said, and is no end of a look; a registry that is away is one."""
    try:
        return measure()
    except TrackingError:
        raise
    except FinetuneError as error:
        return NotMeasured(" ".join(str(error).split()))


# rows --------------------------------------------------------------------------------------------------------------------


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
    kept = _unseen(rows, [champion, previous], notes)
    module = metric_of(_metric_name(watched), champion, rows)
    own, against = answers_on(champion, rows, sources, say), answers_on(previous, rows, sources, say)
    return Proof(compared(module, rows, kept, own, against, "champion"), number)


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
    for asked in (_held_out(champion), rows):
        kept = _unseen(asked, [champion], notes)
        side = answers_on(champion, asked, sources, say).at(kept)
        _, scores = compare(module, [asked.rows[i] for i in kept], side, side, seed=0)
        samples.append(Sample(tuple(scores[f"adapter_{module.name}"]), clusters=_clusters(asked, kept)))
    return Fall(module.name, samples[0], samples[1], number, module.higher_is_better)


def _nats_fall(
    champion: ProvenVersion, rows: HeldOut, number: int, sources: Sources, say: Note, notes: list[str]
) -> Fall | NotMeasured:
    samples = []
    for asked in (_held_out(champion), rows):
        kept = _unseen(asked, [champion], notes)
        nats = answers_on(champion, asked, sources, say).nats
        tokens = [len(asked.rows[i].completion_ids) for i in kept]
        per_token = tuple(float(nats[i]) / count for i, count in zip(kept, tokens, strict=True))
        samples.append(Sample(per_token, tuple(map(float, tokens)), _clusters(asked, kept)))
    return Fall("nats per token of the references", samples[0], samples[1], number, higher_is_better=False)


def _held_out(champion: ProvenVersion) -> HeldOut:
    if champion.held_out is None:
        raise GateError(f"{champion.uri}: its run kept no held-out rows")
    return champion.held_out


def _unseen(rows: HeldOut, sides: Sequence[ProvenVersion], notes: list[str]) -> list[int]:
    """Places of the rows that no side was trained on. Raises GateError where there are none, or nobody can know."""
    champion = sides[0]
    if champion.trained_rows is None:
        raise GateError(f"{champion.uri}: what it was trained on is not known, so no rows prove anything of it")
    kept = [place for place, is_new in enumerate(are_unseen(rows.rows, sides, notes)) if is_new]
    if not kept:
        raise GateError("every row was trained on by one side or the other")
    return kept


def _clusters(rows: HeldOut, kept: Sequence[int]) -> tuple[str, ...] | None:
    """None where no two of the rows kept were drawn together."""
    drawn_with = rows.clusters
    found = tuple(drawn_with[i] for i in kept) if drawn_with is not None else ()
    return found if len(set(found)) < len(found) else None


def _metric_name(watched: Watched) -> str | None:
    return watched.gate.gain.metric if watched.gate.gain is not None else None


# what routers and people told ------------------------------------------------------------------------------------------------


def _failures(version: ProvenVersion, state: WatchState) -> tuple[WatchState, Answered | NotMeasured]:
    try:
        told = served(version.tags, version.uri)
    except GateError as error:
        return state, NotMeasured(str(error))
    after = state.with_served(version.number, told)
    found = after.served[version.number].failures
    if found.answers == 0:
        return after, NotMeasured(f"no router told of an answer of {version.uri}; fix: serve it")
    return after, found


def _latency(watched: Watched, notes: list[str]) -> Latency | NotMeasured:
    champion, previous = watched.champion, watched.previous
    if watched.gate.latency is None:
        return NotMeasured("the champion's policy asks nothing of it")
    beside = (previous.tags, previous.uri) if isinstance(previous, ProvenVersion) else None
    told: list[str] = []
    own, other = logged_latencies((champion.tags, champion.uri), beside, told)
    if own is None:
        return NotMeasured(told[0])
    notes += told
    return Latency(own, other)


def _people(watched: Watched, notes: list[str]) -> tuple[tuple[Vote, ...] | NotMeasured, Turns | NotMeasured]:
    """Votes against the previous version, since this one became champion: those before are what made it so."""
    from mlflow_finetune_plugin.votes.mlflow.reading import gate_votes, read_votes

    champion, previous, since = watched.champion, watched.previous, watched.since
    if isinstance(previous, NotMeasured):
        return previous, previous
    reading = read_votes(watched.name)
    refused = [f"{count:,} {why}" for why, count in reading.not_counted.items()]
    if refused:
        notes.append(f"votes that do not count: {', '.join(refused)}")
    after = gate_votes(reading, previous.number, champion.number, since=since)
    votes = after or NotMeasured(f"nobody has compared versions {champion.number} and {previous.number} since")
    if since is None:
        return votes, NotMeasured("when it became champion is not known, it was made so by hand")
    policy = watched.gate.votes or VotesPolicy()
    counted = 1 if policy.unit == "voter" else policy.per_voter
    before = gate_votes(reading, previous.number, champion.number, until=since)
    return votes, Turns(_bad_turns(before, counted), _bad_turns(after, counted))


def _bad_turns(votes: Sequence[Vote], per_voter: int) -> tuple[float, ...]:
    """1 where the previous version (the candidate) won or both were bad, of each voter's first ``per_voter`` votes."""
    cast: Counter[str] = Counter()
    found = []
    for vote in votes:
        cast[vote.voter] += 1
        if cast[vote.voter] <= per_voter:
            found.append(1.0 if vote.choice in ("candidate", "both_bad") else 0.0)
    return tuple(found)
