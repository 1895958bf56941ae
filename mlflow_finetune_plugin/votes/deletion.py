"""Deleting votes and conversations: a person's, a session's, all that are older than a time, or what nobody voted on.

In MLflow and in this host's journal. A journal on another host keeps its own until the same is said there; so does a
playground on another host with what it has not written to MLflow yet.
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
from mlflow_finetune_plugin.votes.journal.tombstones import Meant, Tombstones
from mlflow_finetune_plugin.votes.journal.vote import ANONYMOUS, CastVote, trace_id_for
from mlflow_finetune_plugin.votes.mlflow.spoken_answer import told_session
from mlflow_finetune_plugin.votes.mlflow.traces import VoteTraces, asked

if TYPE_CHECKING:
    from mlflow.entities import TraceInfo

FORGOTTEN = "forgotten"
"""Whose conversation a trace says it is, once that person is forgotten and others' votes keep it."""

_PAGE = 500
_BATCH = 100
_DAY_S = 86_400.0
_HASH = re.compile(r"v-[0-9a-f]{32}|judge:.+")


@dataclass(frozen=True)
class Deleted:
    """``votes`` of this host's journal (with their changes); of MLflow, ``traces`` and, on others' traces, ``feedback``."""

    votes: int
    traces: int
    feedback: int


def forget_voter(journal: Journal, voter: str, tracking_uri: str | None = None) -> Deleted:
    """A person's votes and conversations, by login, ``anonymous``, or the hash that MLflow shows.

    Traces go where nobody else voted on them; else the answers stay, and this voter's feedback and name go. Raises
    TrackingError, JournalError.
    """
    name = voter.strip()
    if not name:
        raise VoteError("no voter to forget; fix: give a login, a hash of a voter, or 'anonymous'")
    meant = name if is_hash(name) else journal.voter(name)

    def is_their_trace(info: TraceInfo) -> bool:
        return _metadata(info, "TRACE_USER") == meant

    def is_their_vote(feedback: Any) -> bool:
        return bool(feedback.source.source_id == meant)

    return _forget(
        journal,
        _Meaning(Meant(voter=meant), lambda vote: vote.voter == meant, is_their_trace, is_their_vote),
        tracking_uri,
    )


def is_hash(voter: str) -> bool:
    """Whether this is how MLflow shows a voter, and no login."""
    return voter == ANONYMOUS or _HASH.fullmatch(voter) is not None


def forget_session(journal: Journal, session: str, tracking_uri: str | None = None) -> Deleted:
    """Every turn of a session with every vote on it, whoever cast it. Raises TrackingError, JournalError."""
    if not session.strip():
        raise VoteError("no session to forget; fix: give its id")

    def is_its_trace(info: TraceInfo) -> bool:
        return _metadata(info, "TRACE_SESSION") == told_session(session)

    def is_its_vote(feedback: Any) -> bool:
        return bool((feedback.metadata or {}).get(VOTE_SESSION_METADATA) == session)

    return _forget(
        journal,
        _Meaning(Meant(session=session), lambda vote: vote.turn.session == session, is_its_trace, is_its_vote),
        tracking_uri,
    )


def delete_older_than(
    journal: Journal, days: float, tracking_uri: str | None = None, *, now_s: float | None = None
) -> Deleted:
    """Votes cast, and turns begun, more than ``days`` ago by the clock of their host. A turn with a younger vote stays.

    Raises VoteError for no length of time, TrackingError, JournalError.
    """
    limit_ms = _limit_ms(days, now_s)

    def is_old_trace(info: TraceInfo) -> bool:
        return bool(info.request_time <= limit_ms)

    def is_old_vote(feedback: Any) -> bool:
        cast_at = datetime.fromisoformat((feedback.metadata or {})[VOTE_TIME_METADATA])
        return int(cast_at.timestamp() * 1000) <= limit_ms

    return _forget(
        journal,
        _Meaning(Meant(until_ms=limit_ms), lambda vote: vote.cast_at_ms <= limit_ms, is_old_trace, is_old_vote),
        tracking_uri,
        searched=f"timestamp_ms <= {limit_ms}",
    )


