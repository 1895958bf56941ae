"""The prompt set: the next prompt that the voter has not judged, and the voter's progress."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import gradio as gr

from gradio_app.chat import html as view
from gradio_app.chat.session import Prompt, Session
from gradio_app.pages.visits import Values, visitor
from gradio_app.playground import Playground
from mlflow_finetune_plugin.errors import FinetuneError

Beginning = Callable[..., Awaitable[Values]]


class PromptSetPart:
    """The part of the Compare tab that walks through a prompt set."""

    def __init__(self, playground: Playground) -> None:
        self._playground = playground
        with gr.Accordion("Prompt set: vote on many prompts in a row", open=False), gr.Row():
            self._set = gr.Dropdown(
                playground.walk.names, value=playground.walk.names[0], label="Set", elem_id="mf-set"
            )
            with gr.Column():
                self._next = gr.Button("Next prompt (key N)", variant="primary", elem_id="mf-next")
                self._auto = gr.Checkbox(False, label="Advance automatically after each vote", elem_id="mf-auto")
            self._progress = gr.HTML(
                view.soft("You see the prompts that you have not judged yet."), elem_id="mf-progress"
            )

    def wire(
        self,
        prompt: gr.Textbox,
        settings: list[Any],
        begun: list[Any],
        speak: Callable[[Any], Any],
        beginning: Beginning,
        private: dict[str, Any],
    ) -> None:
        self._beginning = beginning
        speak(self._next.click(self._advance, [self._set, prompt, *settings], [self._progress, *begun], **private))
        self._set.input(self._progress_text, self._set, self._progress, **private)

    async def _advance(self, request: gr.Request, name: str, prompt: str, *settings: Any) -> Values:
        sentences: list[str] = []

        async def find(session: Session) -> Prompt:
            upcoming, sentence = await self._playground.next_prompt(session, name)
            sentences.append(sentence)
            return upcoming

        begun = await self._beginning(request, prompt, settings, find, keeps_prompt=True)
        return view.soft(sentences[0]) if sentences else await self._progress_text(name, request), *begun

    async def _progress_text(self, name: str, request: gr.Request) -> str:
        try:
            session = await self._playground.session(*visitor(request))
            return view.soft(await self._playground.progress_in(session, name))
        except FinetuneError as error:
            return view.notice(str(error), "warn")
