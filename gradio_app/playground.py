"""The playground without its page: served models, sessions, votes, prompt sets and shared links. No Gradio here."""

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
from gradio_app.chat.pictures import read_pictures
from gradio_app.chat.revealed import RevealedByUser
from gradio_app.chat.session import ComparisonTurn, Contender, Prompt, Session, SessionError
from gradio_app.chat.streams import Streams
from gradio_app.ledgers import Ledger, Ledgers
from gradio_app.prompts.progress import Progress
from gradio_app.prompts.walk import PromptWalk, next_prompt
from gradio_app.registry_client import ask_mlflow, registry_client
from gradio_app.settings import PlaygroundSettings
from gradio_app.standings.terms import VoteTerms, counting_sentence, judged_version, read_terms
from mlflow_finetune_plugin.credentials.router_key import ROUTER_KEY
from mlflow_finetune_plugin.errors import FinetuneError, in_short
from mlflow_finetune_plugin.store.names import CHAMPION
from mlflow_finetune_plugin.votes.journal.vote import CastVote, Choice, Turn, VoteSide
from mlflow_finetune_plugin.votes.mlflow.answer_trace import STOPPED, TracedAnswer
from mlflow_finetune_plugin.votes.prompt_sets import PromptSet

logger = logging.getLogger(__name__)

MOST_SESSIONS = 5_000
IDLE_S = 2 * 3600.0
SERVED_FOR_S = 5.0
_TERMS_S = 2.0
REASONS = ("correct", "helpful", "clear", "style", "too long", "made up", "unsafe")
"""The reasons that the page offers for a vote."""


