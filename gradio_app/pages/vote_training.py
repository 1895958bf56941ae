"""Train on these votes: a part of the Standings tab that starts a training, shows it and stops it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
import mlflow

from gradio_app.html_parts import note_html
from gradio_app.registry_client import ask_mlflow, registry_client
from gradio_app.versions.vote_training import (
    OBJECTIVES,
    STARTS,
    PlannedTraining,
    TrainingState,
    VoteTrainings,
    plan_training,
)
from gradio_app.versions.vote_training_html import training_html
from mlflow_finetune_plugin.errors import FinetuneError

INTERVAL_S = 2.0
_NOT_ALLOWED = "You cannot start or stop a training: your user has no may_promote in the auth file. Ask the person who runs this playground."
_OBJECTIVE_NAMES = {"dpo": "dpo, from better and worse answers", "kto": "kto, from good and bad answers"}
_START_NAMES = {"champion": "the champion, or the newest version", "base": "the base"}


class VoteTrainingPage:
    """The trainings on the votes of one registered model.

    The server checks ``may_promote`` for every request that starts or stops one, whatever the page displays.

    Args:
        model: The registered model.
        may_promote: Whether the user of a request may promote.
        project: The project folder whose recipe is used; None means defaults.
        trainings: The trainings of this machine; None begins to follow them.
        offer: Called with model and version of a finished training, so that it can be chosen as a side.
    """

    def __init__(
        self,
        model: str,
        may_promote: Callable[[gr.Request], bool],
        project: Path | None = None,
        trainings: VoteTrainings | None = None,
        offer: Callable[[str, str], None] = lambda model, version: None,
    ) -> None:
        self.model = model
        self._may_promote = may_promote
        self._project = project
        self._offer = offer
        self._trainings = trainings if trainings is not None else VoteTrainings()

    def build(self, tab: gr.Tab) -> None:
        """Build the components within the tab. Job folders are read only while the tab is open."""
        with gr.Column(elem_classes="mf-vote-training"):
            gr.Markdown("### Train on these votes")
            rights = gr.HTML(apply_default_css=False)
            state = gr.HTML(apply_default_css=False, elem_id="votes-training")
            with gr.Row():
                train = gr.Button("Train on these votes …", interactive=False, elem_id="votes-train")
                stop = gr.Button("Stop this training", variant="stop", visible=False, elem_id="votes-stop")
            with gr.Row(visible=False) as choices:
                objective = gr.Radio(
                    [(_OBJECTIVE_NAMES[name], name) for name in OBJECTIVES], value=OBJECTIVES[0], label="Learn by"
                )
                start = gr.Radio([(_START_NAMES[name], name) for name in STARTS], value=STARTS[0], label="Start from")
            question = gr.HTML(apply_default_css=False, elem_id="votes-question")
            with gr.Row():
                yes = gr.Button("Yes, start the training", variant="primary", visible=False, elem_id="votes-yes")
                no = gr.Button("Not now", visible=False, elem_id="votes-no")
        planned = gr.State(None)
        timer = gr.Timer(INTERVAL_S, active=False)
        shown, asking = [rights, state, train, stop], [choices, question, yes, no, planned]
        private: dict[str, Any] = {"api_visibility": "private", "concurrency_limit": None, "show_progress": "minimal"}
        quiet: dict[str, Any] = {"api_visibility": "private", "queue": False, "show_progress": "hidden"}
        tab.select(self._open, None, [*shown, timer], **private)
        timer.tick(self._update, None, shown, **quiet)
        ask: dict[str, Any] = {"fn": self._ask, "inputs": [objective, start], "outputs": asking, **private}
        train.click(**ask)
        objective.input(**ask)
        start.input(**ask)
        no.click(_closed, None, asking, **private)
        yes.click(self._begin, planned, [*shown, *asking], **private)
        stop.click(self._stop, None, shown, **private)
        if isinstance(tab.parent, gr.Tabs):
            tab.parent.select(self._is_still_open(tab), None, timer, **quiet)

    async def _open(self, request: gr.Request) -> list[Any]:
        return [*await self._update(request), gr.Timer(active=True)]

    async def _update(self, request: gr.Request) -> list[Any]:
        return self._shown(request, await ask_mlflow(self._trainings.state, self.model))

    def _shown(self, request: gr.Request, state: TrainingState | None, fault: str = "") -> list[Any]:
        if state is not None and state.version is not None:
            self._offer(self.model, state.version)
        may, is_running = self._may_promote(request), state is not None and state.is_running
        notice = note_html(fault, "mf-bad") if fault else ""
        return [
            notice if may else note_html(_NOT_ALLOWED),
            training_html(self.model, state, mlflow.get_tracking_uri()),
            gr.update(interactive=may and not is_running),
            gr.update(visible=may and state is not None and state.phase == "running"),
        ]

    async def _ask(self, objective: str, start: str, request: gr.Request) -> list[Any]:
        """Return what would happen, and the buttons that confirm it. Nothing is started."""
        if not self._may_promote(request):
            return [gr.update(visible=False), note_html(_NOT_ALLOWED), *_closed()[2:]]
        try:
            plan = await ask_mlflow(
                lambda: plan_training(registry_client(), self.model, objective, start, self._project)
            )
        except FinetuneError as error:
            return [
                gr.update(visible=True),
                note_html(str(error), "mf-bad"),
                *_closed()[2:3],
                gr.update(visible=True),
                None,
            ]
        return [gr.update(visible=True), note_html(plan.text), gr.update(visible=True), gr.update(visible=True), plan]

    async def _begin(self, plan: PlannedTraining | None, request: gr.Request) -> list[Any]:
        fault = ""
        if self._may_promote(request):
            try:
                if plan is None:
                    fault = "No training was planned; fix: press Train on these votes."
                else:
                    await ask_mlflow(self._trainings.begin, plan, _person(request))
            except FinetuneError as error:
                fault = str(error)
        state = await ask_mlflow(self._trainings.state, self.model)
        return [*self._shown(request, state, fault), *_closed()]

    async def _stop(self, request: gr.Request) -> list[Any]:
        fault = ""
        if self._may_promote(request):
            try:
                await ask_mlflow(self._trainings.stop, self.model, _person(request))
            except FinetuneError as error:
                fault = str(error)
        return self._shown(request, await ask_mlflow(self._trainings.state, self.model), fault)

    @staticmethod
    def _is_still_open(tab: gr.Tab) -> Callable[[gr.SelectData], gr.Timer]:
        def timer(event: gr.SelectData) -> gr.Timer:
            return gr.Timer(active=event.value == tab.label)

        return timer


def _closed() -> list[Any]:
    return [gr.update(visible=False), "", gr.update(visible=False), gr.update(visible=False), None]


def _person(request: gr.Request) -> str:
    """Return the login; empty for a page without a login."""
    return str(getattr(request, "username", None) or "")
