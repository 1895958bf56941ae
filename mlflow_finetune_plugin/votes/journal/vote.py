"""A vote: the voter, the turn, its two answers in the order shown with their receipts, and the choice."""

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
"""The voter that stands for all visitors without a login."""
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
    """The router's statement about an answer: which version gave it.

    The base model has the version ``base`` and an empty adapter digest. Raises VoteError if another field is empty.
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
            raise VoteError(f"the receipt lacks {', '.join(empty)}; fix: give all of {', '.join(_HEADERS.values())}")

    @classmethod
    def from_headers(cls, headers: Mapping[str, str]) -> Receipt | None:
        """Read the receipt from the HTTP headers of an answer; None if it is missing or incomplete."""
        lower = {name.lower(): value for name, value in headers.items()}
        if any(header not in lower for header in _HEADERS.values()):
            return None
        try:
            return cls(**{field: unquote(lower[header]) for field, header in _HEADERS.items()})
        except VoteError:
            return None


@dataclass(frozen=True)
class VoteSide:
    """One of the two answers of a vote, as shown.

    Args:
        receipt: None for an endpoint that is not a router of this package.
        answer: The text.
        trace_id: A trace of this answer that another program wrote. If it is None or the trace is gone, the mirror uses
            the trace of the turn log, or creates one.
        position: Where the answer was shown.
    """

    receipt: Receipt | None
    answer: str
    trace_id: str | None
    position: Position

    @property
    def answer_id(self) -> str:
        """The request id of the receipt; without a receipt, a digest of the position and the text."""
        if self.receipt is not None:
            return self.receipt.request_id
        return f"{self.position}:{text_digest(self.answer)}"


@dataclass(frozen=True)
class Turn:
    """A prompt that both sides answered.

    Args:
        turn_id: Unique among all turns.
        session: The session of the turn.
        messages: The whole prompt.
        prompt_set: The name of the prompt set; None: the user typed the prompt. No id and no digest depends on it.
    """

    turn_id: str
    session: str
    messages: tuple[Message, ...]
    prompt_set: str | None = None

    def __post_init__(self) -> None:
        if not self.turn_id or not self.session:
            raise VoteError("the turn has no turn_id or no session; fix: give both")
        if self.prompt_set is not None and not 0 < len(self.prompt_set) <= LONGEST_PROMPT_SET:
            raise VoteError(
                f"turn {self.turn_id}: the name of the prompt set has {len(self.prompt_set)} characters; "
                f"fix: use 1 to {LONGEST_PROMPT_SET}, or None"
            )
        if not self.messages or not all(_is_message(message) for message in self.messages):
            raise VoteError(
                f"turn {self.turn_id}: messages must each have a role and content; fix: give OpenAI messages"
            )

    @cached_property
    def prompt_digest(self) -> str:
        return prompt_digest(self.messages)


@dataclass(frozen=True)
class CastVote:
    """A vote.

    The same voter, turn and pair of answers always give the same ``vote_id``, whichever answer was on the left, so that a
    vote sent twice is one vote. A changed vote has the same id and a higher ``revision``.

    Args:
        turn: The prompt.
        sides: The two answers in the order shown, left first.
        choice: The answer that the voter prefers.
        voter: A salted hash, ``anonymous``, or the name of a judge.
        kind: Whether a person or a judge voted.
        reasons: Short tags.
        comment: Free text.
        cast_at: The time, in any time zone; None: now. For people to read; votes are not ordered by it, because clocks jump.
        revision: 1, and 1 more for each change.

    Raises:
        VoteError: A field is not valid.
    """

    turn: Turn
    sides: tuple[VoteSide, VoteSide]
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
            raise VoteError(
                f"{where}: {self.choice!r:.40} is not a choice; fix: pick one of: {', '.join(get_args(Choice))}"
            )
        if self.kind not in get_args(VoterKind):
            raise VoteError(f"{where}: {self.kind!r:.40} is not a kind of voter; fix: use person or judge")
        if not self.voter or len(self.voter) > 200:
            raise VoteError(f"{where}: the voter is empty or too long; fix: use Journal.voter(login) or ANONYMOUS")
        if len(self.sides) != 2 or [side.position for side in self.sides] != ["left", "right"]:
            raise VoteError(f"{where}: needs two sides; fix: give the left one and the right one, in this order")
        if self.sides[0].answer_id == self.sides[1].answer_id:
            raise VoteError(
                f"{where}: both sides are the same answer, {self.sides[0].answer_id}; fix: give two answers"
            )
        if len(self.reasons) > MOST_REASONS or any(not reason or len(reason) > 100 for reason in self.reasons):
            raise VoteError(
                f"{where}: reasons must be up to {MOST_REASONS} tags of 1 to 100 characters; fix: write longer text into the comment"
            )
        if len(self.comment) > LONGEST_COMMENT:
            raise VoteError(f"{where}: the comment is longer than {LONGEST_COMMENT} characters; fix: shorten it")
        if self.cast_at is None:
            object.__setattr__(self, "cast_at", datetime.now(UTC))
        elif self.cast_at.tzinfo is None:
            raise VoteError(f"{where}: cast_at has no time zone; fix: use UTC")

    @property
    def vote_id(self) -> str:
        return vote_id(self.voter, self.turn.turn_id, [side.answer_id for side in self.sides])

    @property
    def cast_at_ms(self) -> int:
        assert self.cast_at is not None
        return int(self.cast_at.timestamp() * 1000)

    def says_the_same(self, other: CastVote) -> bool:
        """Check whether two votes with the same id agree in order, choice, reasons and comment."""
        orders = [[side.answer_id for side in vote.sides] for vote in (self, other)]
        same_words = (self.reasons, self.comment) == (other.reasons, other.comment)
        return orders[0] == orders[1] and self.choice == other.choice and same_words

    def to_json(self) -> dict[str, Any]:
        """Return the vote as the journal stores it."""
        content = asdict(self)
        assert self.cast_at is not None
        if self.turn.prompt_set is None:  # Votes without a prompt set keep the format of older journals.
            del content["turn"]["prompt_set"]
        return {**content, "cast_at": self.cast_at.astimezone(UTC).isoformat()}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> CastVote:
        """Return the vote of ``to_json``. Raises VoteError, KeyError, TypeError or ValueError for anything else."""
        turn = content["turn"]
        left, right = (
            VoteSide(**{**side, "receipt": None if side["receipt"] is None else Receipt(**side["receipt"])})
            for side in content["sides"]
        )
        return cls(
            **{
                **content,
                "turn": Turn(
                    turn["turn_id"],
                    turn["session"],
                    tuple(dict(m) for m in turn["messages"]),
                    turn.get("prompt_set"),
                ),
                "sides": (left, right),
                "reasons": tuple(content["reasons"]),
                "cast_at": datetime.fromisoformat(content["cast_at"]),
            }
        )


def vote_id(voter: str, turn_id: str, answer_ids: Sequence[str]) -> str:
    """Return the UUID 5 of the voter, the turn and the two answers, in any order."""
    return str(uuid.uuid5(_NAMESPACE, json.dumps([voter, turn_id, *sorted(answer_ids)])))


def trace_id_for(turn_id: str, answer_id: str) -> str:
    """Return the trace id of an answer. It is the same for every writer, also after a crash."""
    return "tr-" + uuid.uuid5(_NAMESPACE, json.dumps(["trace", turn_id, answer_id])).hex


def prompt_digest(messages: Sequence[Message]) -> str:
    """Return the SHA-256 of the messages as JSON, as a database stores them."""
    return text_digest(json.dumps(clean_messages(messages), sort_keys=True))


def clean(text: str) -> str:
    """Replace NUL characters and lone surrogates, which databases refuse."""
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
