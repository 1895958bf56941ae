"""One person's comparison: who meets, in which order they are shown, what was asked, what was preferred. Pure state.

Both sides are always asked the same: after a turn the conversation goes on from the answer that was preferred, and
without a preference from either, by a coin thrown beforehand. So a vote compares two answers to one prompt, and
neither side's history gives it away when sides are shuffled anew.
"""

from __future__ import annotations

import random
import secrets
import time
import uuid
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from gradio_app.chat.client import Endpoint, SamplingSettings, StreamedAnswer
from gradio_app.chat.naming import is_distinctive, masked, names_itself
from mlflow_finetune_plugin.errors import FinetuneError
from mlflow_finetune_plugin.evaluation.results import Message
from mlflow_finetune_plugin.votes.journal.vote import CastVote, clean, prompt_digest

Shuffle = Literal["turn", "session"]
RevealedAnswer = tuple[str, str]
"""An answer that was seen with its name: the digest of what was asked, and the text."""
LABELS = ("A", "B", "C", "D")
MOST_SIDES = len(LABELS)


class SessionError(FinetuneError, ValueError):
    """What a person asked for cannot be done now; the message tells them why and what to do."""


@dataclass(frozen=True)
class Contender:
    """A model of an endpoint. ``name`` is what people are told once they may know.

    As the endpoint lists them: ``root`` is who really answers, ``parent`` the base below it; None where it does not say.
    """

    model: str
    endpoint: Endpoint
    name: str
    root: str | None = None
    parent: str | None = None

    @property
    def identities(self) -> set[str]:
        """Texts that would say who this is."""
        registered = self.model.rpartition("@")[0] or self.model.rpartition("/")[0]
        found = {self.model, self.name, self.endpoint.name, registered}
        return {text for text in found if is_distinctive(text)}


@dataclass(frozen=True)
class Prompt:
    """``reference`` is shown after the vote; ``prompt_set`` says where the prompt came from; None: the person wrote it."""

    text: str
    reference: str | None = None
    prompt_set: str | None = None
    messages: tuple[Message, ...] | None = None
    """Of a prompt set: all that is asked, instead of what was said before in the session."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", clean(str(self.text)))


@dataclass
class ComparisonTurn:
    """A turn. Everything is by position, left first; ``order[position]`` is the contender's place in the session."""

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
    """Whether there is a ledger that takes votes between these."""
    vote: CastVote | None = None
    are_names_shown: bool = False
    shown: tuple[int, ...] | None = None
    """Characters of each that may be seen by now; None: all that has come. More would say which side is faster."""
    revealed: set[RevealedAnswer] = field(default_factory=set)
    """The session's: answers that its person has seen together with a name."""

    @property
    def is_over(self) -> bool:
        """All has come, and is shown."""
        return self.shown is None and all(answer.is_over for answer in self.answers)

    @property
    def is_known_by_name(self) -> bool:
        """Asked again after its names were shown, an answer that is the same is blind no more."""
        return self.vote is None and any(
            (self.messages_digest, answer.text) in self.revealed for answer in self.answers
        )

    @property
    def messages_digest(self) -> str:
        return prompt_digest(self.messages)

    @property
    def can_be_voted_on(self) -> bool:
        """Blind, of two, and both have answered whole."""
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
        """An answer as it may be shown now, up to ``length`` characters; while blind without what names a contender."""
        answer = self.answers[position]
        if length is None and self.shown is not None:
            length = self.shown[position]
        text = answer.text if length is None else answer.text[:length]
        if not self.hides_names:
            return text
        return masked(text, self.identities, is_whole=answer.is_over and len(text) == answer.length)

    def visible_messages(self) -> list[Message]:
        """What was asked, as it may be shown now: an earlier answer may name a contender, too."""
        if not self.hides_names:
            return list(self.messages)
        return [
            {**one, "content": masked(one["content"], self.identities)} if one["role"] == "assistant" else one
            for one in self.messages
        ]

    @property
    def names_itself(self) -> bool:
        return any(names_itself(answer.text, self.identities) for answer in self.answers)

    @property
    def continued_from(self) -> int | None:
        """The position whose answer the conversation goes on from; None where nobody answered."""
        preferred = {"left": 0, "right": 1}.get(self.vote.choice) if self.vote is not None else None
        spoke = [place for place, answer in enumerate(self.answers) if answer.length and answer.fault is None]
        spoke = spoke or [place for place, answer in enumerate(self.answers) if answer.length]
        if preferred is not None:
            return preferred
        return spoke[self.coin % len(spoke)] if spoke else None


