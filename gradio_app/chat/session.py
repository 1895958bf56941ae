"""The state of a comparison: its contenders, the order in which they are shown, its turns and votes.

Both sides always receive the same messages. After a turn the conversation continues from the preferred answer, or from
a random one where neither is preferred. A vote therefore compares two answers to the same messages, and a side's
history does not reveal which side it is when the sides swap.
"""

from __future__ import annotations

import random
import secrets
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from gradio_app.chat.client import Endpoint, SamplingSettings, StreamedAnswer
from gradio_app.chat.naming import is_distinctive, masked, names_itself
from gradio_app.chat.pictures import MOST_CHARACTERS, MOST_IN_CONVERSATION, ShownPicture, picture_turn
from gradio_app.chat.revealed import RevealedAnswers
from mlflow_finetune_plugin.errors import FinetuneError
from mlflow_finetune_plugin.evaluation.results import Message
from mlflow_finetune_plugin.images.turns import pictures_of
from mlflow_finetune_plugin.votes.journal.vote import CastVote, clean, prompt_digest

Shuffle = Literal["turn", "session"]
LABELS = ("A", "B", "C", "D")
MOST_SIDES = len(LABELS)


class SessionError(FinetuneError, ValueError):
    """An action that is not possible now. The message says why, and what to do."""


@dataclass(frozen=True)
class Contender:
    """A model of an endpoint. ``name`` is displayed once names are shown.

    ``root`` is the model that answers, and ``parent`` is its base, as the endpoint lists them; None where it does not.
    ``sees`` says that the endpoint lists it as one that reads pictures.
    """

    model: str
    endpoint: Endpoint
    name: str
    root: str | None = None
    parent: str | None = None
    sees: bool = False

    @property
    def identities(self) -> set[str]:
        """Texts that would reveal the contender."""
        registered = self.model.rpartition("@")[0] or self.model.rpartition("/")[0]
        texts = {self.model, self.name, self.endpoint.name, registered}
        return {text for text in texts if is_distinctive(text)}


@dataclass(frozen=True)
class Prompt:
    """A prompt.

    ``reference`` is shown after the vote. ``prompt_set`` names the prompt's set; None means that the voter wrote it.
    """

    text: str
    reference: str | None = None
    prompt_set: str | None = None
    messages: tuple[Message, ...] | None = None
    """All messages of a row of a prompt set, which replace the conversation so far."""
    pictures: tuple[str, ...] = ()
    """The names of the pictures before the text, which the session holds."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", clean(str(self.text)))


@dataclass
class ComparisonTurn:
    """A turn. Tuples are by position, left first. ``order[position]`` is the contender's index in the session."""

    turn_id: str
    prompt: Prompt
    messages: tuple[Message, ...]
    contenders: tuple[Contender, ...]
    order: tuple[int, ...]
    samplings: tuple[SamplingSettings, ...]
    answers: tuple[StreamedAnswer, ...]
    is_blind: bool
    coin: int
    keeps_votes: bool = True
    """Whether a ledger stores votes between these contenders."""
    vote: CastVote | None = None
    are_names_shown: bool = False
    shown: tuple[int, ...] | None = None
    """Characters of each answer that may be shown; None means all. More would reveal which side is faster."""
    revealed: RevealedAnswers = field(default_factory=RevealedAnswers)
    """The answers that the user has seen with a name, in any session."""

    @property
    def is_over(self) -> bool:
        """Whether all answers have been received and shown."""
        return self.shown is None and all(answer.is_over for answer in self.answers)

    @property
    def is_known_by_name(self) -> bool:
        """Whether an answer equals one that was shown with its name, because the prompt was sent again."""
        return self.vote is None and any(
            self.revealed.has(self.messages_digest, answer.text) for answer in self.answers
        )

    @property
    def messages_digest(self) -> str:
        return prompt_digest(self.messages)

    @property
    def can_be_voted_on(self) -> bool:
        """Whether names are hidden, there are two sides, and both have answered completely."""
        return (
            self.is_blind
            and len(self.answers) == 2
            and self.is_over
            and all(answer.is_whole for answer in self.answers)
            and self.keeps_votes
            and not self.is_known_by_name
        )

    @property
    def hides_names(self) -> bool:
        return self.is_blind and not self.are_names_shown

    @property
    def identities(self) -> set[str]:
        return set().union(*(contender.identities for contender in self.contenders))

    def visible(self, position: int, length: int | None = None) -> str:
        """Return the first ``length`` characters of an answer, with identities masked while names are hidden."""
        answer = self.answers[position]
        if length is None and self.shown is not None:
            length = self.shown[position]
        text = answer.text if length is None else answer.text[:length]
        if not self.hides_names:
            return text
        return masked(text, self.identities, is_whole=answer.is_over and len(text) == answer.length)

    def visible_messages(self) -> list[Message]:
        """Return the turn's messages as they may be shown now. Identities in earlier answers are masked too."""
        if not self.hides_names:
            return list(self.messages)
        return [
            {**message, "content": masked(message["content"], self.identities)}
            if message["role"] == "assistant"
            else message
            for message in self.messages
        ]

    @property
    def names_itself(self) -> bool:
        return any(names_itself(answer.text, self.identities) for answer in self.answers)

    @property
    def continued_from(self) -> int | None:
        """The position whose answer the conversation continues from; None where no side answered."""
        preferred = {"left": 0, "right": 1}.get(self.vote.choice) if self.vote is not None else None
        answered = [position for position, answer in enumerate(self.answers) if answer.length and answer.fault is None]
        answered = answered or [position for position, answer in enumerate(self.answers) if answer.length]
        if preferred is not None:
            return preferred
        return answered[self.coin % len(answered)] if answered else None


