"""The playground behind its page: who is served, everybody's sessions, votes, prompt sets and links. No Gradio here."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, get_args

import aiohttp

from gradio_app.chat.client import Endpoint, new_http
from gradio_app.chat.endpoints import ServedModels, default_sides, discover
from gradio_app.chat.naming import SELF_NAMING
from gradio_app.chat.session import ComparisonTurn, Contender, Prompt, Session, SessionError
from gradio_app.chat.streams import Streams
from gradio_app.ledgers import Ledger, Ledgers
from gradio_app.prompts.progress import Progress
from gradio_app.prompts.walk import PromptWalk, prompt_to_ask
from gradio_app.registry_client import ask_mlflow
from gradio_app.settings import PlaygroundSettings
from mlflow_finetune_plugin.credentials.router_key import ROUTER_KEY
from mlflow_finetune_plugin.errors import FinetuneError
from mlflow_finetune_plugin.votes.journal.vote import CastVote, Choice, Turn, VoteSide
from mlflow_finetune_plugin.votes.mlflow.answer_trace import STOPPED, TracedAnswer
from mlflow_finetune_plugin.votes.prompt_sets import PromptSet

logger = logging.getLogger(__name__)

MOST_SESSIONS = 5_000
IDLE_S = 2 * 3600.0
SERVED_FOR_S = 5.0
REASONS = ("correct", "helpful", "clear", "style", "too long", "made up", "unsafe")
"""Tags that the page offers beside a vote."""


class Playground:
    """One per app. Everything but ``vote`` and ``__init__`` belongs to the event loop that serves the page."""

    def __init__(self, settings: PlaygroundSettings, tracking_uri: str | None = None) -> None:
        self.settings = settings
        key = os.environ.get(ROUTER_KEY) or None
        self.endpoints = tuple(  # the first one gets the key of the environment; the others are somebody else's
            Endpoint(url.rstrip("/"), key if place == 0 else None) for place, url in enumerate(settings.endpoints)
        )
        self.streams = Streams(settings, self._client, self._note)
        self._http: aiohttp.ClientSession | None = None
        self._served: tuple[float, ServedModels] | None = None
        self._looking = asyncio.Lock()
        self._sessions: dict[str, Session] = {}
        self.ledgers = Ledgers(tracking_uri, settings.keep_traces_days)
        self.walk = PromptWalk(settings.prompt_sets, longest_prompt_chars=settings.max_prompt_chars)

    # who is served ------------------------------------------------------------------------------------------------

    async def served(self) -> ServedModels:
        """Asked anew after a few seconds, once for all who wait."""
        async with self._looking:
            if self._served is None or time.monotonic() - self._served[0] > SERVED_FOR_S:
                self._served = (time.monotonic(), await discover(self._client(), self.endpoints))
            return self._served[1]

    def _client(self) -> aiohttp.ClientSession:
        if self._http is None or self._http.closed:
            self._http = new_http()
        return self._http

    # sessions -----------------------------------------------------------------------------------------------------

    async def session(self, key: str, login: str | None) -> Session:
        """The session of a page, or of an API client, by its secret key; begun where there is none. Raises SessionError."""
        found = self._sessions.get(key)
        if found is not None and found.login == login:
            found.used_at = time.monotonic()
            self._voted_model(found)
            return found
        return await self.begin(key, login)

    async def begin(self, key: str, login: str | None, like: Session | None = None) -> Session:
        """A new session in its place, with the settings of ``like``. Raises SessionError where nobody can be compared."""
        self._forget_idle()
        if len(self._sessions) >= MOST_SESSIONS and key not in self._sessions:
            self._forget_one_of(login)
        if like is None:
            served = await self.served()
            sides = tuple(served.find(name) for name in self.settings.sides)
            made = Session(
                contenders=sides or default_sides(served, self.settings.model),
                login=login,
                max_prompt_chars=self.settings.max_prompt_chars,
                max_turns=self.settings.max_turns,
            )
        else:
            made = like.successor(login)
        if key in self._sessions:
            self.streams.stop(self._sessions[key])  # nobody sees what it would say
        self._sessions[key] = made
        self._warm(made)
        return made

    def _warm(self, session: Session) -> None:
        if (model := self._voted_model(session)) is not None:
            self.ledgers.warm(model)

    def _voted_model(self, session: Session) -> str | None:
        """Whose ledger takes this session's votes; the session knows whether there is one before anybody votes."""
        if self._served is None:
            return None
        served = self._served[1]
        model = self.model_of(session.contenders, served)
        if (
            model is not None or not served.faults
        ):  # an endpoint that is away tells no names, and is not forgotten for it
            session.keeps_votes = model is not None
        return model

    def known(self, key: str, login: str | None) -> Session | None:
        """The session, where it has begun."""
        found = self._sessions.get(key)
        return found if found is not None and found.login == login else None

    def forget(self, key: str) -> None:
        """The page was closed: what is being received for it ends."""
        session = self._sessions.pop(key, None)
        if session is not None:
            self.streams.stop(session)

    def _forget_idle(self) -> None:
        limit = time.monotonic() - IDLE_S
        for key in [key for key, session in self._sessions.items() if session.used_at < limit]:
            self.forget(key)

    def _forget_one_of(self, login: str | None) -> None:
        """For one more of ``login``: the one used longest ago of whoever has most. Raises SessionError where all speak."""
        count = Counter(session.login for session in self._sessions.values())
        most = max(count, key=lambda one: (count[one], one == login))
        idle = [key for key, one in self._sessions.items() if one.login == most and not one.is_speaking]
        if not idle:
            raise SessionError("Too many people are here at once. Try again in some minutes.")
        self.forget(min(idle, key=lambda key: (bool(self._sessions[key].turns), self._sessions[key].used_at)))

    # votes --------------------------------------------------------------------------------------------------------

    def model_of(self, contenders: Sequence[Contender], served: ServedModels) -> str | None:
        """The registered model whose ledger takes votes between these; None where it cannot be told."""
        if self.settings.model is not None:
            return self.settings.model
        found = {
            name
            for contender in contenders
            for name in served.registered
            if contender.model.startswith((f"{name}@", f"{name}/"))
        }
        return found.pop() if len(found) == 1 else None

    async def vote(self, session: Session, choice: str, reasons: Sequence[str] = (), comment: str = "") -> CastVote:
        """On the last turn; may be changed until its names are shown. When this returns, the vote is on the disk.

        Raises SessionError, VoteError for what is no vote, and JournalError when it could not be written: then it was
        not cast.
        """
        if choice not in get_args(Choice):
            raise SessionError(f"There is no choice {choice!r:.40}; pick one of: {', '.join(get_args(Choice))}.")
        turn = session.votable(choice)
        model, _ = await self._ledger_of(session)
        tags = [reason for reason in dict.fromkeys(reasons) if reason != SELF_NAMING]
        if turn.names_itself:
            tags.append(SELF_NAMING)
        cast = await asyncio.to_thread(self._cast, session, turn, model, choice, tuple(tags), comment)
        if turn.vote is None or cast.revision >= turn.vote.revision:  # two at once may end in another order
            turn.vote = cast
            left, right = (side.receipt for side in cast.sides)
            session.voted_pair = (left.version, right.version) if left and right else None
        return cast

    def voted_pair(self, key: str, login: str | None) -> tuple[str, str] | None:
        """Return the two versions that this session voted on last, in no order that says which side was which."""
        session = self.known(key, login)
        pair = session.voted_pair if session is not None else None
        return None if pair is None else (min(pair), max(pair))

    def _cast(
        self, session: Session, turn: ComparisonTurn, model: str, choice: str, reasons: tuple[str, ...], comment: str
    ) -> CastVote:
        ledger = self.ledgers.open(model)
        left, right = turn.answers
        sides = (VoteSide(left.receipt, left.text, None, "left"), VoteSide(right.receipt, right.text, None, "right"))
        cast = CastVote(
            turn=_vote_turn(session, turn),
            sides=sides,
            choice=choice,  # type: ignore[arg-type]  # checked by CastVote
            voter=ledger.journal.voter(session.login),
            reasons=reasons,
            comment=comment.strip(),
        )
        entry = ledger.journal.cast(cast)
        ledger.mirror.wake()
        return entry.vote

    def open_turns(self) -> frozenset[str]:
        """Turns with a vote that their person may still change, not knowing the names. May be asked in any thread."""
        last = [session.last for session in list(self._sessions.values())]
        return frozenset(turn.turn_id for turn in last if turn is not None and turn.vote and turn.hides_names)

    async def _note(self, session: Session, turn: ComparisonTurn) -> None:
        """Every turn becomes a trace per side; one whose sides have no registered model in common is nobody's."""
        model = self.model_of(turn.contenders, self._served[1]) if self._served is not None else None
        if model is None:
            return
        try:
            ledger = await asyncio.to_thread(self.ledgers.open, model)
        except FinetuneError as error:
            logger.error("turn_not_kept fault=%s", error)
            return
        spoken = [_traced_answer(turn, place) for place in range(len(turn.answers))]
        ledger.turns.note(_vote_turn(session, turn), spoken, ledger.journal.voter(session.login))

    # prompt sets, links -------------------------------------------------------------------------------------------

    async def next_prompt(self, session: Session, name: str) -> tuple[Prompt, str]:
        """The next unseen prompt of a set for this voter, and the how-manyeth that is. Raises SessionError, TrackingError."""
        prompts, found = await self._progress(session, name)
        return prompt_to_ask(prompts, found), f"Prompt {found.done + 1:,} of {found.total:,}"

    async def progress_in(self, session: Session, name: str) -> str:
        """How far this voter is in a set, and what is to be known of it, in words. Raises SessionError, TrackingError."""
        prompts, found = await self._progress(session, name)
        repeated = f"{prompts.repeated:,} rows that repeat another are left out" if prompts.repeated else ""
        return ". ".join(filter(None, [found.sentence, repeated, *prompts.notes]))

    async def _progress(self, session: Session, name: str) -> tuple[PromptSet, Progress]:
        model, ledger = await self._ledger_of(session)
        return await ask_mlflow(
            self.walk.progress,
            name,
            session.contenders,
            model,
            ledger.journal,
            ledger.judged,
            session.login,
            session.session_id,
        )

    async def share(self, session: Session) -> str:
        """The token of a link to the conversation as it may be shown now. Raises SessionError, JournalError."""
        if not session.turns or session.is_speaking:
            raise SessionError("There is no whole conversation to share yet.")
        _, ledger = await self._ledger_of(session)
        voter = ledger.journal.voter(session.login)
        told = session.export()
        return await asyncio.to_thread(ledger.shared.save, told, voter=voter, session=session.session_id)

    async def shared(self, session: Session, token: str) -> dict[str, Any] | None:
        """The conversation behind a link; None where there is none, or none any more."""
        _, ledger = await self._ledger_of(session)
        return await asyncio.to_thread(ledger.shared.load, token)

    async def _ledger_of(self, session: Session) -> tuple[str, Ledger]:
        model = self.model_of(session.contenders, await self.served())
        if model is None:
            raise SessionError("These sides have no registered model in common, so nothing of them is kept here.")
        return model, await asyncio.to_thread(self.ledgers.open, model)

    async def close(self) -> None:
        """Ends all streams; votes that MLflow does not have yet stay in the journal."""
        for session in list(self._sessions.values()):
            self.streams.stop(session)
        if self._http is not None:
            await self._http.close()
        await self.ledgers.close()


def _vote_turn(session: Session, turn: ComparisonTurn) -> Turn:
    return Turn(turn.turn_id, session.session_id, turn.messages, turn.prompt.prompt_set)


def _traced_answer(turn: ComparisonTurn, place: int) -> TracedAnswer:
    """For its trace. Beyond two sides there are no more positions than right."""
    answer = turn.answers[place]
    took_ms = 0 if answer.ended_at is None else int((answer.ended_at - answer.started_at) * 1000)
    first_s = answer.first_token_s
    return TracedAnswer(
        side=VoteSide(answer.receipt, answer.text, None, "left" if place == 0 else "right"),
        started_at_ms=answer.started_at_ms,
        ended_at_ms=answer.started_at_ms + max(0, took_ms),
        model=turn.contenders[place].model,
        sampling=turn.samplings[place].to_json(),
        first_token_ms=None if first_s is None else first_s * 1000,
        prompt_tokens=answer.prompt_tokens,
        completion_tokens=answer.completion_tokens,
        finish_reason=STOPPED if answer.is_stopped else answer.finish_reason,
        fault=answer.fault,
    )
