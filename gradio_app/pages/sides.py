"""The choice of contenders: two sides to vote on, up to four to compare."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import gradio as gr

from gradio_app.chat.session import MOST_SIDES, Session, SessionError
from gradio_app.pages.sampling import SIDE_FIELDS, number_field, own_sampling
from gradio_app.pages.visits import Values, visitor
from gradio_app.playground import Playground
from mlflow_finetune_plugin.errors import FinetuneError

Doing = Callable[[gr.Request, Callable[[Session], Awaitable[Session]]], Awaitable[Values]]


class SidesPart:
    """The choice of contenders. The names enter the page when it is opened, and leave it when it is applied."""

    def __init__(self, playground: Playground) -> None:
        self._playground = playground
        self._choose = gr.Button("Choose the models", size="sm", elem_id="mf-choose")
        with gr.Column(visible=False) as self._part:
            gr.HTML(
                '<p class="mf-soft">Choose two sides to vote, or up to four to compare. '
                "A side's own settings apply only while names are shown. "
                "With hidden names all sides use the same settings.</p>"
            )
            self._sides, self._own_fields = [], []
            for position in range(MOST_SIDES):
                with gr.Row():
                    side = gr.Dropdown([], label=f"Side {position + 1}", elem_id=f"mf-side-choice-{position}", scale=3)
                    self._sides.append(side)
                    self._own_fields.append(_own_settings())
            self._apply = gr.Button("Compare these", size="sm", variant="primary", elem_id="mf-apply")

    def wire(self, page: list[Any], doing: Doing, private: dict[str, Any]) -> None:
        """Connect the buttons. ``doing`` returns the values of ``page`` after a change of the session."""
        self._doing = doing
        choosing = [self._part, *self._sides]
        self._choose.click(self._show, None, choosing, **private)
        all_fields = [field for fields in self._own_fields for field in fields]
        self._apply.click(self._compare, [*self._sides, *all_fields], [*choosing, *page], **private)

    async def _show(self, request: gr.Request) -> list[Any]:
        try:
            session = await self._playground.session(*visitor(request))
            served = await self._playground.served()
        except FinetuneError as error:
            raise gr.Error(str(error), print_exception=False) from error
        names = [contender.name for contender in served.contenders]
        chosen = [contender.name for contender in session.contenders]
        filled = [*chosen, *[""] * (MOST_SIDES - len(chosen))]
        return [
            gr.Column(visible=True),
            *(
                gr.Dropdown(choices=names if position < 2 else [("none", ""), *names], value=value)
                for position, value in enumerate(filled)
            ),
        ]

    async def _compare(self, request: gr.Request, *values: Any) -> list[Any]:
        names, texts = list(values[:MOST_SIDES]), values[MOST_SIDES:]
        begun: list[Session] = []

        async def compare(session: Session) -> Session:
            served = await self._playground.served()
            chosen = [(position, served.find(name)) for position, name in enumerate(names) if name]
            contenders = tuple(contender for _, contender in chosen)
            if len(contenders) < 2 or len(set(contenders)) < len(contenders):
                raise SessionError("Choose two to four different sides.")
            samplings = [
                own_sampling(session.sampling, texts[len(SIDE_FIELDS) * position :][: len(SIDE_FIELDS)])
                for position, _ in chosen
            ]
            self._playground.streams.stop(session)
            session.contenders = contenders
            session.own_samplings = {position: each for position, each in enumerate(samplings) if each is not None}
            begun.append(await self._playground.begin(*visitor(request), like=session))
            return begun[0]

        page = await self._doing(request, compare)
        if not begun:  # A refused choice stays, so that the user can correct it.
            return [*(gr.skip() for _ in (self._part, *self._sides)), *page]
        hidden = [gr.Dropdown(choices=[], value=None) for _ in self._sides]  # No name stays in the page.
        return [gr.Column(visible=False), *hidden, *page]


def _own_settings() -> list[gr.Textbox]:
    return [number_field(label, "as all", min_width=90) for label in SIDE_FIELDS]
