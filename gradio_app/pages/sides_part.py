"""Who meets: two sides to vote on, up to four to compare, with settings of their own while names are shown."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import gradio as gr

from gradio_app.client import Sampling
from gradio_app.pages.visits import Values, visitor
from gradio_app.playground import Playground
from gradio_app.session import MOST_SIDES, Session, SessionError
from mlflow_finetune_plugin.errors import FinetuneError

Doing = Callable[[gr.Request, Callable[[Session], Awaitable[Session]]], Awaitable[Values]]


class SidesPart:
    """Names come into the page when somebody asks for the choice, and leave it when the choice is made."""

    def __init__(self, playground: Playground) -> None:
        self._playground = playground
        self._choose = gr.Button("Choose who meets", size="sm", elem_id="mf-choose")
        with gr.Column(visible=False) as self._part:
            gr.HTML(
                '<p class="mf-soft">Two sides can be voted on, up to four compared. '
                "A side's own settings hold while names are shown; blind, all sides are asked alike.</p>"
            )
            self._sides, self._own = [], []
            for place in range(MOST_SIDES):
                with gr.Row():
                    side = gr.Dropdown([], label=f"Side {place + 1}", elem_id=f"mf-side-choice-{place}", scale=3)
                    self._sides.append(side)
                    self._own.append(_own_settings())
            self._apply = gr.Button("Compare these", size="sm", variant="primary", elem_id="mf-apply")

    def wire(self, page: list[Any], doing: Doing, private: dict[str, Any]) -> None:
        """``doing`` shows the whole ``page`` after a change of the session."""
        self._doing = doing
        choosing = [self._part, *self._sides]
        self._choose.click(self._show, None, choosing, **private)
        own = [number for numbers in self._own for number in numbers]
        self._apply.click(self._compare, [*self._sides, *own], [*choosing, *page], **private)

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
                gr.Dropdown(choices=names if place < 2 else [("none", ""), *names], value=value)
                for place, value in enumerate(filled)
            ),
        ]

    async def _compare(self, request: gr.Request, *values: Any) -> list[Any]:
        names, numbers = list(values[:MOST_SIDES]), values[MOST_SIDES:]

        async def compare(session: Session) -> Session:
            served = await self._playground.served()
            chosen = [(place, served.find(name)) for place, name in enumerate(names) if name]
            contenders = tuple(contender for _, contender in chosen)
            if len(contenders) < 2 or len(set(contenders)) < len(contenders):
                raise SessionError("Choose two to four different sides.")
            own = [_sampling(session.sampling, numbers[4 * place : 4 * place + 4]) for place, _ in chosen]
            self._playground.stop(session)
            session.contenders = contenders
            session.own_samplings = {place: found for place, found in enumerate(own) if found is not None}
            return await self._playground.begin(*visitor(request), like=session)

        page = await self._doing(request, compare)
        hidden = [gr.Dropdown(choices=[], value=None) for _ in self._sides]  # blind: no name stays in the page
        return [gr.Column(visible=False), *hidden, *page]


def _own_settings() -> list[gr.Number]:
    return [
        gr.Number(None, label="Temperature", minimum=0, maximum=2, min_width=90),
        gr.Number(None, label="Top p", minimum=0.05, maximum=1, min_width=90),
        gr.Number(None, label="Max tokens", precision=0, minimum=1, min_width=90),
        gr.Number(None, label="Seed", precision=0, min_width=90),
    ]


def _sampling(shared: Sampling, numbers: tuple[Any, ...]) -> Sampling | None:
    """None: nothing of its own."""
    temperature, top_p, max_tokens, seed = numbers
    if all(number is None for number in numbers):
        return None
    return Sampling(
        temperature=shared.temperature if temperature is None else float(temperature),
        top_p=shared.top_p if top_p is None else float(top_p),
        max_tokens=shared.max_tokens if max_tokens is None else int(max_tokens),
        seed=shared.seed if seed is None else int(seed),
    )