@dataclass
class Session:
    """A comparison. ``login`` is its user, or None on a page without a login. Settings apply from the next turn on."""

    contenders: tuple[Contender, ...]
    login: str | None = None
    is_blind: bool = True
    shuffle: Shuffle = "turn"
    system_prompt: str = ""
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    own_samplings: dict[int, SamplingSettings] = field(default_factory=dict)
    """Settings of single contenders by index. They apply only while names are shown."""
    max_prompt_chars: int = 20_000
    max_turns: int = 50
    keeps_votes: bool = True
    votes_note: str = ""
    """Whether and how votes on these contenders count for a promotion, in a sentence."""
    voted_pair: tuple[str, str] | None = None
    """The two versions of the last vote, by their receipts; a new conversation keeps it."""
    session_id: str = field(default_factory=lambda: f"play-{uuid.uuid4().hex}")
    turns: list[ComparisonTurn] = field(default_factory=list)
    revealed: RevealedAnswers = field(default_factory=RevealedAnswers)
    """The answers that the user has seen with a name. All sessions of a user share it."""
    trouble: str | None = None
    """Why the last prompt was refused; None after the next successful action."""
    used_at: float = field(default_factory=time.monotonic)
    pictures: dict[str, ShownPicture] = field(default_factory=dict, repr=False)
    """The pictures of this conversation by their names."""
    _random: random.Random = field(default_factory=secrets.SystemRandom, repr=False)
    _order: tuple[int, ...] = ()

    @property
    def last(self) -> ComparisonTurn | None:
        return self.turns[-1] if self.turns else None

    @property
    def is_speaking(self) -> bool:
        return self.last is not None and not self.last.is_over

    @property
    def takes_pictures(self) -> bool:
        """Whether all sides read pictures."""
        return all(contender.sees for contender in self.contenders)

    def hold(self, pictures: Sequence[ShownPicture]) -> tuple[str, ...]:
        """Add pictures to the conversation, and return their names. Those of turns that were undone are dropped."""
        used = {name for turn in self.turns for name in pictures_of(turn.messages)}
        self.pictures = {name: picture for name, picture in self.pictures.items() if name in used}
        self.pictures |= {picture.name: picture for picture in pictures}
        return tuple(picture.name for picture in pictures)

    def context(self) -> tuple[Message, ...]:
        """Return the messages before the next prompt, with the answers that the conversation continues from."""
        messages = self._system()
        for turn in self.turns:
            if turn.continued_from is None:
                continue
            if turn.prompt.messages is not None:  # A prompt of a set replaces the conversation.
                messages = list(turn.messages)
            else:
                messages.append(picture_turn(turn.prompt.text, turn.prompt.pictures))
            messages.append({"role": "assistant", "content": turn.answers[turn.continued_from].text})
        return tuple(messages)

    def _system(self) -> list[Message]:
        return [{"role": "system", "content": clean(self.system_prompt)}] if self.system_prompt.strip() else []

    def begin(self, prompt: Prompt) -> ComparisonTurn:
        """Add a turn whose answers are still empty. Raises SessionError, and then changes nothing."""
        self._check(prompt)
        if prompt.messages is None:
            messages = (*self.context(), picture_turn(prompt.text, prompt.pictures))
        elif prompt.messages[0]["role"] == "system":
            messages = prompt.messages
        else:
            messages = (*self._system(), *prompt.messages)
        self._check_pictures(pictures_of(messages))
        if self.last is not None:
            self.remember_names(self.last)
        order = self._new_order()
        turn = ComparisonTurn(
            turn_id=f"turn-{uuid.uuid4().hex}",
            prompt=prompt,
            messages=messages,
            contenders=tuple(self.contenders[index] for index in order),
            order=order,
            samplings=tuple(self._sampling(index) for index in order),
            answers=tuple(StreamedAnswer() for _ in order),
            is_blind=self.is_blind,
            coin=self._random.randrange(12),  # 12 is divisible by two, three and four sides.
            keeps_votes=self.keeps_votes,
            revealed=self.revealed,
        )
        self.turns.append(turn)
        self.used_at = time.monotonic()
        return turn

    def undo(self) -> ComparisonTurn:
        """Remove the last turn from the conversation and return it. A vote on it stays stored."""
        if self.is_speaking:
            raise SessionError("The answers are still arriving. Stop them first.")
        if not self.turns:
            raise SessionError("There is nothing to undo.")
        turn = self.turns.pop()
        self.remember_names(turn)
        return turn

    def successor(self, login: str | None) -> Session:
        """Return a new conversation of the same user, with the same settings."""
        for turn in self.turns[-1:]:
            self.remember_names(turn)
        return replace(
            self,
            login=login,
            session_id=f"play-{uuid.uuid4().hex}",
            turns=[],
            pictures={},
            trouble=None,
            used_at=time.monotonic(),
            _order=(),
        )

    def remember_names(self, turn: ComparisonTurn) -> None:
        """Record the answers of a turn whose names are shown."""
        if not turn.hides_names:
            for answer in turn.answers:
                if answer.length or answer.is_whole:
                    self.revealed.add(turn.messages_digest, answer.text)

    def votable(self, choice: str) -> ComparisonTurn:
        """Return the turn that a vote would be on now. Raises SessionError with the reason where there is none.

        A vote is final once names are shown, because a change would not be blind. Reasons may still be added.
        """
        turn = self.last
        if turn is None:
            raise SessionError("Send a prompt first, then vote on the answers.")
        if not turn.is_over:
            raise SessionError("The answers are still arriving. Vote when both are complete.")
        if not turn.is_blind:
            raise SessionError("Votes need hidden names. Hide the names and send the prompt again.")
        if turn.are_names_shown and turn.vote is None:
            raise SessionError(
                "The names of this turn are already shown, and votes need hidden names. Send another prompt."
            )
        if turn.are_names_shown and turn.vote is not None and turn.vote.choice != choice:
            raise SessionError("The names are shown, so your vote on this turn is final.")
        if len(turn.answers) != 2:
            raise SessionError("A vote needs exactly two sides. Remove the others.")
        if not turn.keeps_votes:
            raise SessionError("These sides have no registered model in common, so votes on them are not stored.")
        if turn.is_known_by_name:
            raise SessionError("You have already seen this answer with its name. Send another prompt to vote.")
        if not turn.can_be_voted_on:
            raise SessionError(
                "One side did not answer completely, so a vote would not be fair. Send the prompt again."
            )
        return turn

    def show_names(self) -> ComparisonTurn:
        """Show the names of the last turn and of the turns before it. Its vote is final from then on.

        The sides swap again for the next prompt, even where they swap once per conversation. Raises SessionError for a
        turn that still needs a vote.
        """
        turn = self.last
        if turn is None or not turn.is_over:
            raise SessionError("There is no complete answer yet, so there are no names to show.")
        if turn.vote is None and turn.can_be_voted_on:
            raise SessionError("Vote first; then the names are shown.")
        for shown in self.turns:
            shown.are_names_shown = shown.vote is not None or not shown.can_be_voted_on or shown.are_names_shown
            self.remember_names(shown)
        self._order = ()
        return turn

    def _check(self, prompt: Prompt) -> None:
        if self.is_speaking:
            raise SessionError("The answers to your last prompt are still arriving. Stop them, or wait.")
        if not prompt.text.strip():
            raise SessionError("Write a prompt first.")
        total = len(prompt.text) + len(self.system_prompt)
        if total > self.max_prompt_chars:
            raise SessionError(f"The prompt has {total:,} characters; the limit is {self.max_prompt_chars:,}.")
        if len(self.turns) >= self.max_turns:
            raise SessionError(f"This conversation has reached its limit of {self.max_turns} turns. Start a new one.")
        if len(self.contenders) < 2:
            raise SessionError("There is only one model to compare. Choose a second side.")

    def _check_pictures(self, names: Sequence[str]) -> None:
        if names and not self.takes_pictures:
            raise SessionError(
                "One of these models reads text only, so this comparison takes no pictures. Choose two models that read "
                "pictures, or start a new conversation without pictures."
            )
        if len(names) > MOST_IN_CONVERSATION:
            raise SessionError(
                f"This conversation would have {len(names)} pictures; the limit is {MOST_IN_CONVERSATION}. Start a new one."
            )
        if any(name not in self.pictures for name in names):
            raise SessionError("A picture of this prompt is not on this page. Start a new conversation.")
        if sum(len(self.pictures[name].url) for name in names) > MOST_CHARACTERS:
            raise SessionError("The pictures of this conversation are too large together. Start a new one.")

    def _new_order(self) -> tuple[int, ...]:
        unshuffled = tuple(range(len(self.contenders)))
        if not self.is_blind:
            return unshuffled
        if self.shuffle == "session" and len(self._order) == len(unshuffled):
            return self._order
        self._order = tuple(self._random.sample(unshuffled, len(unshuffled)))
        return self._order

    def _sampling(self, index: int) -> SamplingSettings:
        return self.sampling if self.is_blind else self.own_samplings.get(index, self.sampling)

    def export(self) -> dict[str, Any]:
        """Return the conversation as JSON. A turn with hidden names has no names, receipts or times."""
        return {
            "session": self.session_id,
            "system_prompt": self.system_prompt,
            "turns": [exported(turn) for turn in self.turns],
        }


def exported(turn: ComparisonTurn) -> dict[str, Any]:
    """Return a turn as it is in ``Session.export``."""
    return {
        "turn_id": turn.turn_id,
        "blind": turn.is_blind,
        "messages": turn.visible_messages(),
        "reference": turn.prompt.reference if turn.vote is not None else None,
        "vote": None if turn.vote is None else turn.vote.choice,
        "carried_on": None if turn.continued_from is None else LABELS[turn.continued_from],
        "answers": [_exported_answer(turn, position) for position in range(len(turn.answers))],
    }


def _exported_answer(turn: ComparisonTurn, position: int) -> dict[str, Any]:
    answer = turn.answers[position]
    visible: dict[str, Any] = {"side": LABELS[position], "content": turn.visible(position)}
    if turn.hides_names:
        return visible
    receipt = None if answer.receipt is None else vars(answer.receipt)
    return {
        **visible,
        "model": turn.contenders[position].name,
        "sampling": turn.samplings[position].to_json(),
        "receipt": receipt,
        "first_token_s": answer.first_token_s,
        "tokens_per_s": answer.tokens_per_s,
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.completion_tokens,
        "fault": answer.fault,
    }
