"""The HTTP API of the comparison: ``/chat``, ``/vote`` and ``/export``. Each ``gradio_client`` is one session."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import gradio as gr

from gradio_app.chat.client import SamplingSettings
from gradio_app.chat.session import LABELS, ComparisonTurn, SessionError
from gradio_app.pages.visits import visitor
from gradio_app.playground import Playground
from mlflow_finetune_plugin.errors import FinetuneError

MOST_TEMPERATURE = 2.0


class ComparisonApi:
    """The API of one playground. Call ``build`` within the Blocks."""

    def __init__(self, playground: Playground) -> None:
        self._playground = playground

    def build(self) -> None:
        gr.events.api(self.chat, api_name="chat", concurrency_limit=None)
        gr.events.api(self.vote, api_name="vote", concurrency_limit=None)
        gr.events.api(self.export, api_name="export", concurrency_limit=None)

    async def chat(
        self,
        request: gr.Request,
        prompt: str,
        system_prompt: str = "",
        temperature: float = 0.0,
        top_p: float = 1.0,
        max_tokens: int | None = None,
        seed: int | None = None,
        new_conversation: bool = False,
        pictures: list[str] | None = None,
    ) -> AsyncIterator[dict[str, Any]]:
        """Ask both sides, blind, and yield the text so far again and again, at the pace of a page.

        ``pictures`` are data URLs, which are shown to both sides before the prompt; both must read pictures.
        Each value is ``{"turn_id", "is_over", "answers": [{"side": "A", "content", "fault"}, ...], "can_vote"}``.
        """
        try:
            session = await self._playground.session(*visitor(request))
            if new_conversation:
                session = await self._playground.begin(*visitor(request), like=session)
            session.system_prompt = str(system_prompt or "")
            session.sampling = _sampling(temperature, top_p, max_tokens, seed)
            turn = None
            asked = await self._playground.prompt(session, str(prompt or ""), pictures or [])
            async for turn, texts in self._playground.streams.ask(session, asked):
                yield _turn_json(turn, texts, is_over=False)
            assert turn is not None
            yield _turn_json(turn, [turn.visible(position) for position in range(len(turn.answers))], is_over=True)
        except FinetuneError as error:
            raise gr.Error(str(error), print_exception=False) from error

    async def vote(
        self,
        request: gr.Request,
        choice: str,
        reasons: list[str] | None = None,
        comment: str = "",
        show_names: bool = True,
    ) -> dict[str, Any]:
        """Vote on this client's last turn: ``left`` (A), ``right`` (B), ``tie`` or ``both_bad``.

        Returns ``{"vote_id", "revision", "choice", "has_receipts", "names": {"A": ..., "B": ...}, "receipts": {...}}``.
        Showing the names makes the vote final. With ``show_names`` false another call may change it, and ``names`` and
        ``receipts`` are None. A vote without the router's receipts of both answers is stored and does not count for a
        promotion.
        """
        try:
            session = await self._playground.session(*visitor(request))
            cast = await self._playground.vote(session, choice, reasons or [], comment)
        except FinetuneError as error:
            raise gr.Error(str(error), print_exception=False) from error
        turn = session.show_names() if show_names else session.last
        assert turn is not None
        names = {LABELS[position]: contender.name for position, contender in enumerate(turn.contenders)}
        receipts = {LABELS[p]: None if s.receipt is None else vars(s.receipt) for p, s in enumerate(cast.sides)}
        return {
            "vote_id": cast.vote_id,
            "revision": cast.revision,
            "choice": cast.choice,
            "has_receipts": all(side.receipt is not None for side in cast.sides),
            "names": names if turn.are_names_shown else None,
            "receipts": receipts if turn.are_names_shown else None,
        }

    async def export(self, request: gr.Request) -> dict[str, Any]:
        """Return this client's conversation. A turn that is still blind has no names, receipts or times."""
        session = self._playground.known(*visitor(request))
        return session.export() if session is not None else {"turns": []}


def _sampling(temperature: Any, top_p: Any, max_tokens: Any, seed: Any) -> SamplingSettings:
    """Return the settings of a request. Raises SessionError for a value that is not a number or is out of range."""
    try:
        sampling = SamplingSettings(
            float(temperature),
            float(top_p),
            None if max_tokens is None else int(max_tokens),
            None if seed is None else int(seed),
        )
    except (TypeError, ValueError, OverflowError) as error:
        raise SessionError("Temperature, top_p, max_tokens and seed are numbers.") from error
    if not (
        0 <= sampling.temperature <= MOST_TEMPERATURE and 0 < sampling.top_p <= 1 and (sampling.max_tokens or 1) > 0
    ):
        raise SessionError("Temperature is 0 to 2, top_p above 0 and up to 1, max_tokens from 1.")
    return sampling


def _turn_json(turn: ComparisonTurn, texts: list[str], *, is_over: bool) -> dict[str, Any]:
    answers = [
        {
            "side": LABELS[position],
            "content": text,
            "fault": answer.fault if is_over else None,
        }
        for position, (answer, text) in enumerate(zip(turn.answers, texts, strict=True))
    ]
    return {
        "turn_id": turn.turn_id,
        "is_over": is_over,
        "answers": answers,
        "can_vote": is_over and turn.can_be_voted_on,
    }
