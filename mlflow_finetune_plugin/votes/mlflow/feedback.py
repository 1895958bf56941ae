"""A vote as MLflow feedback on the traces of both sides, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, get_args

from mlflow_finetune_plugin.errors import VoteError
from mlflow_finetune_plugin.store.names import VOTE_FEEDBACK, VOTE_METADATA
from mlflow_finetune_plugin.votes.journal.vote import Choice, Position, Receipt, VoterKind, clean, text_digest, vote_id

if TYPE_CHECKING:
    from mlflow.entities import Feedback

    from mlflow_finetune_plugin.votes.journal.journal import Entry

_POSITIONS = get_args(Position)


@dataclass(frozen=True)
class ToldSide:
    """A side as its vote's feedback tells it: the answer by length in characters and SHA-256."""

    receipt: Receipt | None
    answer_id: str
    trace_id: str
    chars: int
    answer_digest: str

    @property
    def version(self) -> str | None:
        return None if self.receipt is None else self.receipt.version


@dataclass(frozen=True)
class ToldVote:
    """A vote as MLflow holds it. ``left`` and ``right`` as shown; ``journal``, ``sequence`` and ``place`` as of ``Entry``."""

    vote_id: str
    revision: int
    journal: str
    sequence: int
    place: int
    turn_id: str
    session: str
    voter: str
    kind: VoterKind
    choice: Choice
    left: ToldSide
    right: ToldSide
    prompt_digest: str
    cast_at: datetime
    reasons: tuple[str, ...]
    comment: str
    prompt_set: str | None = None

    @property
    def winner(self) -> ToldSide | None:
        """The side preferred; None for ``tie`` and ``both_bad``."""
        return {"left": self.left, "right": self.right}.get(self.choice)

    @property
    def versions(self) -> frozenset[str | None]:
        return frozenset({self.left.version, self.right.version})


def feedback_of(entry: Entry, journal: str, trace_ids: list[str]) -> list[Feedback]:
    """One for each side, left first: ``won``, ``lost``, ``tie`` or ``both_bad`` as that side sees it."""
    from mlflow.entities import AssessmentSource, AssessmentSourceType, Feedback

    vote = entry.vote
    assert vote.cast_at is not None
    metadata = {
        "vote_id": vote.vote_id,
        "revision": str(vote.revision),
        "journal": journal,
        "sequence": str(entry.sequence),
        "place": str(entry.place),
        "turn_id": vote.turn.turn_id,
        "session": vote.turn.session,
        "voter": vote.voter,
        "kind": vote.kind,
        "choice": vote.choice,
        "shown_order": ",".join(side.position for side in vote.sides),
        "prompt_digest": vote.turn.prompt_digest,
        "cast_at": vote.cast_at.astimezone(UTC).isoformat(),
        "reasons": json.dumps(vote.reasons),
    }
    if vote.turn.prompt_set is not None:
        metadata["prompt_set"] = vote.turn.prompt_set
    for side, trace_id in zip(vote.sides, trace_ids, strict=True):
        receipt = None if side.receipt is None else asdict(side.receipt)
        answer = {"chars": len(side.answer), "answer_digest": text_digest(clean(side.answer))}
        told = {"receipt": receipt, "answer_id": side.answer_id, "trace_id": trace_id, **answer}
        metadata[side.position] = json.dumps(told)
    kinds = {"person": AssessmentSourceType.HUMAN, "judge": AssessmentSourceType.LLM_JUDGE}
    return [
        Feedback(
            name=VOTE_FEEDBACK,
            value=_value(vote.choice, position),
            source=AssessmentSource(kinds[vote.kind], clean(vote.voter)),
            rationale=clean(vote.comment) or None,
            metadata={VOTE_METADATA + key: clean(value) for key, value in metadata.items()}
            | {VOTE_METADATA + "side": position},
        )
        for position in _POSITIONS
    ]


def told_vote(feedback: Any) -> ToldVote:
    """Raises VoteError for feedback that no mirror of ours wrote, or that somebody changed."""
    told = {key.removeprefix(VOTE_METADATA): value for key, value in (feedback.metadata or {}).items()}
    try:
        vote = ToldVote(
            vote_id=told["vote_id"],
            revision=int(told["revision"]),
            journal=told["journal"],
            sequence=int(told["sequence"]),
            place=int(told["place"]),
            turn_id=told["turn_id"],
            session=told["session"],
            voter=told["voter"],
            kind=told["kind"],
            choice=told["choice"],
            left=_side(told["left"]),
            right=_side(told["right"]),
            prompt_digest=told["prompt_digest"],
            cast_at=datetime.fromisoformat(told["cast_at"]),
            reasons=tuple(json.loads(told["reasons"])),
            comment=feedback.rationale or "",
            prompt_set=told.get("prompt_set"),
        )
        _check(vote, told, feedback)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise VoteError(f"feedback {feedback.assessment_id} is no vote: {error!r}") from error
    return vote


def _side(text: str) -> ToldSide:
    told: Mapping[str, Any] = json.loads(text)
    receipt = None if told["receipt"] is None else Receipt(**told["receipt"])
    if receipt is not None and receipt.request_id != told["answer_id"]:
        raise ValueError("a side's receipt is of another answer")
    return ToldSide(receipt, told["answer_id"], told["trace_id"], int(told["chars"]), told["answer_digest"])


def _check(vote: ToldVote, told: Mapping[str, str], feedback: Any) -> None:
    """What is said twice must be the same."""
    kinds = {"HUMAN": "person", "LLM_JUDGE": "judge"}
    if vote.choice not in get_args(Choice) or kinds.get(feedback.source.source_type) != vote.kind:
        raise ValueError("its choice or its voter is none")
    if feedback.source.source_id != vote.voter:
        raise ValueError("its source is another voter")
    if feedback.feedback.value != _value(vote.choice, told["side"]):
        raise ValueError("its value is not its choice")
    if vote.vote_id != vote_id(vote.voter, vote.turn_id, [vote.left.answer_id, vote.right.answer_id]):
        raise ValueError("its vote_id is another vote's")


def _value(choice: str, position: str) -> str:
    if choice in _POSITIONS:
        return "won" if choice == position else "lost"
    return choice