class Playground:
    """The playground of one app.

    All methods but ``__init__`` and ``open_turns`` run on the event loop that serves the page.
    """

    def __init__(self, settings: PlaygroundSettings, tracking_uri: str | None = None) -> None:
        self.settings = settings
        key = os.environ.get(ROUTER_KEY) or None
        self.endpoints = tuple(  # Only the first endpoint gets the key of the environment.
            Endpoint(url.rstrip("/"), key if number == 0 else None) for number, url in enumerate(settings.endpoints)
        )
        self.streams = Streams(settings, self._client, self._note)
        self._http: aiohttp.ClientSession | None = None
        self._served: tuple[float, ServedModels] | None = None
        self._offered: list[tuple[str, str]] = []
        self._discovering = asyncio.Lock()
        self._sessions: dict[str, Session] = {}
        self._terms: dict[tuple[str, str], VoteTerms] = {}
        self._revealed = RevealedByUser()
        self.ledgers = Ledgers(tracking_uri, settings.keep_traces_days)
        self.walk = PromptWalk(settings.prompt_sets, longest_prompt_chars=settings.max_prompt_chars)

    # served models ------------------------------------------------------------------------------------------------

    async def served(self) -> ServedModels:
        """Return the served models, listed again after five seconds. Concurrent callers share one request."""
        async with self._discovering:
            if self._served is None or time.monotonic() - self._served[0] > SERVED_FOR_S:
                served = await discover(self._client(), self.endpoints)
                for model, number in self._offered:
                    served = served.with_version(model, number)
                self._served = (time.monotonic(), served)
            return self._served[1]

    def offer(self, model: str, number: str) -> None:
        """List a version of a registered model from now on, also if it has no alias and no endpoint lists it."""
        if (model, number) in self._offered:
            return
        self._offered.append((model, number))
        if self._served is not None:
            at, served = self._served
            self._served = (at, served.with_version(model, number))

    def _client(self) -> aiohttp.ClientSession:
        if self._http is None or self._http.closed:
            self._http = new_http()
        return self._http

    # sessions -----------------------------------------------------------------------------------------------------

    async def session(self, key: str, login: str | None) -> Session:
        """Return the session of a page or API client by its secret key, and begin one where there is none.

        Raises SessionError.
        """
        session = self._sessions.get(key)
        if session is not None and session.login == login:
            session.used_at = time.monotonic()
            self._voted_model(session)
            return session
        return await self.begin(key, login)

    async def begin(self, key: str, login: str | None, like: Session | None = None) -> Session:
        """Begin a session that replaces the key's present one, with the settings of ``like``.

        Raises SessionError where fewer than two models are served.
        """
        self._forget_idle()
        if len(self._sessions) >= MOST_SESSIONS and key not in self._sessions:
            self._forget_one_of(login)
        if like is None:
            served = await self.served()
            sides = tuple(served.find(name) for name in self.settings.sides)
            session = Session(
                contenders=sides or default_sides(served, self.settings.model),
                login=login,
                max_prompt_chars=self.settings.max_prompt_chars,
                max_turns=self.settings.max_turns,
                revealed=self._revealed.of(login),
            )
        else:
            session = like.successor(login)
        if key in self._sessions:
            self.streams.stop(self._sessions[key])  # No page shows these answers any more.
        self._sessions[key] = session
        self._warm(session)
        await self.note_counting(session)
        return session

    async def note_counting(self, session: Session) -> None:
        """Note in the session whether and how votes on its contenders count. Waits for MLflow at most two seconds."""
        served = await self.served()
        model = self.model_of(session.contenders, served)
        if model is None or len(session.contenders) != 2:
            session.votes_note = ""
            return
        champion = served.version(f"{model}@{CHAMPION}", model)
        left, right = (served.version(contender.name, model) for contender in session.contenders)
        judged = judged_version((left, right), champion)
        try:
            terms = None if judged is None else await asyncio.wait_for(self._terms_of(model, judged), _TERMS_S)
        except (FinetuneError, TimeoutError) as error:
            logger.warning("vote_terms_not_read model=%s fault=%s", model, in_short(error))
            session.votes_note = "Whether your votes count for a promotion could not be read from MLflow."
            return
        session.votes_note = counting_sentence(terms, champion)

    async def _terms_of(self, model: str, version: str) -> VoteTerms:
        if (model, version) not in self._terms:
            self._terms[model, version] = await ask_mlflow(lambda: read_terms(registry_client(), model, version))
        return self._terms[model, version]

    def _warm(self, session: Session) -> None:
        if (model := self._voted_model(session)) is not None:
            self.ledgers.warm(model)

    def _voted_model(self, session: Session) -> str | None:
        """Return the model whose ledger stores this session's votes, and note in the session whether there is one."""
        if self._served is None:
            return None
        served = self._served[1]
        model = self.model_of(session.contenders, served)
        # An endpoint that does not answer lists no names, so its absence does not change the session.
        if model is not None or not served.faults:
            session.keeps_votes = model is not None
        return model

    def known(self, key: str, login: str | None) -> Session | None:
        """Return the session if it has begun."""
        session = self._sessions.get(key)
        return session if session is not None and session.login == login else None

    def forget(self, key: str) -> None:
        """Remove the session of a closed page and stop its answers."""
        session = self._sessions.pop(key, None)
        if session is not None:
            self.streams.stop(session)

    def _forget_idle(self) -> None:
        limit = time.monotonic() - IDLE_S
        for key in [key for key, session in self._sessions.items() if session.used_at < limit]:
            self.forget(key)

    def _forget_one_of(self, login: str | None) -> None:
        """Make room for a session of ``login``: remove the least recently used session of the user that has most.

        Raises SessionError where all sessions of that user are receiving answers.
        """
        count = Counter(session.login for session in self._sessions.values())
        most = max(count, key=lambda user: (count[user], user == login))
        idle = [key for key, session in self._sessions.items() if session.login == most and not session.is_speaking]
        if not idle:
            raise SessionError("Too many people are using the playground now. Try again in a few minutes.")
        self.forget(min(idle, key=lambda key: (bool(self._sessions[key].turns), self._sessions[key].used_at)))

    async def prompt(self, session: Session, text: str, urls: Sequence[Any]) -> Prompt:
        """Return a prompt with the pictures of data URLs, which the session holds from now on. Raises PictureError, SessionError."""
        if not urls:
            return Prompt(text)
        if not session.takes_pictures:
            return Prompt(text, pictures=("not read",))  # The session refuses it and says why; nothing was decoded.
        if session.is_speaking:
            raise SessionError("The answers to your last prompt are still arriving. Stop them, or wait.")
        return Prompt(text, pictures=session.hold(await asyncio.to_thread(read_pictures, urls)))

    # votes --------------------------------------------------------------------------------------------------------

    def model_of(self, contenders: Sequence[Contender], served: ServedModels) -> str | None:
        """Return the registered model whose ledger stores votes between these contenders, or None."""
        if self.settings.model is not None:
            return self.settings.model
        models = {
            name
            for contender in contenders
            for name in served.registered
            if contender.model.startswith((f"{name}@", f"{name}/"))
        }
        return models.pop() if len(models) == 1 else None

    async def vote(self, session: Session, choice: str, reasons: Sequence[str] = (), comment: str = "") -> CastVote:
        """Vote on the last turn, or change the vote before the names are shown. The vote is on disk when this returns.

        Raises SessionError, VoteError for an invalid vote, and JournalError when the vote could not be written and was
        not cast.
        """
        if choice not in get_args(Choice):
            raise SessionError(f"{choice!r:.40} is not a valid choice; pick one of: {', '.join(get_args(Choice))}.")
        turn = session.votable(choice)
        model, _ = await self._ledger_of(session)
        tags = [reason for reason in dict.fromkeys(reasons) if reason != SELF_NAMING]
        if turn.names_itself:
            tags.append(SELF_NAMING)
        cast = await asyncio.to_thread(self._cast, session, turn, model, choice, tuple(tags), comment)
        if turn.vote is None or cast.revision >= turn.vote.revision:  # Two concurrent votes may end in another order.
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
        """Return the turns whose vote may still change, because their names are hidden. Can be called in any thread."""
        last = [session.last for session in list(self._sessions.values())]
        return frozenset(turn.turn_id for turn in last if turn is not None and turn.vote and turn.hides_names)

    async def _note(self, session: Session, turn: ComparisonTurn) -> None:
        """Remember shown names, and log each side of an ended turn as a trace if the sides have a registered model in common."""
        session.remember_names(turn)
        model = self.model_of(turn.contenders, self._served[1]) if self._served is not None else None
        if model is None:
            return
        try:
            ledger = await asyncio.to_thread(self.ledgers.open, model)
        except FinetuneError as error:
            logger.error("turn_not_stored fault=%s", error)
            return
        traces = [_traced_answer(turn, position) for position in range(len(turn.answers))]
        ledger.turns.note(_vote_turn(session, turn), traces, ledger.journal.voter(session.login))

    # prompt sets, links -------------------------------------------------------------------------------------------

    async def next_prompt(self, session: Session, name: str) -> tuple[Prompt, str]:
        """Return the voter's next prompt of a set, and its number in words. Raises SessionError, TrackingError."""
        prompts, progress = await self._progress(session, name)
        return next_prompt(prompts, progress), f"Prompt {progress.done + 1:,} of {progress.total:,}"

    async def progress_in(self, session: Session, name: str) -> str:
        """Return the voter's progress in a set and the notes on that set, in words.

        Raises SessionError, TrackingError.
        """
        prompts, progress = await self._progress(session, name)
        repeated = f"{prompts.repeated:,} repeated rows are left out" if prompts.repeated else ""
        return ". ".join(filter(None, [progress.sentence, repeated, *prompts.notes]))

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
        """Store the conversation as it may be shown now and return the token of its link.

        Raises SessionError, JournalError.
        """
        if not session.turns or session.is_speaking:
            raise SessionError("There is no complete conversation to share yet.")
        _, ledger = await self._ledger_of(session)
        voter = ledger.journal.voter(session.login)
        conversation = session.export()
        return await asyncio.to_thread(ledger.shared.save, conversation, voter=voter, session=session.session_id)

    async def shared(self, session: Session, token: str) -> dict[str, Any] | None:
        """Return the conversation of a link; None where it does not exist or was deleted."""
        _, ledger = await self._ledger_of(session)
        conversation = await asyncio.to_thread(ledger.shared.load, token)
        if conversation is not None:
            session.revealed.add_shared(conversation)
        return conversation

    async def _ledger_of(self, session: Session) -> tuple[str, Ledger]:
        model = self.model_of(session.contenders, await self.served())
        if model is None:
            raise SessionError("These sides have no registered model in common, so nothing of this session is stored.")
        return model, await asyncio.to_thread(self.ledgers.open, model)

    async def close(self) -> None:
        """End all streams. Votes that MLflow does not have yet stay in the journal."""
        for session in list(self._sessions.values()):
            self.streams.stop(session)
        if self._http is not None:
            await self._http.close()
        await self.ledgers.close()


def _vote_turn(session: Session, turn: ComparisonTurn) -> Turn:
    return Turn(turn.turn_id, session.session_id, turn.messages, turn.prompt.prompt_set)


def _traced_answer(turn: ComparisonTurn, position: int) -> TracedAnswer:
    """Return an answer for its trace. A third and a fourth side count as right, because traces know two sides."""
    answer = turn.answers[position]
    took_ms = 0 if answer.ended_at is None else int((answer.ended_at - answer.started_at) * 1000)
    first_s = answer.first_token_s
    return TracedAnswer(
        side=VoteSide(answer.receipt, answer.text, None, "left" if position == 0 else "right"),
        started_at_ms=answer.started_at_ms,
        ended_at_ms=answer.started_at_ms + max(0, took_ms),
        model=turn.contenders[position].model,
        sampling=turn.samplings[position].to_json(),
        first_token_ms=None if first_s is None else first_s * 1000,
        prompt_tokens=answer.prompt_tokens,
        completion_tokens=answer.completion_tokens,
        finish_reason=STOPPED if answer.is_stopped else answer.finish_reason,
        fault=answer.fault,
    )
