"""The Compare tab: one prompt, two answers side by side, a vote."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import gradio as gr

from gradio_app.chat import html as view
from gradio_app.chat.session import LABELS, MOST_SIDES, Prompt, Session, SessionError
from gradio_app.pages.prompt_set import PromptSetPart
from gradio_app.pages.sampling import MAX_TOKENS, SEED, number_field, shared_sampling
from gradio_app.pages.sides import SidesPart
from gradio_app.pages.visits import Values, visitor
from gradio_app.playground import REASONS, Playground
from mlflow_finetune_plugin.errors import FinetuneError

_VOTES = (
    ("left", "← A is better"),
    ("tie", "↑ A tie"),
    ("both_bad", "↓ Both are bad"),
    ("right", "B is better →"),
)

_PICKER = (
    '<div class="mf-picker"><label>Add pictures <input type="file" multiple '
    'accept="image/png,image/jpeg,image/webp"></label><span id="mf-picked"></span>'
    '<span id="mf-picker-fault" role="status"></span></div>'
)
_WITH_PICTURES = "(prompt, picked, ...settings) => [prompt, window.mfPictures(), ...settings]"


class ComparePage:
    """The tab of one playground. Call ``build`` within the tab. The session holds all state."""

    def __init__(self, playground: Playground) -> None:
        self._playground = playground

    # layout -------------------------------------------------------------------------------------------------------

    def build(self, blocks: gr.Blocks) -> None:
        """Components in reading order, which is the order of the Tab key, then what they do."""
        self._status = gr.HTML(view.notice("Connecting to the models …"), elem_id="mf-status")
        self._pictures = gr.HTML("", elem_id="mf-pictures")
        with gr.Row(elem_classes="mf-chats", equal_height=True):
            self._chats = [_answer_panel(position) for position in range(MOST_SIDES)]
        with gr.Row(elem_classes="mf-votes"):
            self._votes = {choice: gr.Button(label, elem_id=f"mf-vote-{choice}", size="md") for choice, label in _VOTES}
            self._reveal = gr.Button("Show names", elem_id="mf-reveal", size="md")
        with gr.Row(elem_classes="mf-ask"):
            self._prompt = gr.Textbox(
                label="Prompt (Enter sends, Shift+Enter begins a new line)",
                placeholder="Ask something.",  # A longer text that fills two lines would make the empty field grow.
                lines=1,  # With more lines, Enter would begin a new line in Gradio.
                max_lines=12,
                scale=8,
                elem_id="mf-prompt",  # The page's script focuses it; autofocus would scroll.
            )
            with gr.Column(scale=1, min_width=120, elem_classes="mf-send"):
                self._send = gr.Button("Send", variant="primary", elem_id="mf-send")
                self._stop = gr.Button("Stop", elem_id="mf-stop")
        gr.HTML(_PICKER, elem_id="mf-picker")  # The page's script shows it if both sides read pictures.
        self._picked = gr.JSON(visible=False)
        with gr.Row(elem_classes="mf-tools"):
            self._retry = gr.Button("Retry", size="sm", elem_id="mf-retry")
            self._edit = gr.Button("Edit", size="sm", elem_id="mf-edit")
            self._undo = gr.Button("Undo", size="sm", elem_id="mf-undo")
            self._new = gr.Button("New conversation", size="sm", elem_id="mf-new")
            self._differ = gr.Button("Differences", size="sm", elem_id="mf-differ")
            self._export = gr.Button("Export", size="sm", elem_id="mf-export")
            self._share = gr.Button("Share", size="sm", elem_id="mf-share")
        with gr.Row(elem_classes="mf-facts"):  # Below the votes, so that names do not move them.
            self._lines = [_side_facts(position) for position in range(MOST_SIDES)]
        self._shared = gr.HTML("", elem_id="mf-shared")
        self._reference = gr.HTML("", elem_id="mf-reference")
        self._difference = gr.HTML("", elem_id="mf-difference")
        with gr.Accordion("Why? Reasons and a comment for your vote", open=False):
            self._reasons = gr.CheckboxGroup(list(REASONS), label="Reasons", elem_id="mf-reasons")
            self._comment = gr.Textbox(label="Comment", max_length=4000, lines=2, elem_id="mf-comment")
            self._explain = gr.Button("Add to my vote", size="sm", elem_id="mf-explain")
        self._prompts = PromptSetPart(self._playground)
        self._build_settings()
        with gr.Accordion("This session", open=False) as self._session_part:
            self._history = gr.HTML(view.notice("This session has no prompts yet."), elem_id="mf-history")
        self._exported = gr.Textbox(visible=False)
        self._wire(blocks)

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
                    [("before every prompt", "turn"), ("once per conversation", "session")],
                    value="turn",
                    label="Sides swap",
                    elem_id="mf-shuffle",
                )
            self._system = gr.Textbox(label="System prompt", lines=2, elem_id="mf-system")
            with gr.Row():
                self._temperature = gr.Slider(0, 2, value=0, step=0.05, label="Temperature")
                self._top_p = gr.Slider(0.05, 1, value=1, step=0.05, label="Top p")
                self._max_tokens = number_field(MAX_TOKENS, "no limit", elem_id="mf-max-tokens")
                self._seed = number_field(SEED, "none", elem_id="mf-seed")
            self._sides = SidesPart(self._playground)

    def _wire(self, blocks: gr.Blocks) -> None:
        """Connect events with handlers.

        Handlers return plain values for all outputs: Gradio rebuilds a component for every update or skip of one.
        """
        private: dict[str, Any] = {
            "api_visibility": "private",
            "show_progress": "hidden",
            "concurrency_limit": None,
            "postprocess": False,  # The values are in the page's form; else each one takes a thread.
        }
        settings = [self._system, self._temperature, self._top_p, self._max_tokens, self._seed]
        notices = [*self._lines, self._status, self._reference, self._difference, self._pictures]
        page = [*self._chats, *notices, self._history]
        begun = [self._prompt, self._reasons, self._comment, *notices]
        blocks.load(self._load, None, [self._shared, *page], **private)
        self._blocks = blocks
        blocks.unload(self._leave)

        def speak(clicked: Any) -> Any:
            streamed = clicked.then(self._stream, None, self._chats[:2], **private)
            return streamed.then(self._settle, None, page, **private)

        raw = {
            **private,
            "preprocess": False,
        }  # Preprocessing takes a thread for each value, and the handlers accept any value.
        for event in (self._send.click, self._prompt.submit):
            speak(event(self._ask, [self._prompt, self._picked, *settings], begun, js=_WITH_PICTURES, **raw))
        speak(self._retry.click(self._ask_again, [self._prompt, *settings], begun, **raw))
        self._stop.click(self._stop_answers, None, None, queue=False, **private)
        self._edit.click(self._edit_prompt, None, [self._prompt, *page], **private)
        self._undo.click(self._undo_turn, None, page, **private)
        places = [self._blind, self._shuffle]
        self._new.click(self._restart, places, page, **private)
        for setting in places:
            setting.input(self._restart, places, page, **private)
        words = [self._reasons, self._comment]
        for choice, button in self._votes.items():
            button.click(self._voting(choice), words, page, **private)
        self._explain.click(self._add_reasons, words, page, **private)
        self._reveal.click(self._show_names, None, page, **private)
        self._differ.click(self._show_difference, None, self._difference, **private)
        self._export.click(self._exporting, None, self._exported, **private).then(
            None, self._exported, None, js="text => window.mfSave('conversation.json', text)"
        )
        self._share.click(self._sharing, None, self._status, **private)
        self._sides.wire(page, self._doing, private)
        self._prompts.wire(self._prompt, settings, begun, speak, self._beginning, private)

    # handlers -----------------------------------------------------------------------------------------------------

    async def _load(self, request: gr.Request) -> Values:
        page = await self._doing(request)
        return await self._shared_with(request), *page

    async def _shared_with(self, request: gr.Request) -> str:
        """Return the conversation of the link that opened this page, or nothing."""
        token = request.query_params.get("shared")
        session = self._playground.known(*visitor(request))
        if not token or session is None:
            return ""
        try:
            conversation = await self._playground.shared(session, token)
        except FinetuneError as error:
            return view.notice(str(error), "warn")
        return (
            view.shared_view(conversation)
            if conversation is not None
            else view.notice("The conversation of this link was deleted.", "warn")
        )

    def _leave(self, request: gr.Request) -> None:
        self._playground.forget(visitor(request)[0])
        self._blocks.state_holder.session_data.pop(str(request.session_hash), None)  # Gradio never removes it.

    async def _session(self, request: gr.Request) -> Session:
        return await self._playground.session(*visitor(request))

    async def _doing(
        self, request: gr.Request, act: Callable[[Session], Awaitable[Session | None] | None] | None = None
    ) -> Values:
        """Return the page after ``act``; where ``act`` fails, the unchanged page and the reason."""
        session: Session | None = None
        try:
            session = await self._session(request)
            done = act(session) if act is not None else None
            other = await done if done is not None else None
            session.trouble = None
            return self._page(other or session)
        except FinetuneError as error:
            return self._page(session, trouble=str(error))

    async def _ask(self, request: gr.Request, prompt: Any, picked: Any, *settings: Any) -> Values:
        async def find(session: Session) -> Prompt:
            return await self._playground.prompt(session, str(prompt or ""), picked if isinstance(picked, list) else [])

        return await self._beginning(request, prompt, settings, find)

    async def _ask_again(self, request: gr.Request, prompt: Any, *settings: Any) -> Values:
        async def find(session: Session) -> Prompt:
            return session.undo().prompt

        return await self._beginning(request, prompt, settings, find, keeps_prompt=True)

    async def _beginning(
        self,
        request: gr.Request,
        prompt: Any,
        settings: Values,
        find: Callable[[Session], Awaitable[Prompt]],
        *,
        keeps_prompt: bool = False,
    ) -> Values:
        """Return what changes at once when a prompt is sent. A refused prompt stays in its field."""
        session: Session | None = None
        try:
            session = await self._session(request)
            _set(session, settings)
            self._playground.streams.start(session, await find(session))
            session.trouble = None
        except FinetuneError as error:
            if session is not None:
                session.trouble = str(error)  # The last step of this event displays it.
            return prompt, gr.skip(), gr.skip(), *self._side_lines(session), *self._notices(session, str(error))
        return prompt if keeps_prompt else "", [], "", *_waiting(session)

    async def _stream(self, request: gr.Request) -> AsyncIterator[list[view.ChatMessages]]:
        """Yield the answers of two sides, with no more outputs than they need: many people wait for this at once."""
        session = self._playground.known(*visitor(request))
        if session is not None and len(session.contenders) == 2:
            async for panels in self._speaking(session):
                yield panels

    async def _speaking(self, session: Session) -> AsyncIterator[list[view.ChatMessages]]:
        turn = self._playground.streams.unwatched(session)
        if turn is None:  # The prompt was refused, and the page says why.
            return
        async for texts in self._playground.streams.watch(session, turn):
            yield [chat_payload(panel) for panel in view.panels(session, turn, texts)]

    async def _settle(self, request: gr.Request) -> AsyncIterator[Values]:
        """Yield the finished page. Turns of three and four sides stream here first."""
        session = self._playground.known(*visitor(request))
        if session is None:  # No session could begin; this repeats the reason.
            yield await self._doing(request)
            return
        rest = (*_waiting(session), view.history_view(session))
        async for panels in self._speaking(session):
            yield *panels, *([] for _ in range(MOST_SIDES - len(panels))), *rest
        yield self._page(session, trouble=session.trouble)

    def _stop_answers(self, request: gr.Request) -> None:
        session = self._playground.known(*visitor(request))
        if session is not None:
            self._playground.streams.stop(session)

    async def _edit_prompt(self, request: gr.Request) -> Values:
        prompts: list[str] = []

        def undo(session: Session) -> None:
            prompts.append(session.undo().prompt.text)

        values = await self._doing(request, undo)
        return prompts[0] if prompts else "", *values

    async def _undo_turn(self, request: gr.Request) -> Values:
        def undo(session: Session) -> None:
            session.undo()

        return await self._doing(request, undo)

    async def _restart(self, blind: bool, shuffle: str, request: gr.Request) -> Values:
        async def begin(session: Session) -> Session:
            self._playground.streams.stop(session)
            session.is_blind, session.shuffle = bool(blind), "session" if shuffle == "session" else "turn"
            return await self._playground.begin(*visitor(request), like=session)

        return await self._doing(request, begin)

    def _voting(self, choice: str) -> Callable[..., Any]:
        async def cast_vote(reasons: list[str], comment: str, request: gr.Request) -> Values:
            return await self._cast(choice, reasons, comment, request)

        return cast_vote

    async def _add_reasons(self, reasons: list[str], comment: str, request: gr.Request) -> Values:
        return await self._cast(None, reasons, comment, request)

    async def _cast(self, choice: str | None, reasons: list[str], comment: str, request: gr.Request) -> Values:
        """Cast a vote. ``choice`` None means the choice of the present vote."""

        async def cast(session: Session) -> None:
            voted = session.last.vote if session.last is not None else None
            if choice is None and voted is None:
                raise SessionError("Vote first. Then you can add reasons.")
            final_choice = choice if choice is not None or voted is None else voted.choice
            await self._playground.vote(session, str(final_choice), reasons or [], comment or "")

        return await self._doing(request, cast)

    async def _show_names(self, request: gr.Request) -> Values:
        def show(session: Session) -> None:
            session.show_names()

        return await self._doing(request, show)

    async def _show_difference(self, request: gr.Request) -> str:
        session = self._playground.known(*visitor(request))
        return view.difference_view(session.last if session is not None else None)

    async def _exporting(self, request: gr.Request) -> str:
        session = self._playground.known(*visitor(request))
        conversation = session.export() if session is not None else {"turns": []}
        return json.dumps(conversation, indent=1, ensure_ascii=False)

    async def _sharing(self, request: gr.Request) -> str:
        try:
            session = await self._session(request)
            return view.state(view.share_notice(await self._playground.share(session)), view.controls(session))
        except FinetuneError as error:
            return view.notice(str(error), "warn")

    # values of the page ---------------------------------------------------------------------------------------------

    def _page(self, session: Session | None, *, trouble: str | None = None) -> Values:
        """Return chats, side lines, status, reference, differences, pictures and history, as the session is now."""
        turn = session.last if session is not None else None
        chats = view.panels(session, turn) if session is not None else []
        payloads = [chat_payload(chats[position]) if position < len(chats) else [] for position in range(MOST_SIDES)]
        history = view.history_view(session) if session is not None else ""
        return *payloads, *self._side_lines(session), *self._notices(session, trouble), history

    def _side_lines(self, session: Session | None) -> list[str]:
        turn = session.last if session is not None else None
        count = len(turn.answers) if turn is not None else 0
        return [view.side_line(turn if position < count else None, position) for position in range(MOST_SIDES)]

    def _notices(self, session: Session | None, trouble: str | None) -> tuple[str, str, str, str]:
        """Return the status, the reference answer, an empty list of differences, and the pictures."""
        if session is None:
            return view.notice(trouble or "This session has ended. Reload the page.", "bad"), "", "", ""
        status = view.notice(trouble, "warn") if trouble else view.status(session)
        pictures = view.pictures_view(session)
        return view.state(status, view.controls(session)), view.reference_view(session.last), "", pictures


def _answer_panel(position: int) -> gr.Chatbot:
    """Return a panel for answers. The style sheet gives it the height that the window leaves."""
    with gr.Column(min_width=280, elem_classes=f"mf-column mf-column-{position}"):
        return gr.Chatbot(
            label=f"Answer {LABELS[position]}",
            elem_id=f"mf-chat-{position}",
            elem_classes=f"mf-chat-{position}",
            height="var(--mf-panel-height)",
            min_height=0,
            buttons=["copy"],
            placeholder=f"Answer {LABELS[position]} appears here.",
            layout="panel",
            sanitize_html=True,
            allow_tags=False,
            allow_file_downloads=False,
        )


def _side_facts(position: int) -> gr.HTML:
    with gr.Column(min_width=280, elem_classes=f"mf-column-{position}"):
        return gr.HTML(view.side_line(None, position), elem_id=f"mf-side-{position}")


def _set(session: Session, settings: Values) -> None:
    """Take over ``settings``: system prompt, temperature, top p, and the texts of max tokens and seed."""
    system, temperature, top_p, max_tokens, seed = settings
    session.sampling = shared_sampling(temperature, top_p, max_tokens, seed)
    session.system_prompt = str(system or "")


def chat_payload(messages: view.ChatMessages) -> list[dict[str, Any]]:
    """Return messages as ``gr.Chatbot`` sends them to the page; a test compares both."""
    return [
        {
            "role": message["role"],
            "metadata": None,
            "content": [{"text": message["content"], "type": "text"}],
            "options": None,
        }
        for message in messages
    ]


def _waiting(session: Session) -> Values:
    """Return side lines, status, reference, differences and pictures while answers arrive."""
    lines = [view.side_line(None, position) for position in range(MOST_SIDES)]
    controls = view.Controls(is_speaking=True, sides=len(session.contenders), takes_pictures=session.takes_pictures)
    status = view.state(view.notice("Waiting for both answers …"), controls)
    return *lines, status, "", "", view.pictures_view(session)
