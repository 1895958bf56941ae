"""One vote: who saw which two answers in which order, who gave them, and which one was preferred."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Literal, get_args
from urllib.parse import unquote

from mlflow_finetune_plugin.errors import VoteError
from mlflow_finetune_plugin.evaluation.results import Message
from mlflow_finetune_plugin.store.names import BASE

Choice = Literal["left", "right", "tie", "both_bad"]
VoterKind = Literal["person", "judge"]
Position = Literal["left", "right"]

ANONYMOUS = "anonymous"
"""The one voter that all visitors without a login are."""
LONGEST_COMMENT = 4000
"""Characters."""
MOST_REASONS = 20
LONGEST_PROMPT_SET = 100
"""Characters."""

_NAMESPACE = uuid.UUID("6f0f3d0e-8a3d-5c1c-9b57-0d4b6a7f5f10")
_HEADERS = {
    "model": "x-finetune-model",
    "version": "x-finetune-version",
    "adapter_digest": "x-finetune-adapter-digest",
    "base_digest": "x-finetune-base-digest",
    "request_id": "x-finetune-request-id",
}


@dataclass(frozen=True)
class Receipt:
    """What the router says of an answer: who gave it. A base alone has the version ``base`` and no adapter digest.

    Raises VoteError for one that is not whole.
    """

    model: str
    version: str
    adapter_digest: str
    base_digest: str
    request_id: str

    def __post_init__(self) -> None:
        empty = [name for name, value in asdict(self).items() if not isinstance(value, str) or not value]
        if self.version == BASE and self.adapter_digest == "":
            empty.remove("adapter_digest")
        if empty:
            raise VoteError(f"a receipt lacks {', '.join(empty)}; fix: give all of {', '.join(_HEADERS.values())}")

    @classmethod
    def from_headers(cls, headers: Mapping[str, str]) -> Receipt | None:
        """Of an answer's HTTP headers, whatever their case; None where they are no whole receipt."""
        lower = {name.lower(): value for name, value in headers.items()}
        if any(header not in lower for header in _HEADERS.values()):
            return None
        try:
            return cls(**{field: unquote(lower[header]) for field, header in _HEADERS.items()})
        except VoteError:
            return None


@dataclass(frozen=True)
class Side:
    """One of the two answers, as shown. ``receipt`` is None for an endpoint that is not ours.

    ``trace_id`` names a trace of this answer that somebody else wrote; None, and where that one is gone: the mirror takes the
    turn log's, or makes one.
    """

    receipt: Receipt | None
    answer: str
    trace_id: str | None
    position: Position

    @property
    def answer_id(self) -> str:
        """The request's id; of an answer without a receipt, a digest of its place and text."""
        if self.receipt is not None:
            return self.receipt.request_id
        return f"{self.position}:{text_digest(self.answer)}"


@dataclass(frozen=True)
class Turn:
    """What both sides were asked. ``turn_id`` must be unique among all turns; ``messages`` are the whole prompt.

    ``prompt_set`` names the set that the prompt was taken from, so that votes can be told apart by it; None: somebody
    typed it. It says nothing of which turn or vote this is, so no id and no digest depends on it.
    """

    turn_id: str
    session: str
    messages: tuple[Message, ...]
    prompt_set: str | None = None

    def __post_init__(self) -> None:
        if not self.turn_id or not self.session:
            raise VoteError("a turn lacks its turn_id or session; fix: give both")
        if self.prompt_set is not None and not 0 < len(self.prompt_set) <= LONGEST_PROMPT_SET:
            raise VoteError(
                f"turn {self.turn_id}: the name of a prompt set has 1 to {LONGEST_PROMPT_SET} characters, this one "
                f"{len(self.prompt_set)}; fix: give a short one, or None"
            )
        if not self.messages or not all(_is_message(message) for message in self.messages):
            raise VoteError(
                f"turn {self.turn_id}: has no prompt of messages with role and content; fix: give OpenAI messages"
            )

    @cached_property
    def prompt_digest(self) -> str:
        return prompt_digest(self.messages)


