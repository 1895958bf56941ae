"""The first tab: one prompt, two answers side by side, a vote."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import gradio as gr

from gradio_app import view
from gradio_app.client import Sampling
from gradio_app.playground import REASONS, Playground
from gradio_app.session import LABELS, MOST_SIDES, Asked, Prompt, Session, SessionError
from mlflow_finetune_plugin.errors import FinetuneError

Updates = dict[Any, Any]
_VOTES = (
    ("left", "← A is better"),
    ("tie", "↑ A tie"),
    ("both_bad", "↓ Both are bad"),
    ("right", "B is better →"),
)
_PLACEHOLDER = "Both answers appear here side by side."


def visitor(request: gr.Request) -> tuple[str, str | None]:
    """The page's secret key, and who has logged in."""
    return str(request.session_hash), request.username or None


class ComparePage:
    """``build`` within a tab. Handlers keep no state of their own: it is the session's."""

    def __init__(self, playground: Playground) -> None:
        self._playground = playground

    # layout -------------------------------------------------------------------------------------------------------

    def build(self, blocks: gr.Blocks) -> None:
        """Components in reading order, which is the order of the Tab key, then what they do."""
        self._status = gr.HTML(view.notice("Looking who answers …"), elem_id="mf-status")
        with gr.Row(elem_classes="mf-chats", equal_height=True):
            columns = [self._side(place) for place in range(MOST_SIDES)]
        self._columns = [column for column, _, _ in columns]
        self._chats = [chat for _, chat, _ in columns]
        self._lines = [line for _, _, line in columns]
        with gr.Row(elem_classes="mf-votes"):
            self._votes = {
                choice: gr.Button(label, interactive=False, elem_id=f"mf-vote-{choice}", size="md")
                for choice, label in _VOTES
            }
        with gr.Row():
            self._prompt = gr.Textbox(
                label="Prompt",
                placeholder="Ask something. Enter sends, Shift+Enter begins a new line.",
                lines=1,  # with more, Gradio's Enter begins a new line
                max_lines=12,
                scale=8,
                elem_id="mf-prompt",
                autofocus=True,
            )
            with gr.Column(scale=1, min_width=120):
                self._send = gr.Button("Send", variant="primary", elem_id="mf-send")
                self._stop = gr.Button("Stop", interactive=False, elem_id="mf-stop")
        with gr.Row():
            self._retry = gr.Button("Retry", size="sm", elem_id="mf-retry")
            self._edit = gr.Button("Edit", size="sm", elem_id="mf-edit")
            self._undo = gr.Button("Undo", size="sm", elem_id="mf-undo")
            self._new = gr.Button("New conversation", size="sm", elem_id="mf-new")
            self._differ = gr.Button("Differences", size="sm", elem_id="mf-differ")
            self._export = gr.Button("Export", size="sm", elem_id="mf-export")
        self._reference = gr.HTML("", elem_id="mf-reference")
        self._difference = gr.HTML("", elem_id="mf-difference")
        with gr.Accordion("Why? Reasons and a comment for your vote", open=False):
            self._reasons = gr.CheckboxGroup(list(REASONS), label="Reasons", elem_id="mf-reasons")
            self._comment = gr.Textbox(label="Comment", max_length=4000, lines=2, elem_id="mf-comment")
            self._explain = gr.Button("Add to my vote", size="sm", interactive=False, elem_id="mf-explain")
        self._build_settings()
        with gr.Accordion("This session", open=False) as self._session_part:
            self._history = gr.HTML(view.notice("Nothing has been asked in this session yet."), elem_id="mf-history")
        self._exported = gr.Textbox(visible=False)
        self._wire(blocks)

    def _side(self, place: int) -> tuple[gr.Column, gr.Chatbot, gr.HTML]:
        with gr.Column(visible=place < 2, min_width=280) as column:
            chat = gr.Chatbot(
                label=f"Answer {LABELS[place]}",
                elem_id=f"mf-chat-{place}",
                elem_classes=f"mf-chat-{place}",
                height="52vh",
                min_height=260,
                buttons=["copy"],
                placeholder=_PLACEHOLDER,
                layout="panel",
                sanitize_html=True,
                allow_tags=False,
                allow_file_downloads=False,
            )
            line = gr.HTML(view.side_line(None, place), elem_id=f"mf-side-{place}")
        return column, chat, line

    def _build_settings(self) -> None:
        with gr.Accordion("Settings", open=False):
            with gr.Row():
                self._blind = gr.Radio(
                    [("Names hidden (votes count)", True), ("Names shown", False)],
                    value=True,
                    label="Names",
                    elem_id="mf-blind",
                )
                self._shuffle = gr.Radio(
                    [("before every prompt", "turn"), ("once a conversation", "session")],
                    value="turn",
                    label="Sides change places",
                    elem_id="mf-shuffle",
                )
            self._system = gr.Textbox(label="System prompt", lines=2, elem_id="mf-system")
            with gr.Row():
                self._temperature = gr.Slider(0, 2, value=0, step=0.05, label="Temperature")
                self._top_p = gr.Slider(0.05, 1, value=1, step=0.05, label="Top p")
                self._max_tokens = gr.Number(512, label="Max tokens", precision=0, minimum=1, maximum=100_000)
                self._seed = gr.Number(None, label="Seed (empty: none)", precision=0)
            self._choose = gr.Button("Choose who meets", size="sm", elem_id="mf-choose")
            with gr.Column(visible=False) as self._sides_part:
                gr.HTML(
                    '<p class="mf-soft">Two sides can be voted on, up to four compared. '
                    "A side's own settings hold while names are shown; blind, all sides are asked alike.</p>"
                )
                self._sides, self._own = [], []
                for place in range(MOST_SIDES):
                    with gr.Row():
                        self._sides.append(
                            gr.Dropdown([], label=f"Side {place + 1}", elem_id=f"mf-side-choice-{place}", scale=3)
                        )
                        self._own.append(
                            [
                                gr.Number(None, label="Temperature", minimum=0, maximum=2, min_width=90),
                                gr.Number(None, label="Top p", minimum=0.05, maximum=1, min_width=90),
                                gr.Number(None, label="Max tokens", precision=0, minimum=1, min_width=90),
                                gr.Number(None, label="Seed", precision=0, min_width=90),
                            ]
                        )
                self._apply = gr.Button("Compare these", size="sm", variant="primary", elem_id="mf-apply")

    def _wire(self, blocks: gr.Blocks) -> None:
        private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        streams: dict[str, Any] = {**private, "concurrency_limit": None}
        asked = [self._system, self._temperature, self._top_p, self._max_tokens, self._seed]
        everything = [
            *(*self._columns, *self._chats, *self._lines, *self._votes.values()),
            *(self._status, self._prompt, self._send, self._stop, self._retry, self._reference, self._difference),
            *(self._history, self._explain, self._reasons, self._comment),
        ]
        blocks.load(self._load, None, everything, **streams)
        blocks.unload(self._leave)
        for event in (self._send.click, self._prompt.submit):
            event(self._ask, [self._prompt, *asked], everything, **streams)
        self._retry.click(self._ask_again, asked, everything, **streams)
        self._stop.click(self._halt, None, None, queue=False, **private)
        self._edit.click(self._take_back, None, everything, **streams)
        self._undo.click(self._take_away, None, everything, **streams)
        self._new.click(self._begin_anew, [self._blind, self._shuffle], everything, **streams)
        for setting in (self._blind, self._shuffle):
            setting.input(self._begin_anew, [self._blind, self._shuffle], everything, **streams)
        for choice, button in self._votes.items():
            button.click(self._voting(choice), [self._reasons, self._comment], everything, **streams)
        self._explain.click(self._add_reasons, [self._reasons, self._comment], everything, **streams)
        self._differ.click(self._show_difference, None, self._difference, **streams)
        self._export.click(self._exporting, None, self._exported, **streams).then(
            None, self._exported, None, js="text => window.mfSave('conversation.json', text)"
        )
        choosing = [self._sides_part, *self._sides]
        self._choose.click(self._show_sides, None, choosing, **streams)
        own = [number for numbers in self._own for number in numbers]
        self._apply.click(self._compare_these, [*self._sides, *own], [*choosing, *everything], **streams)

    # handlers -----------------------------------------------------------------------------------------------------

    async def _load(self, request: gr.Request) -> Updates:
        try:
            return self._all(await self._session(request))
        except FinetuneError as error:
            return {self._status: view.notice(str(error), "bad")}

    def _leave(self, request: gr.Request) -> None:
        self._playground.forget(visitor(request)[0])

    async def _session(self, request: gr.Request) -> Session:
        return await self._playground.session(*visitor(request))

    async def _ask(
        self,
        prompt: str,
        system: str,
        temperature: float,
        top_p: float,
        max_tokens: float | None,
        seed: float | None,
        request: gr.Request,
    ) -> AsyncIterator[Updates]:
        try:
            session = await self._session(request)
            _set(session, system, temperature, top_p, max_tokens, seed)
            async for updates in self._speak(session, Prompt(prompt or "")):
                yield updates
        except FinetuneError as error:
            yield {self._status: view.notice(str(error), "warn")}

    async def _ask_again(
        self,
        system: str,
        temperature: float,
        top_p: float,
        max_tokens: float | None,
        seed: float | None,
        request: gr.Request,
    ) -> AsyncIterator[Updates]:
        try:
            session = await self._session(request)
            _set(session, system, temperature, top_p, max_tokens, seed)
            async for updates in self._speak(session, session.undo().prompt):
                yield updates
        except FinetuneError as error:
            yield {self._status: view.notice(str(error), "warn")}

    async def _speak(self, session: Session, prompt: Prompt) -> AsyncIterator[Updates]:
        turn: Asked | None = None
        async for told, texts in self._playground.ask(session, prompt):
            shown = dict(zip(self._chats, view.panels(session, told, texts), strict=False))
            if turn is None:
                turn = told
                yield {**self._speaking(session, told), **shown}
            else:
                yield shown
        yield self._all(session)

    def _halt(self, request: gr.Request) -> None:
        session = self._playground.known(*visitor(request))
        if session is not None:
            self._playground.stop(session)

    async def _take_back(self, request: gr.Request) -> Updates:
        return await self._undoing(request, into_prompt=True)

    async def _take_away(self, request: gr.Request) -> Updates:
        return await self._undoing(request, into_prompt=False)

    async def _undoing(self, request: gr.Request, *, into_prompt: bool) -> Updates:
        try:
            session = await self._session(request)
            taken = session.undo()
        except FinetuneError as error:
            return {self._status: view.notice(str(error), "warn")}
        return {**self._all(session), **({self._prompt: taken.prompt.text} if into_prompt else {})}

    async def _begin_anew(self, blind: bool, shuffle: str, request: gr.Request) -> Updates:
        try:
            session = await self._session(request)
            self._playground.stop(session)
            session.is_blind, session.shuffle = bool(blind), "session" if shuffle == "session" else "turn"
            return self._all(await self._playground.begin(*visitor(request), like=session))
        except FinetuneError as error:
            return {self._status: view.notice(str(error), "bad")}

    def _voting(self, choice: str) -> Callable[..., Any]:
        async def vote(reasons: list[str], comment: str, request: gr.Request) -> Updates:
            return await self._cast(choice, reasons, comment, request)

        return vote

    async def _add_reasons(self, reasons: list[str], comment: str, request: gr.Request) -> Updates:
        session = await self._session(request)
        if session.last is None or session.last.vote is None:
            return {self._status: view.notice("Vote first; then reasons can be added to it.", "warn")}
        return await self._cast(session.last.vote.choice, reasons, comment, request)

    async def _cast(self, choice: str, reasons: list[str], comment: str, request: gr.Request) -> Updates:
        try:
            session = await self._session(request)
            await self._playground.vote(session, choice, reasons or [], comment or "")
        except FinetuneError as error:
            return {self._status: view.notice(str(error), "bad")}
        kept = {self._reasons: gr.skip(), self._comment: gr.skip()}
        return {**self._all(session), **kept}

    async def _show_difference(self, request: gr.Request) -> str:
        session = self._playground.known(*visitor(request))
        return view.difference_view(session.last if session is not None else None)

    async def _exporting(self, request: gr.Request) -> str:
        import json

        session = self._playground.known(*visitor(request))
        told = session.export() if session is not None else {"turns": []}
        return json.dumps(told, indent=1, ensure_ascii=False)

    async def _show_sides(self, request: gr.Request) -> Updates:
        session, served = await self._session(request), await self._playground.served()
        names = [contender.name for contender in served.contenders]
        chosen = [contender.name for contender in session.contenders]
        filled = [*chosen, *[None] * (MOST_SIDES - len(chosen))]
        dropdowns = {
            side: gr.Dropdown(choices=names if place < 2 else [("none", ""), *names], value=value)
            for place, (side, value) in enumerate(zip(self._sides, filled, strict=True))
        }
        return {self._sides_part: gr.Column(visible=True), **dropdowns}

    async def _compare_these(self, request: gr.Request, *values: Any) -> Updates:
        names, numbers = list(values[:MOST_SIDES]), values[MOST_SIDES:]
        try:
            session, served = await self._session(request), await self._playground.served()
            chosen = [(place, served.find(name)) for place, name in enumerate(names) if name]
            contenders = tuple(contender for _, contender in chosen)
            if len(contenders) < 2 or len(set(contenders)) < len(contenders):
                raise SessionError("Choose two to four different sides.")
            own = {
                number: _own_sampling(session.sampling, numbers[4 * place : 4 * place + 4])
                for number, (place, _) in enumerate(chosen)
            }
            self._playground.stop(session)
            session.contenders = contenders
            session.own_samplings = {place: found for place, found in own.items() if found is not None}
            made = await self._playground.begin(*visitor(request), like=session)
        except FinetuneError as error:
            return {self._status: view.notice(str(error), "bad")}
        hidden = {side: gr.Dropdown(choices=[], value=None) for side in self._sides}  # blind: no name stays in the page
        return {self._sides_part: gr.Column(visible=False), **hidden, **self._all(made)}

    # what is shown ------------------------------------------------------------------------------------------------

    def _speaking(self, session: Session, turn: Asked) -> Updates:
        count = len(turn.answers)
        lines = {line: view.side_line(turn, place) for place, line in enumerate(self._lines[:count])}
        return {
            **lines,
            **{button: gr.Button(interactive=False) for button in self._votes.values()},
            self._status: view.notice("The answers are coming …"),
            self._prompt: "",
            self._send: gr.Button(interactive=False),
            self._retry: gr.Button(interactive=False),
            self._stop: gr.Button(interactive=True),
            self._explain: gr.Button(interactive=False),
            self._reasons: [],
            self._comment: "",
            self._difference: "",
            self._reference: view.reference_view(turn),
        }

    def _all(self, session: Session) -> Updates:
        """The page as the session is now."""
        turn, count = session.last, len(session.contenders)
        chats = view.panels(session, turn)
        updates: Updates = {column: gr.Column(visible=place < count) for place, column in enumerate(self._columns)}
        updates |= {chat: chats[place] if place < len(chats) else [] for place, chat in enumerate(self._chats)}
        updates |= {
            line: view.side_line(turn, place) for place, line in enumerate(self._lines[: max(count, len(chats))])
        }
        can_vote = turn is not None and turn.can_be_voted_on and (turn.vote is not None or turn.hides_names)
        voted = turn.vote.choice if turn is not None and turn.vote is not None else None
        updates |= {
            button: gr.Button(interactive=can_vote, variant="primary" if choice == voted else "secondary")
            for choice, button in self._votes.items()
        }
        if turn is None:
            status = view.welcome(session)
        elif turn.vote is not None:
            status = view.vote_notice(turn, turn.vote)
        else:
            status = view.turn_notice(turn)
        return {
            **updates,
            self._status: status,
            self._send: gr.Button(interactive=True),
            self._retry: gr.Button(interactive=turn is not None),
            self._stop: gr.Button(interactive=False),
            self._explain: gr.Button(interactive=voted is not None),
            self._reference: view.reference_view(turn),
            self._difference: "",
            self._history: view.history_view(session),
        }


def _set(
    session: Session, system: str, temperature: float, top_p: float, max_tokens: float | None, seed: float | None
) -> None:
    session.system_prompt = system or ""
    session.sampling = Sampling(
        temperature=float(temperature),
        top_p=float(top_p),
        max_tokens=int(max_tokens) if max_tokens else None,
        seed=int(seed) if seed is not None else None,
    )


def _own_sampling(shared: Sampling, numbers: tuple[Any, ...]) -> Sampling | None:
    temperature, top_p, max_tokens, seed = numbers
    if all(number is None for number in numbers):
        return None
    return Sampling(
        temperature=shared.temperature if temperature is None else float(temperature),
        top_p=shared.top_p if top_p is None else float(top_p),
        max_tokens=shared.max_tokens if max_tokens is None else int(max_tokens),
        seed=shared.seed if seed is None else int(seed),
    )