def delete_unvoted_older_than(
    journal: Journal, days: float, tracking_uri: str | None = None, *, now_s: float | None = None
) -> Deleted:
    """Traces of turns begun more than ``days`` ago that nobody voted on, nor assessed in MLflow otherwise.

    A vote that is in this host's journal and not in MLflow yet counts. A turn voted on later has its traces made again.
    Raises VoteError for no length of time, TrackingError, JournalError.
    """
    limit_ms = _limit_ms(days, now_s)
    traces = VoteTraces(journal.model, tracking_uri)
    with journal.mirroring(), asked(traces.server):
        experiment_id = traces.experiment()
        if experiment_id is None:
            return Deleted(0, 0, 0)
        awaited = _awaited(journal, traces.server)
        searched = f"timestamp_ms <= {limit_ms} AND tag.`{VOTED_TAG}` IS NULL"
        found = [
            info.trace_id
            for info in _infos(traces, experiment_id, searched)
            if not info.assessments and info.trace_id not in awaited
        ]
        return Deleted(0, _delete(traces, experiment_id, found), 0)


@dataclass(frozen=True)
class _Meaning:
    """What is to be forgotten, as each of those who hold some of it asks."""

    in_memory: Meant
    in_journal: Callable[[CastVote], bool]
    is_trace: Callable[[TraceInfo], bool]
    is_vote: Callable[[Any], bool]


def _forget(journal: Journal, meaning: _Meaning, tracking_uri: str | None, searched: str | None = None) -> Deleted:
    """What waits in memory and the journal first: what is not there any more is not written again."""
    traces = VoteTraces(journal.model, tracking_uri)
    with journal.mirroring(), asked(traces.server):
        Tombstones(journal).add(meaning.in_memory)
        SharedConversations(journal).purge()
        gone = journal.forget(meaning.in_journal)
        experiment_id = traces.experiment()
        if experiment_id is None:
            return Deleted(len(gone), 0, 0)
        whole, single, kept = [], [], []
        for info in _infos(traces, experiment_id, searched):
            votes = [entry for entry in info.assessments if entry.name == VOTE_FEEDBACK]
            meant = [entry for entry in votes if _is_meant(meaning, info, entry)]
            if len(meant) == len(votes) and (meant or meaning.is_trace(info)):
                whole.append(info.trace_id)
                continue
            single += [(info.trace_id, entry.assessment_id) for entry in meant]
            if meaning.in_memory.voter is not None and meaning.is_trace(info):
                kept.append(info)
        for trace_id, assessment_id in single:
            traces.tracing.delete_assessment(trace_id, assessment_id)
        for info in kept:
            _disown(traces, info)
        return Deleted(len(gone), _delete(traces, experiment_id, whole), len(single))


def _is_meant(meaning: _Meaning, info: TraceInfo, feedback: Any) -> bool:
    """Feedback that is no vote of ours any more goes with its trace."""
    try:
        return meaning.is_vote(feedback)
    except (KeyError, TypeError, ValueError):
        return meaning.is_trace(info)


def _infos(traces: VoteTraces, experiment_id: str, searched: str | None) -> list[TraceInfo]:
    """All of them before anything is deleted, so that no page moves."""
    token: str | None = None
    found: list[TraceInfo] = []
    while True:
        page = traces.tracing.search_traces(
            locations=[experiment_id],
            max_results=_PAGE,
            filter_string=searched,
            page_token=token,
            include_spans=False,
        )
        found += [trace.info for trace in page]
        token = page.token
        if not token:
            return found


def _delete(traces: VoteTraces, experiment_id: str, trace_ids: Sequence[str]) -> int:
    return sum(
        traces.client.delete_traces(experiment_id, trace_ids=list(trace_ids[start : start + _BATCH]))
        for start in range(0, len(trace_ids), _BATCH)
    )


def _disown(traces: VoteTraces, info: TraceInfo) -> None:
    from mlflow.tracing.constant import TraceMetadataKey

    info.trace_metadata[TraceMetadataKey.TRACE_USER] = FORGOTTEN
    info.assessments = []  # those that are there stay
    traces.tracing.start_trace(info)


def _awaited(journal: Journal, server: str) -> set[str]:
    """The traces that votes of this host will hang on once they are mirrored."""
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
        raise VoteError(f"{days} days is no age; fix: give 0 or more")
    return int(((time.time() if now_s is None else now_s) - days * _DAY_S) * 1000)