@dataclass(frozen=True)
class CastVote:
    """A vote. ``sides`` are in the order shown, left first; ``voter`` is a salted hash, ``anonymous`` or a judge's name.

    The same voter, turn and pair of answers always give the same ``vote_id``, whichever was left, so that a vote sent
    twice is one vote. A changed vote has the same id and a higher ``revision``. ``cast_at`` (UTC) is for people to
    read: nothing is ordered by it, for clocks jump. Raises VoteError for what is no vote.
    """

    turn: Turn
    sides: tuple[Side, Side]
    choice: Choice
    voter: str
    kind: VoterKind = "person"
    reasons: tuple[str, ...] = ()
    comment: str = ""
    cast_at: datetime | None = None
    revision: int = 1

    def __post_init__(self) -> None:
        where = f"a vote on turn {self.turn.turn_id}"
        if self.choice not in get_args(Choice):
            raise VoteError(f"{where}: no choice {self.choice!r:.40}; fix: pick one of: {', '.join(get_args(Choice))}")
        if self.kind not in get_args(VoterKind):
            raise VoteError(f"{where}: no kind of voter {self.kind!r:.40}; fix: person or judge")
        if not self.voter or len(self.voter) > 200:
            raise VoteError(f"{where}: has no voter, or one too long; fix: Journal.voter(login) or ANONYMOUS")
        if len(self.sides) != 2 or [side.position for side in self.sides] != ["left", "right"]:
            raise VoteError(f"{where}: has not two sides; fix: give the left and the right one, in this order")
        if self.sides[0].answer_id == self.sides[1].answer_id:
            raise VoteError(f"{where}: both sides are one answer, {self.sides[0].answer_id}; fix: give two")
        if len(self.reasons) > MOST_REASONS or any(not reason or len(reason) > 100 for reason in self.reasons):
            raise VoteError(
                f"{where}: reasons are up to {MOST_REASONS} short tags; fix: put longer words in the comment"
            )
        if len(self.comment) > LONGEST_COMMENT:
            raise VoteError(f"{where}: the comment is longer than {LONGEST_COMMENT} characters; fix: shorten it")
        if self.cast_at is None:
            object.__setattr__(self, "cast_at", datetime.now(UTC))
        elif self.cast_at.tzinfo is None:
            raise VoteError(f"{where}: cast_at has no time zone; fix: give UTC")

    @property
    def vote_id(self) -> str:
        return vote_id(self.voter, self.turn.turn_id, [side.answer_id for side in self.sides])

    @property
    def cast_at_ms(self) -> int:
        assert self.cast_at is not None
        return int(self.cast_at.timestamp() * 1000)

    def says_the_same(self, other: CastVote) -> bool:
        """Whether a second sending of the vote changes anything. The other way round, ``left`` is another answer."""
        shown = [[side.answer_id for side in vote.sides] for vote in (self, other)]
        same_words = (self.reasons, self.comment) == (other.reasons, other.comment)
        return shown[0] == shown[1] and self.choice == other.choice and same_words

    def to_json(self) -> dict[str, Any]:
        told = asdict(self)
        assert self.cast_at is not None
        if self.turn.prompt_set is None:  # such lines stay as they were before sets had names
            del told["turn"]["prompt_set"]
        return {**told, "cast_at": self.cast_at.astimezone(UTC).isoformat()}

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> CastVote:
        """The vote that ``to_json`` told. Raises VoteError, KeyError, TypeError or ValueError for anything else."""
        turn = told["turn"]
        left, right = (
            Side(**{**side, "receipt": None if side["receipt"] is None else Receipt(**side["receipt"])})
            for side in told["sides"]
        )
        return cls(
            **{
                **told,
                "turn": Turn(
                    turn["turn_id"],
                    turn["session"],
                    tuple(dict(m) for m in turn["messages"]),
                    turn.get("prompt_set"),
                ),
                "sides": (left, right),
                "reasons": tuple(told["reasons"]),
                "cast_at": datetime.fromisoformat(told["cast_at"]),
            }
        )


def vote_id(voter: str, turn_id: str, answer_ids: Sequence[str]) -> str:
    """UUID 5 over the voter, the turn and the two answers in no order."""
    return str(uuid.uuid5(_NAMESPACE, json.dumps([voter, turn_id, *sorted(answer_ids)])))


def trace_id_for(turn_id: str, answer_id: str) -> str:
    """The trace of an answer, whoever makes it; the same again after a crash."""
    return "tr-" + uuid.uuid5(_NAMESPACE, json.dumps(["trace", turn_id, answer_id])).hex


def prompt_digest(messages: Sequence[Message]) -> str:
    """SHA-256 over the messages as JSON, as a database keeps them."""
    return text_digest(json.dumps(clean_messages(messages), sort_keys=True))


def clean(text: str) -> str:
    """What any database takes: no NUL, no lone surrogates."""
    return text.encode("utf-8", "replace").decode().replace("\0", "�")


def clean_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    return [
        {key: clean(value) if isinstance(value, str) else value for key, value in message.items()}
        for message in messages
    ]


def text_digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _is_message(message: Any) -> bool:
    return (
        isinstance(message, Mapping)
        and isinstance(message.get("content"), str)
        and isinstance(message.get("role"), str)
        and bool(message["role"])
    )
