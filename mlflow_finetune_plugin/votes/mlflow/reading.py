"""Read the votes of a model from MLflow: each once, in order, with the reason why a vote does not count."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from mlflow_finetune_plugin.errors import VoteError
from mlflow_finetune_plugin.gate.votes import Vote
from mlflow_finetune_plugin.store.names import ADAPTER_DIGEST_TAG, BASE, BASE_DIGEST_TAG, LEFT_TAG, VOTE_FEEDBACK
from mlflow_finetune_plugin.votes.journal.vote import Receipt, VoterKind, prompt_digest, text_digest
from mlflow_finetune_plugin.votes.mlflow.answer_trace import TraceText
from mlflow_finetune_plugin.votes.mlflow.feedback import MirroredSide, MirroredVote, mirrored_vote
from mlflow_finetune_plugin.votes.mlflow.traces import VoteTraces, tracking_errors

if TYPE_CHECKING:
    from mlflow import MlflowClient

NO_RECEIPTS = "without two receipts"
SAME_VERSION = "the same version on both sides"
OTHER_MODEL = "a receipt of another model"
OTHER_BASE = "the two sides have different bases"
NO_VERSION = "a version that is not in the registry"
NO_DIGEST = "a version without an adapter digest in the registry"
OTHER_DIGEST = "a digest that differs from the version's digest in the registry"
SAME_TURN = "another vote of this voter on this turn and pair"
SAME_ANSWERS = "another vote of this voter on the same two answers"
CONTRADICTORY = "two copies that contradict each other"
UNREADABLE = "feedback that is not a vote, or was changed"


@dataclass(frozen=True)
class CheckedVote:
    """A vote and the reason why it does not count; ``fault`` None: it counts."""

    vote: MirroredVote
    fault: str | None


@dataclass(frozen=True)
class Reading:
    """The votes of a model in MLflow.

    Args:
        model: The registered model.
        votes: In the order cast, each ``vote_id`` once, with its last revision.
        copies: The number of votes that were mirrored again after a crash or an outage; they are skipped.
        unreadable: The number of feedback entries that are named as votes and cannot be read as votes.
        read_at: When they were read.
    """

    model: str
    votes: tuple[CheckedVote, ...]
    copies: int
    unreadable: int
    read_at: datetime | None = None

    @property
    def not_counted(self) -> dict[str, int]:
        """The number of votes that do not count, by reason, the most frequent first."""
        return self._reasons(self.votes)

    def not_counted_between(self, candidate: str, champion: str) -> dict[str, int]:
        """The same without votes that name another version; of feedback that cannot be read it is not known what it names."""
        pair = {candidate, champion, None}
        return self._reasons([vote for vote in self.votes if vote.vote.versions <= pair])

    def _reasons(self, votes: Sequence[CheckedVote]) -> dict[str, int]:
        reasons = Counter(vote.fault for vote in votes if vote.fault is not None)
        if self.unreadable:
            reasons[UNREADABLE] += self.unreadable
        return dict(reasons.most_common())

    def between(self, candidate: str, champion: str, kind: VoterKind = "person") -> tuple[MirroredVote, ...]:
        """Return the votes that count between two versions (or ``base``), of people or of judges."""
        pair = frozenset({candidate, champion})
        return tuple(
            vote.vote
            for vote in self.votes
            if vote.fault is None and vote.vote.kind == kind and vote.vote.versions == pair
        )

    def pairs(self, kind: VoterKind = "person") -> dict[tuple[str, str], int]:
        """Return the number of votes that count, by pair of versions."""
        counts = Counter(
            tuple(sorted(str(version) for version in vote.vote.versions))
            for vote in self.votes
            if vote.fault is None and vote.vote.kind == kind
        )
        return {(pair[0], pair[1]): count for pair, count in counts.most_common()}


def read_votes(model: str, tracking_uri: str | None = None) -> Reading:
    """Read all votes of a model. Raises TrackingError if MLflow does not answer.

    ``tracking_uri`` None: the server that MLflow uses now.
    """
    traces, read_at = VoteTraces(model, tracking_uri), datetime.now(UTC)
    with tracking_errors(traces.server):
        experiment_id = traces.experiment()
        if experiment_id is None:
            return Reading(model, (), 0, 0, read_at)
        votes: list[MirroredVote] = []
        copies = unreadable = 0
        keys: set[tuple[str, str, int]] = set()
        for trace_id, feedback in _feedback(traces, experiment_id):
            try:
                vote = mirrored_vote(feedback)
            except VoteError:
                unreadable += 1
                continue
            key = (trace_id, vote.vote_id, vote.revision)
            copies += key in keys
            keys.add(key)
            votes.append(vote)
        return Reading(model, _checked(traces.client, model, votes), copies, unreadable, read_at)


def read_texts(model: str, votes: Iterable[MirroredVote], tracking_uri: str | None = None) -> dict[str, TraceText]:
    """Return prompt and answer of the votes' sides by trace id. Raises TrackingError if MLflow does not answer."""
    traces = VoteTraces(model, tracking_uri)
    with tracking_errors(traces.server):
        return traces.texts(side.trace_id for vote in votes for side in (vote.left, vote.right))


