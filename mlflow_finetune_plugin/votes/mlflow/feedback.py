"""Votes as MLflow feedback on the traces of both sides: written and read back."""

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

    from mlflow_finetune_plugin.votes.journal.lines import Entry

_POSITIONS = get_args(Position)


@dataclass(frozen=True)
class MirroredSide:
    """A side of a vote that MLflow holds: its answer is given by length in characters and SHA-256."""

    receipt: Receipt | None
    answer_id: str
    trace_id: str
    chars: int
    answer_digest: str

    @property
    def version(self) -> str | None:
        return None if self.receipt is None else self.receipt.version


@dataclass(frozen=True)
class MirroredVote:
    """A vote that MLflow holds. ``left`` and ``right`` are as shown; ``sequence`` and ``first_sequence`` are those of ``Entry``."""

    vote_id: str
    revision: int
    journal: str
    sequence: int
    first_sequence: int
    turn_id: str
    session: str
    voter: str
    kind: VoterKind
    choice: Choice
    left: MirroredSide
    right: MirroredSide
    prompt_digest: str
    cast_at: datetime
    reasons: tuple[str, ...]
    comment: str
    prompt_set: str | None = None

    @property
    def winner(self) -> MirroredSide | None:
        """The preferred side; None for ``tie`` and ``both_bad``."""
        return {"left": self.left, "right": self.right}.get(self.choice)

    @property
    def versions(self) -> frozenset[str | None]:
        return frozenset({self.left.version, self.right.version})


def feedback_of(entry: Entry, journal: str, trace_ids: list[str]) -> list[Feedback]:
    """Return the feedback for each side, left first: ``won``, ``lost``, ``tie`` or ``both_bad``."""
    from mlflow.entities import AssessmentSource, AssessmentSourceType, Feedback

    vote = entry.vote
    assert vote.cast_at is not None
    metadata = {
        "vote_id": vote.vote_id,
        "revision": str(vote.revision),
        "journal": journal,
        "sequence": str(entry.sequence),
        "place": str(entry.first_sequence),
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
        content = {"receipt": receipt, "answer_id": side.answer_id, "trace_id": trace_id, **answer}
        metadata[side.position] = json.dumps(content)
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


def mirrored_vote(feedback: Any) -> MirroredVote:
    """Read a vote from its feedback. Raises VoteError for feedback of another program, or that was changed."""
    fields = {key.removeprefix(VOTE_METADATA): value for key, value in (feedback.metadata or {}).items()}
    try:
        vote = MirroredVote(
            vote_id=fields["vote_id"],
            revision=int(fields["revision"]),
            journal=fields["journal"],
            sequence=int(fields["sequence"]),
            first_sequence=int(fields["place"]),
            turn_id=fields["turn_id"],
            session=fields["session"],
            voter=fields["voter"],
            kind=fields["kind"],
            choice=fields["choice"],
            left=_side(fields["left"]),
            right=_side(fields["right"]),
            prompt_digest=fields["prompt_digest"],
            cast_at=datetime.fromisoformat(fields["cast_at"]),
            reasons=tuple(json.loads(fields["reasons"])),
            comment=feedback.rationale or "",
            prompt_set=fields.get("prompt_set"),
        )
        _check(vote, fields, feedback)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise VoteError(f"feedback {feedback.assessment_id} is not a vote: {error!r}") from error
    return vote


def _side(text: str) -> MirroredSide:
    fields: Mapping[str, Any] = json.loads(text)
    receipt = None if fields["receipt"] is None else Receipt(**fields["receipt"])
    if receipt is not None and receipt.request_id != fields["answer_id"]:
        raise ValueError("the receipt of a side belongs to another answer")
    return MirroredSide(receipt, fields["answer_id"], fields["trace_id"], int(fields["chars"]), fields["answer_digest"])


def _check(vote: MirroredVote, fields: Mapping[str, str], feedback: Any) -> None:
    """Check that fields which are stored twice agree. Raises ValueError."""
    kinds = {"HUMAN": "person", "LLM_JUDGE": "judge"}
    if vote.choice not in get_args(Choice) or kinds.get(feedback.source.source_type) != vote.kind:
        raise ValueError("the choice or the kind of voter is not valid")
    if feedback.source.source_id != vote.voter:
        raise ValueError("the source is another voter")
    if feedback.feedback.value != _value(vote.choice, fields["side"]):
        raise ValueError("the value contradicts the choice")
    if vote.vote_id != vote_id(vote.voter, vote.turn_id, [vote.left.answer_id, vote.right.answer_id]):
        raise ValueError("the vote_id belongs to another vote")


def _value(choice: str, position: str) -> str:
    if choice in _POSITIONS:
        return "won" if choice == position else "lost"
    return choice
