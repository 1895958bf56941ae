"""Deleting votes with their traces: a person's, a session's, or all that are older than a time.

In MLflow and in this host's journal. A journal on another host keeps its own until the same is said there.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from mlflow_finetune_plugin.errors import VoteError
from mlflow_finetune_plugin.votes.feedback import FEEDBACK
from mlflow_finetune_plugin.votes.journal import Journal
from mlflow_finetune_plugin.votes.traces import VoteTraces, asked
from mlflow_finetune_plugin.votes.vote import ANONYMOUS, CastVote

_PAGE = 500
_BATCH = 100
_DAY_S = 86_400.0
_HASH = re.compile(r"v-[0-9a-f]{32}|judge:.+")


@dataclass(frozen=True)
class Deleted:
    """``votes`` of this host's journal (with their changes), and MLflow's ``traces`` and single ``feedback``."""

    votes: int
    traces: int
    feedback: int


def forget_voter(journal: Journal, voter: str, tracking_uri: str | None = None) -> Deleted:
    """A person's votes, by login, ``anonymous``, or the hash that MLflow shows.

    Their traces go where nobody else voted on them; else the answers stay and this voter's feedback goes. Raises
    TrackingError, JournalError.
    """
    name = voter.strip()
    if not name:
        raise VoteError("no voter to forget; fix: give a login, a hash of a voter, or 'anonymous'")
    meant = name if is_hash(name) else journal.voter(name)

    def is_theirs(feedback: Any) -> bool:
        return bool(feedback.source.source_id == meant)

    return _forget(journal, lambda vote: vote.voter == meant, is_theirs, tracking_uri)


def is_hash(voter: str) -> bool:
    """Whether this is how MLflow shows a voter, and no login."""
    return voter == ANONYMOUS or _HASH.fullmatch(voter) is not None


def forget_session(journal: Journal, session: str, tracking_uri: str | None = None) -> Deleted:
    """Every vote on the turns of a session, whoever cast it, with the traces. Raises TrackingError, JournalError."""
    if not session.strip():
        raise VoteError("no session to forget; fix: give its id")

    def is_theirs(feedback: Any) -> bool:
        return bool((feedback.metadata or {}).get("finetune.session") == session)

    return _forget(journal, lambda vote: vote.turn.session == session, is_theirs, tracking_uri)


def delete_older_than(
    journal: Journal, days: float, tracking_uri: str | None = None, *, now_s: float | None = None
) -> Deleted:
    """Votes that were cast more than ``days`` ago, by the clock of their host, with their traces.

    Raises VoteError for no length of time, TrackingError, JournalError.
    """
    if not days >= 0:
        raise VoteError(f"{days} days is no age; fix: give 0 or more")
    limit_ms = int(((time.time() if now_s is None else now_s) - days * _DAY_S) * 1000)
    traces = VoteTraces(journal.model, tracking_uri)
    with journal.mirroring(), asked(traces.server):
        gone = journal.forget(lambda vote: vote.cast_at_ms <= limit_ms)
        experiment_id = traces.experiment()
        deleted = 0
        while experiment_id is not None:
            batch = traces.client.delete_traces(experiment_id, max_timestamp_millis=limit_ms, max_traces=_BATCH)
            deleted += batch
            if batch < _BATCH:
                break
    return Deleted(len(gone), deleted, 0)


def _forget(
    journal: Journal,
    is_meant: Callable[[CastVote], bool],
    is_theirs: Callable[[Any], bool],
    tracking_uri: str | None,
) -> Deleted:
    """The journal first: what is not there any more is not mirrored again."""
    traces = VoteTraces(journal.model, tracking_uri)
    with journal.mirroring(), asked(traces.server):
        gone = journal.forget(is_meant)
        experiment_id = traces.experiment()
        if experiment_id is None:
            return Deleted(len(gone), 0, 0)
        whole, single = [], []
        for trace_id, feedback in _votes_by_trace(traces, experiment_id):
            theirs = [entry for entry in feedback if is_theirs(entry)]
            if theirs and len(theirs) == len(feedback):
                whole.append(trace_id)
            else:
                single += [(trace_id, entry.assessment_id) for entry in theirs]
        for trace_id, assessment_id in single:
            traces.tracing.delete_assessment(trace_id, assessment_id)
        deleted = 0
        for start in range(0, len(whole), _BATCH):
            deleted += traces.client.delete_traces(experiment_id, trace_ids=whole[start : start + _BATCH])
    return Deleted(len(gone), deleted, len(single))


def _votes_by_trace(traces: VoteTraces, experiment_id: str) -> Iterator[tuple[str, list[Any]]]:
    """All of them before anything is deleted, so that no page moves."""
    token: str | None = None
    found = []
    while True:
        page = traces.tracing.search_traces(
            locations=[experiment_id], max_results=_PAGE, page_token=token, include_spans=False
        )
        for trace in page:
            votes = [entry for entry in trace.info.assessments if entry.name == FEEDBACK]
            if votes:
                found.append((trace.info.trace_id, votes))
        token = page.token
        if not token:
            return iter(found)