@dataclass
class Session:
    """``login`` is whose it is (None: nobody said who); ``settings`` apply from the next turn on."""

    contenders: tuple[Contender, ...]
    login: str | None = None
    is_blind: bool = True
    shuffle: Shuffle = "turn"
    system_prompt: str = ""
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    own_samplings: dict[int, SamplingSettings] = field(default_factory=dict)
    """Per contender, where sides are asked differently; only while names are open."""
    max_prompt_chars: int = 20_000
    max_turns: int = 50
    keeps_votes: bool = True
    voted_pair: tuple[str, str] | None = None
    """The two versions of the last vote, by their receipts; a new conversation keeps it."""
    session_id: str = field(default_factory=lambda: f"play-{uuid.uuid4().hex}")
    turns: list[ComparisonTurn] = field(default_factory=list)
    revealed: set[RevealedAnswer] = field(default_factory=set)
    trouble: str | None = None
    """Why the last one was not asked after all; until something else is done."""
    used_at: float = field(default_factory=time.monotonic)
    _random: random.Random = field(default_factory=secrets.SystemRandom, repr=False)
    _order: tuple[int, ...] = ()

    @property
    def last(self) -> ComparisonTurn | None:
        return self.turns[-1] if self.turns else None

    @property
    def is_speaking(self) -> bool:
        return self.last is not None and not self.last.is_over

    def context(self) -> tuple[Message, ...]:
        """What a next prompt stands after: the system prompt, prompts, and the answers that the conversation went on from."""
        told = self._system()
        for turn in self.turns:
            if turn.continued_from is None:
                continue
            if turn.prompt.messages is not None:  # a prompt of a set begins anew
                told = list(turn.messages)
            else:
                told.append({"role": "user", "content": turn.prompt.text})
            told.append({"role": "assistant", "content": turn.answers[turn.continued_from].text})
        return tuple(told)

    def _system(self) -> list[Message]:
        return [{"role": "system", "content": clean(self.system_prompt)}] if self.system_prompt.strip() else []

    def begin(self, prompt: Prompt) -> ComparisonTurn:
        """A new turn, its sides in their places, its answers to come. Raises SessionError; then nothing has changed."""
        self._check(prompt)
        if self.last is not None:
            self._remember_names(self.last)
        if prompt.messages is None:
            messages = (*self.context(), {"role": "user", "content": prompt.text})
        elif prompt.messages[0]["role"] == "system":
            messages = prompt.messages
        else:
            messages = (*self._system(), *prompt.messages)
        order = self._places()
        asked = ComparisonTurn(
            turn_id=f"turn-{uuid.uuid4().hex}",
            prompt=prompt,
            messages=messages,
            contenders=tuple(self.contenders[place] for place in order),
            order=order,
            samplings=tuple(self._sampling(place) for place in order),
            answers=tuple(StreamedAnswer() for _ in order),
            is_blind=self.is_blind,
            coin=self._random.randrange(12),  # divisible by any number of sides
            keeps_votes=self.keeps_votes,
            revealed=self.revealed,
        )
        self.turns.append(asked)
        self.used_at = time.monotonic()
        return asked

    def undo(self) -> ComparisonTurn:
        """Takes the last turn away, as if it had not been asked; its vote, if any, stays cast."""
        if self.is_speaking:
            raise SessionError("The answers are still coming. Stop them first.")
        if not self.turns:
            raise SessionError("There is nothing to undo.")
        turn = self.turns.pop()
        self._remember_names(turn)
        return turn

    def successor(self, login: str | None) -> Session:
        """A new conversation of the same person, with the same settings."""
        for turn in self.turns[-1:]:
            self._remember_names(turn)
        return replace(
            self,
            login=login,
            session_id=f"play-{uuid.uuid4().hex}",
            turns=[],
            trouble=None,
            used_at=time.monotonic(),
            _order=(),
        )

    def _remember_names(self, turn: ComparisonTurn) -> None:
        """What the person has seen of a turn together with its names."""
        if not turn.hides_names:
            self.revealed |= {
                (turn.messages_digest, answer.text) for answer in turn.answers if answer.length or answer.is_whole
            }

    def votable(self, choice: str) -> ComparisonTurn:
        """The turn that a vote now would be on. Raises SessionError with the reason where there is none.

        Once names are shown a choice stands: who could change it then would not be blind. Reasons may still be added.
        """
        turn = self.last
        if turn is None:
            raise SessionError("Ask something first, then vote on the answers.")
        if not turn.is_over:
            raise SessionError("The answers are still coming. Vote when both are there.")
        if not turn.is_blind:
            raise SessionError("Votes are cast blind. Hide the names and ask again.")
        if turn.are_names_shown and turn.vote is None:
            raise SessionError("The names of this turn are shown already, and votes are cast blind. Ask again.")
        if turn.are_names_shown and turn.vote is not None and turn.vote.choice != choice:
            raise SessionError("The names are shown, so your vote on this turn stands.")
        if len(turn.answers) != 2:
            raise SessionError("A vote is between two sides. Take the others away.")
        if not turn.keeps_votes:
            raise SessionError("These sides have no registered model in common, so votes on them are not kept.")
        if turn.is_known_by_name:
            raise SessionError("You have seen this answer with its name, so a vote on it is not blind. Ask another.")
        if not turn.can_be_voted_on:
            raise SessionError("One side has not answered whole, so there is nothing fair to vote on. Ask again.")
        return turn

    def show_names(self) -> ComparisonTurn:
        """Of the last turn, after its vote, which then stands, and of the turns before it. Raises SessionError before.

        Who answers the next prompt in which place is thrown anew, also where it holds for a conversation.
        """
        turn = self.last
        if turn is None or not turn.is_over:
            raise SessionError("There is no answer yet whose name could be shown.")
        if turn.vote is None and turn.can_be_voted_on:
            raise SessionError("Vote first; then the names are shown.")
        for shown in self.turns:
            shown.are_names_shown = shown.vote is not None or not shown.can_be_voted_on or shown.are_names_shown
            self._remember_names(shown)
        self._order = ()
        return turn

    def _check(self, prompt: Prompt) -> None:
        if self.is_speaking:
            raise SessionError("The answers to your last prompt are still coming. Stop them, or wait.")
        if not prompt.text.strip():
            raise SessionError("Write a prompt first.")
        total = len(prompt.text) + len(self.system_prompt)
        if total > self.max_prompt_chars:
            raise SessionError(f"The prompt has {total:,} characters; up to {self.max_prompt_chars:,} are taken.")
        if len(self.turns) >= self.max_turns:
            raise SessionError(f"This conversation has its {self.max_turns} turns. Begin a new one.")
        if len(self.contenders) < 2:
            raise SessionError("There is only one model to compare. Choose a second side.")

    def _places(self) -> tuple[int, ...]:
        places = tuple(range(len(self.contenders)))
        if not self.is_blind:
            return places
        if self.shuffle == "session" and len(self._order) == len(places):
            return self._order
        self._order = tuple(self._random.sample(places, len(places)))
        return self._order

    def _sampling(self, place: int) -> SamplingSettings:
        return self.sampling if self.is_blind else self.own_samplings.get(place, self.sampling)

    def export(self) -> dict[str, Any]:
        """The conversation as JSON; of turns whose names are hidden, neither names nor receipts nor times."""
        return {
            "session": self.session_id,
            "system_prompt": self.system_prompt,
            "turns": [exported(turn) for turn in self.turns],
        }


def exported(turn: ComparisonTurn) -> dict[str, Any]:
    """One turn as ``Session.export`` tells it."""
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
    told: dict[str, Any] = {"side": LABELS[position], "content": turn.visible(position)}
    if turn.hides_names:
        return told
    receipt = None if answer.receipt is None else vars(answer.receipt)
    return {
        **told,
        "model": turn.contenders[position].name,
        "sampling": turn.samplings[position].to_json(),
        "receipt": receipt,
        "first_token_s": answer.first_token_s,
        "tokens_per_s": answer.tokens_per_s,
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.completion_tokens,
        "fault": answer.fault,
    }
