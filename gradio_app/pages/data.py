"""The Data tab: the training data of a version, with the tokens that carry loss marked."""

from __future__ import annotations

from typing import Any

import gradio as gr

from gradio_app.html_parts import empty, note_html
from gradio_app.registry_client import ask_mlflow, registry_client
from gradio_app.versions.cards import Versions, list_versions
from gradio_app.versions.data_html import read_training_data
from mlflow_finetune_plugin.errors import FinetuneError

_AT_ONCE = 200


class DataPage:
    """The data reports of one registered model's versions."""

    def __init__(self, model: str) -> None:
        self.model = model

    def build(self, tab: gr.Tab) -> None:
        """Build the tab's components within the tab. Nothing is read before the tab is selected."""
        picked = gr.Dropdown([], label="Training data of version", interactive=True)
        report = gr.HTML(apply_default_css=False, min_height=120)
        quiet: dict[str, Any] = {"api_visibility": "private", "concurrency_limit": None, "show_progress": "minimal"}
        tab.select(self._load, picked, [picked, report], **quiet)
        picked.input(self._show, picked, report, **quiet)

    async def _load(self, picked: str | None) -> tuple[Any, str]:
        try:
            versions = await ask_mlflow(self._list)
        except FinetuneError as error:
            return gr.skip(), note_html(f"The data report cannot be read now. {error}", "mf-bad")
        if not versions.rows:
            remedy = "Train one: mlflow-finetune run PROJECT -e lora registers it here."
            return gr.update(choices=[], value=None), empty(f"{self.model} has no versions yet.", remedy)
        numbers = [version.number for version in versions.rows]
        selected = picked if picked in numbers else numbers[0]
        choices = [(f"Version {number}", number) for number in numbers]
        return gr.update(choices=choices, value=selected), await self._show(selected)

    async def _show(self, picked: str | None) -> str:
        if not picked:
            return ""
        return await ask_mlflow(self._report, picked)

    def _list(self) -> Versions:
        return list_versions(registry_client(), self.model, limit=_AT_ONCE)

    def _report(self, number: str) -> str:
        try:
            return read_training_data(registry_client(), self.model, number).to_html()
        except FinetuneError as error:
            return note_html(str(error))
