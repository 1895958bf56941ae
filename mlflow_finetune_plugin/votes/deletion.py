"""Delete votes and conversations: of a person, of a session, older than a time, or without a vote.

A deletion covers MLflow and the journal of this host. Journals on other hosts, and turns that a playground on another host has
not written to MLflow yet, need the same deletion there.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from mlflow_finetune_plugin.errors import VoteError
from mlflow_finetune_plugin.store.names import VOTE_FEEDBACK, VOTE_SESSION_METADATA, VOTE_TIME_METADATA, VOTED_TAG
from mlflow_finetune_plugin.votes.journal.journal import Journal
from mlflow_finetune_plugin.votes.journal.shared_links import SharedConversations
from mlflow_finetune_plugin.votes.journal.tombstones import DeletionScope, Tombstones
from mlflow_finetune_plugin.votes.journal.vote import ANONYMOUS, CastVote, trace_id_for
from mlflow_finetune_plugin.votes.mlflow.answer_trace import trace_session
from mlflow_finetune_plugin.votes.mlflow.traces import VoteTraces, tracking_errors

if TYPE_CHECKING:
    from mlflow.entities import TraceInfo

FORGOTTEN = "forgotten"
"""The user of a trace whose person was forgotten while votes of other people keep the trace."""

_BATCH = 100
_DAY_S = 86_400.0
_HASH = re.compile(r"v-[0-9a-f]{32}|judge:.+")


@dataclass(frozen=True)
class Deleted:
    """The number of deleted entries.

    Args:
        votes: Votes and changes in the journal of this host.
        traces: Traces in MLflow.
        feedback: Votes in MLflow on traces that stay, because other people voted on them.
    """

    votes: int
    traces: int
    feedback: int


def forget_voter(journal: Journal, voter: str, tracking_uri: str | None = None) -> Deleted:
    """Delete the votes and conversations of a person.

    Traces on which other people voted stay, without this person's feedback and name.

    Args:
        journal: The journal of the model.
        voter: A login, ``anonymous``, or the hash that MLflow shows.
        tracking_uri: The tracking server; None: the one that MLflow uses now.

    Raises:
        TrackingError: MLflow does not answer.
        JournalError: The journal cannot be written.
    """
    name = voter.strip()
    if not name:
        raise VoteError("the voter is empty; fix: give a login, the hash of a voter, or 'anonymous'")
    voter_hash = name if is_hash(name) else journal.voter(name)

    def is_their_trace(info: TraceInfo) -> bool:
        return _metadata(info, "TRACE_USER") == voter_hash

    def is_their_vote(feedback: Any) -> bool:
        return bool(feedback.source.source_id == voter_hash)

    return _forget(
        journal,
        _Selection(
            DeletionScope(voter=voter_hash), lambda vote: vote.voter == voter_hash, is_their_trace, is_their_vote
        ),
        tracking_uri,
    )


def is_hash(voter: str) -> bool:
    """Check whether a text is a voter as MLflow shows it, not a login."""
    return voter == ANONYMOUS or _HASH.fullmatch(voter) is not None


def forget_session(journal: Journal, session: str, tracking_uri: str | None = None) -> Deleted:
    """Delete all turns of a session with all their votes. Raises TrackingError, JournalError."""
    if not session.strip():
        raise VoteError("the session is empty; fix: give the id of a session")

    def is_its_trace(info: TraceInfo) -> bool:
        return _metadata(info, "TRACE_SESSION") == trace_session(session)

    def is_its_vote(feedback: Any) -> bool:
        return bool((feedback.metadata or {}).get(VOTE_SESSION_METADATA) == session)

    return _forget(
        journal,
        _Selection(
            DeletionScope(session=session), lambda vote: vote.turn.session == session, is_its_trace, is_its_vote
        ),
        tracking_uri,
    )


def delete_older_than(
    journal: Journal, days: float, tracking_uri: str | None = None, *, now_s: float | None = None
) -> Deleted:
    """Delete votes and turns older than ``days`` by the clock of their host. A turn with a newer vote stays.

    Raises VoteError for a negative number of days, TrackingError, JournalError.
    """
    limit_ms = _limit_ms(days, now_s)

    def is_old_trace(info: TraceInfo) -> bool:
        return bool(info.request_time <= limit_ms)

    def is_old_vote(feedback: Any) -> bool:
        cast_at = datetime.fromisoformat((feedback.metadata or {})[VOTE_TIME_METADATA])
        return int(cast_at.timestamp() * 1000) <= limit_ms

    return _forget(
        journal,
        _Selection(
            DeletionScope(until_ms=limit_ms), lambda vote: vote.cast_at_ms <= limit_ms, is_old_trace, is_old_vote
        ),
        tracking_uri,
        searched=f"timestamp_ms <= {limit_ms}",
    )


def delete_unvoted_older_than(
    journal: Journal, days: float, tracking_uri: str | None = None, *, now_s: float | None = None
) -> Deleted:
    """Delete traces of turns older than ``days`` that have neither a vote nor another assessment in MLflow.

    Traces that wait for a vote in the journal of this host stay. A later vote on a deleted turn creates its traces again.
    Raises VoteError for a negative number of days, TrackingError, JournalError.
    """
    limit_ms = _limit_ms(days, now_s)
    traces = VoteTraces(journal.model, tracking_uri)
    with journal.mirroring(), tracking_errors(traces.server):
        experiment_id = traces.experiment()
        if experiment_id is None:
            return Deleted(0, 0, 0)
        awaited = _traces_of_pending_votes(journal, traces.server)
        searched = f"timestamp_ms <= {limit_ms} AND tag.`{VOTED_TAG}` IS NULL"
        trace_ids = [
            info.trace_id
            for info in traces.search(experiment_id, searched)
            if not info.assessments and info.trace_id not in awaited
        ]
        return Deleted(0, _delete(traces, experiment_id, trace_ids), 0)


@dataclass(frozen=True)
class _Selection:
    """What to delete, as the memory, the journal and MLflow each select it."""

    scope: DeletionScope
    in_journal: Callable[[CastVote], bool]
    is_trace: Callable[[TraceInfo], bool]
    is_vote: Callable[[Any], bool]


def _forget(journal: Journal, selection: _Selection, tracking_uri: str | None, searched: str | None = None) -> Deleted:
    """Delete in memory and in the journal first, so that nothing is written to MLflow again."""
    traces = VoteTraces(journal.model, tracking_uri)
    with journal.mirroring(), tracking_errors(traces.server):
        Tombstones(journal).add(selection.scope)
        SharedConversations(journal).purge()
        votes = journal.forget(selection.in_journal)
        experiment_id = traces.experiment()
        if experiment_id is None:
            return Deleted(len(votes), 0, 0)
        whole, single, kept_infos = [], [], []
        infos = list(traces.search(experiment_id, searched))  # A deletion would shift the pages.
        for info in infos:
            feedback = [entry for entry in info.assessments if entry.name == VOTE_FEEDBACK]
            selected = [entry for entry in feedback if _is_selected(selection, info, entry)]
            if len(selected) == len(feedback) and (selected or selection.is_trace(info)):
                whole.append(info.trace_id)
                continue
            single += [(info.trace_id, entry.assessment_id) for entry in selected]
            if selection.scope.voter is not None and selection.is_trace(info):
                kept_infos.append(info)
        for trace_id, assessment_id in single:
            traces.tracing.delete_assessment(trace_id, assessment_id)
        for info in kept_infos:
            _disown(traces, info)
        return Deleted(len(votes), _delete(traces, experiment_id, whole), len(single))


def _is_selected(selection: _Selection, info: TraceInfo, feedback: Any) -> bool:
    """Feedback that cannot be read as a vote is selected with its trace."""
    try:
        return selection.is_vote(feedback)
    except (KeyError, TypeError, ValueError):
        return selection.is_trace(info)


def _delete(traces: VoteTraces, experiment_id: str, trace_ids: Sequence[str]) -> int:
    return sum(
        traces.client.delete_traces(experiment_id, trace_ids=list(trace_ids[start : start + _BATCH]))
        for start in range(0, len(trace_ids), _BATCH)
    )


def _disown(traces: VoteTraces, info: TraceInfo) -> None:
    from mlflow.tracing.constant import TraceMetadataKey

    info.trace_metadata[TraceMetadataKey.TRACE_USER] = FORGOTTEN
    info.assessments = []  # This adds none; the existing assessments stay.
    traces.tracing.start_trace(info)


def _traces_of_pending_votes(journal: Journal, server: str) -> set[str]:
    """Return the ids of the traces that the pending votes of this host will use."""
    ids = set()
    for entry in journal.entries(journal.mirrored(server)):
        for side in entry.vote.sides:
            ids |= {side.trace_id or "", trace_id_for(entry.vote.turn.turn_id, side.answer_id)}
    return ids


def _metadata(info: TraceInfo, name: str) -> str | None:
    from mlflow.tracing.constant import TraceMetadataKey

    return info.trace_metadata.get(getattr(TraceMetadataKey, name))


def _limit_ms(days: float, now_s: float | None) -> int:
    if not days >= 0:
        raise VoteError(f"{days} days is not a valid age; fix: use 0 or more")
    return int(((time.time() if now_s is None else now_s) - days * _DAY_S) * 1000)