def verified_text(side: MirroredSide, prompt: str, texts: Mapping[str, TraceText]) -> TraceText | None:
    """Return the text that was voted on.

    Args:
        side: A side of a vote.
        prompt: The prompt's digest in the vote.
        texts: The texts by trace id, of ``read_texts``.

    Returns:
        None if the trace is deleted or its text does not match the digests in the vote.
    """
    text = texts.get(side.trace_id)
    if text is None or prompt_digest(text.messages) != prompt or text_digest(text.answer) != side.answer_digest:
        return None
    return text


def gate_votes(
    reading: Reading,
    candidate: str,
    champion: str,
    *,
    since: datetime | None = None,
    until: datetime | None = None,
) -> tuple[Vote, ...]:
    """Return people's votes between two versions in the form that the gate takes; judges are left out.

    ``since`` (inclusive) and ``until`` (exclusive) limit the time of the vote by the clock of its host.
    """
    return tuple(
        Vote(vote.voter, _gate_choice(vote, candidate), vote.prompt_digest, vote.cast_at)
        for vote in reading.between(candidate, champion, "person")
        if (since is None or vote.cast_at >= since) and (until is None or vote.cast_at < until)
    )


def _gate_choice(vote: MirroredVote, candidate: str) -> Any:
    if vote.winner is None:
        return vote.choice
    return "candidate" if vote.winner.version == candidate else "champion"


def _feedback(traces: VoteTraces, experiment_id: str) -> Iterator[tuple[str, Any]]:
    """Yield trace id and feedback of the left answers, the oldest first, so that a new vote does not shift the pages.

    A vote whose left trace was deleted counts as deleted, although the right trace still has its feedback.
    """
    for info in traces.search(experiment_id, f"tag.`{LEFT_TAG}` = 'true'", order_by=["timestamp_ms ASC"]):
        for feedback in info.assessments:
            if feedback.name == VOTE_FEEDBACK:
                yield info.trace_id, feedback


# each once, in order ---------------------------------------------------------------------------------------------------


def _checked(client: MlflowClient, model: str, votes: Sequence[MirroredVote]) -> tuple[CheckedVote, ...]:
    last, contradictory = _last_revisions(votes)
    registry = _Registry(client, model)
    voted: set[tuple[Any, ...]] = set()
    checked = []
    for vote in _in_order(last):
        fault = CONTRADICTORY if vote.vote_id in contradictory else registry.fault(vote)
        turn = (vote.voter, vote.turn_id, vote.versions)
        answers = (vote.voter, frozenset({vote.left.answer_id, vote.right.answer_id}))
        if fault is None and turn in voted:
            fault = SAME_TURN
        elif fault is None and answers in voted:
            fault = SAME_ANSWERS
        elif fault is None:
            voted |= {turn, answers}
        checked.append(CheckedVote(vote, fault))
    return tuple(checked)


def _last_revisions(votes: Sequence[MirroredVote]) -> tuple[list[MirroredVote], set[str]]:
    """Return the highest revision of every vote, and the ids of votes whose copies of one revision differ."""
    last: dict[str, MirroredVote] = {}
    contradictory = set()
    for vote in votes:
        earlier = last.get(vote.vote_id)
        if earlier is None or vote.revision > earlier.revision:
            last[vote.vote_id] = vote
        elif vote.revision == earlier.revision and vote != earlier:
            contradictory.add(vote.vote_id)
    return list(last.values()), contradictory


def _in_order(votes: Sequence[MirroredVote]) -> Iterator[MirroredVote]:
    """Yield the votes of a journal in its order, and merge the journals of several hosts by time.

    Within a journal the time never goes back, so a clock that jumps does not change the order of a journal's votes.
    """
    journals: dict[str, list[MirroredVote]] = {}
    for vote in votes:
        journals.setdefault(vote.journal, []).append(vote)
    lanes = []
    for journal, cast in sorted(journals.items()):
        latest: datetime | None = None
        lane = []
        for vote in sorted(cast, key=lambda vote: vote.first_sequence):
            latest = vote.cast_at if latest is None else max(latest, vote.cast_at)
            lane.append((latest, journal, vote.first_sequence, vote.vote_id, vote))
        lanes.append(lane)
    for *_, vote in heapq.merge(*lanes, key=lambda item: item[:4]):
        yield vote


class _Registry:
    """Checks receipts against the registry, which is asked once per version."""

    def __init__(self, client: MlflowClient, model: str) -> None:
        self._client, self._model = client, model
        self._tags: dict[str, dict[str, str] | None] = {}

    def fault(self, vote: MirroredVote) -> str | None:
        """Return why the receipts are not those of two versions of the model; None if they are."""
        left, right = vote.left, vote.right
        if left.receipt is None or right.receipt is None:
            return NO_RECEIPTS
        return self._side(left, right.receipt) or self._side(right, left.receipt) or _same(left.receipt, right.receipt)

    def _side(self, side: MirroredSide, other: Receipt) -> str | None:
        receipt = side.receipt
        assert receipt is not None
        if receipt.version == BASE:
            return None if receipt.base_digest == other.base_digest else OTHER_BASE
        if receipt.model != self._model:
            return OTHER_MODEL
        tags = self._version_tags(receipt.version)
        if tags is None:
            return NO_VERSION
        digest, base = tags.get(ADAPTER_DIGEST_TAG), tags.get(BASE_DIGEST_TAG)
        if digest is None:
            return NO_DIGEST
        is_true = digest == receipt.adapter_digest and base in (None, receipt.base_digest)
        return None if is_true else OTHER_DIGEST

    def _version_tags(self, version: str) -> dict[str, str] | None:
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
