"""A model's votes as MLflow holds them, from any host: each once, in order, and why those that do not count do not."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from mlflow_finetune_plugin.errors import VoteError
from mlflow_finetune_plugin.gate.votes import Vote
from mlflow_finetune_plugin.store.names import ADAPTER_DIGEST_TAG, BASE, BASE_DIGEST_TAG, LEFT_TAG, VOTE_FEEDBACK
from mlflow_finetune_plugin.votes.journal.vote import Receipt, VoterKind
from mlflow_finetune_plugin.votes.mlflow.feedback import ToldSide, ToldVote, told_vote
from mlflow_finetune_plugin.votes.mlflow.spoken_answer import SpokenText
from mlflow_finetune_plugin.votes.mlflow.traces import VoteTraces, asked

if TYPE_CHECKING:
    from mlflow import MlflowClient

NO_RECEIPTS = "without two receipts"
SAME_VERSION = "the same version on both sides"
OTHER_MODEL = "a receipt of another model"
OTHER_BASE = "a base that is not the other side's"
NO_VERSION = "a version that the registry does not have"
NO_DIGEST = "a version whose digest the registry does not say"
OTHER_DIGEST = "a digest that is not the version's in the registry"
SAME_TURN = "another vote of this voter on this turn and pair"
SAME_ANSWERS = "another vote of this voter on the same two answers"
TWO_TALES = "told in two ways"
UNREADABLE = "feedback that is no vote, or was changed"

_PAGE = 500


@dataclass(frozen=True)
class ReadVote:
    """A vote, and the reason why it does not count (None: it counts)."""

    told: ToldVote
    fault: str | None


@dataclass(frozen=True)
class Reading:
    """What MLflow holds of a model's votes. ``votes`` in the order cast, each ``vote_id`` once, with its last revision.

    ``copies`` were mirrored more than once (after a crash or an outage) and are passed by; ``unreadable`` is feedback
    that calls itself a vote and is none.
    """

    model: str
    votes: tuple[ReadVote, ...]
    copies: int
    unreadable: int

    @property
    def not_counted(self) -> dict[str, int]:
        """Reason -> votes, the most first."""
        reasons = Counter(vote.fault for vote in self.votes if vote.fault is not None)
        if self.unreadable:
            reasons[UNREADABLE] += self.unreadable
        return dict(reasons.most_common())

    def between(self, candidate: str, champion: str, kind: VoterKind = "person") -> tuple[ToldVote, ...]:
        """The votes that count between two versions, of people or of judges, never of both. ``base`` is a version, too."""
        pair = frozenset({candidate, champion})
        return tuple(
            vote.told
            for vote in self.votes
            if vote.fault is None and vote.told.kind == kind and vote.told.versions == pair
        )

    def pairs(self, kind: VoterKind = "person") -> dict[tuple[str, str], int]:
        """Which two versions were voted on, in the order of their names, and how often."""
        found = Counter(
            tuple(sorted(str(version) for version in vote.told.versions))
            for vote in self.votes
            if vote.fault is None and vote.told.kind == kind
        )
        return {(pair[0], pair[1]): count for pair, count in found.most_common()}

    def pair_number(self, candidate: str, champion: str) -> int:
        """The how-manyeth pair this is that people voted on, by their first votes; one that nobody voted on is the next.

        Each pair is a test of its own, and all share one error rate (``gate.error_budget``).
        """
        stood = dict.fromkeys(
            vote.told.versions for vote in self.votes if vote.fault is None and vote.told.kind == "person"
        )
        pair = frozenset({candidate, champion})
        return [*dict.fromkeys([*stood, pair])].index(pair) + 1


def read_votes(model: str, tracking_uri: str | None = None) -> Reading:
    """All votes of ``model``. Raises TrackingError when MLflow cannot be asked."""
    traces = VoteTraces(model, tracking_uri)
    with asked(traces.server):
        experiment_id = traces.experiment()
        if experiment_id is None:
            return Reading(model, (), 0, 0)
        told: list[ToldVote] = []
        copies = unreadable = 0
        seen: set[tuple[str, str, int]] = set()
        for trace_id, feedback in _feedback(traces, experiment_id):
            try:
                vote = told_vote(feedback)
            except VoteError:
                unreadable += 1
                continue
            key = (trace_id, vote.vote_id, vote.revision)
            copies += key in seen
            seen.add(key)
            told.append(vote)
        return Reading(model, _judged(traces.client, model, told), copies, unreadable)


def read_texts(model: str, votes: Iterable[ToldVote], tracking_uri: str | None = None) -> dict[str, SpokenText]:
    """Trace id -> what was asked and answered there. Raises TrackingError when MLflow cannot be asked."""
    traces = VoteTraces(model, tracking_uri)
    with asked(traces.server):
        return traces.texts(side.trace_id for vote in votes for side in (vote.left, vote.right))


def gate_votes(
    reading: Reading,
    candidate: str,
    champion: str,
    *,
    since: datetime | None = None,
    until: datetime | None = None,
) -> tuple[Vote, ...]:
    """People's votes between two versions, as the gate takes them. Judges are not people.

    ``since`` and ``until`` (not itself): by the clock of whoever took the vote, all others are left out.
    """
    return tuple(
        Vote(vote.voter, _gate_choice(vote, candidate))
        for vote in reading.between(candidate, champion, "person")
        if (since is None or vote.cast_at >= since) and (until is None or vote.cast_at < until)
    )


def _gate_choice(vote: ToldVote, candidate: str) -> Any:
    if vote.winner is None:
        return vote.choice
    return "candidate" if vote.winner.version == candidate else "champion"


def _feedback(traces: VoteTraces, experiment_id: str) -> Iterator[tuple[str, Any]]:
    """Of the left answers' traces, from the oldest, so that what is cast meanwhile moves no page.

    A vote whose left trace somebody deleted is deleted, although the right one still shows it.
    """
    token: str | None = None
    while True:
        page = traces.tracing.search_traces(
            locations=[experiment_id],
            max_results=_PAGE,
            filter_string=f"tag.`{LEFT_TAG}` = 'true'",
            order_by=["timestamp_ms ASC"],
            page_token=token,
            include_spans=False,
        )
        for trace in page:
            for feedback in trace.info.assessments:
                if feedback.name == VOTE_FEEDBACK:
                    yield trace.info.trace_id, feedback
        token = page.token
        if not token:
            return


# each once, in order ---------------------------------------------------------------------------------------------------


def _judged(client: MlflowClient, model: str, told: Sequence[ToldVote]) -> tuple[ReadVote, ...]:
    last, two_tales = _last_revisions(told)
    registry = _Registry(client, model)
    voted: set[tuple[Any, ...]] = set()
    found = []
    for vote in _in_order(last):
        fault = TWO_TALES if vote.vote_id in two_tales else registry.fault(vote)
        turn = (vote.voter, vote.turn_id, vote.versions)
        answers = (vote.voter, frozenset({vote.left.answer_id, vote.right.answer_id}))
        if fault is None and turn in voted:
            fault = SAME_TURN
        elif fault is None and answers in voted:
            fault = SAME_ANSWERS
        elif fault is None:
            voted |= {turn, answers}
        found.append(ReadVote(vote, fault))
    return tuple(found)


def _last_revisions(told: Sequence[ToldVote]) -> tuple[list[ToldVote], set[str]]:
    """The highest revision of every vote; and the votes of which one revision says different things."""
    last: dict[str, ToldVote] = {}
    two_tales = set()
    for vote in told:
        known = last.get(vote.vote_id)
        if known is None or vote.revision > known.revision:
            last[vote.vote_id] = vote
        elif vote.revision == known.revision and vote != known:
            two_tales.add(vote.vote_id)
    return list(last.values()), two_tales


def _in_order(votes: Sequence[ToldVote]) -> Iterator[ToldVote]:
    """By place within a journal; several hosts' journals are merged by time, made to stand still where a clock went back.

    So no jump of a clock changes the order of one journal's votes.
    """
    journals: dict[str, list[ToldVote]] = {}
    for vote in votes:
        journals.setdefault(vote.journal, []).append(vote)
    lanes = []
    for journal, cast in sorted(journals.items()):
        latest: datetime | None = None
        lane = []
        for vote in sorted(cast, key=lambda vote: vote.place):
            latest = vote.cast_at if latest is None else max(latest, vote.cast_at)
            lane.append((latest, journal, vote.place, vote.vote_id, vote))
        lanes.append(lane)
    for *_, vote in heapq.merge(*lanes, key=lambda item: item[:4]):
        yield vote


class _Registry:
    """What the registry says of the versions in receipts, asked once each."""

    def __init__(self, client: MlflowClient, model: str) -> None:
        self._client, self._model = client, model
        self._tags: dict[str, dict[str, str] | None] = {}

    def fault(self, vote: ToldVote) -> str | None:
        """Why the receipts are not those of two versions of the model."""
        left, right = vote.left, vote.right
        if left.receipt is None or right.receipt is None:
            return NO_RECEIPTS
        return self._side(left, right.receipt) or self._side(right, left.receipt) or _same(left.receipt, right.receipt)

    def _side(self, side: ToldSide, other: Receipt) -> str | None:
        receipt = side.receipt
        assert receipt is not None
        if receipt.version == BASE:
            return None if receipt.base_digest == other.base_digest else OTHER_BASE
        if receipt.model != self._model:
            return OTHER_MODEL
        tags = self._ask(receipt.version)
        if tags is None:
            return NO_VERSION
        digest, base = tags.get(ADAPTER_DIGEST_TAG), tags.get(BASE_DIGEST_TAG)
        if digest is None:
            return NO_DIGEST
        is_true = digest == receipt.adapter_digest and base in (None, receipt.base_digest)
        return None if is_true else OTHER_DIGEST

    def _ask(self, version: str) -> dict[str, str] | None:
        from mlflow.exceptions import MlflowException

        if version not in self._tags:
            try:
                self._tags[version] = dict(self._client.get_model_version(self._model, version).tags)
            except MlflowException as error:
                if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                    raise
                self._tags[version] = None
        return self._tags[version]


def _same(left: Receipt, right: Receipt) -> str | None:
    return SAME_VERSION if left.version == right.version else None
