"""Build the page: tabs, theme, script and API."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gradio as gr

from gradio_app.chat import html as view
from gradio_app.pages.api import ComparisonApi
from gradio_app.pages.compare import ComparePage
from gradio_app.pages.data import DataPage
from gradio_app.pages.runs import RunsPage
from gradio_app.pages.standings import StandingsPage
from gradio_app.pages.theme import script, style_sheet
from gradio_app.pages.visits import visitor
from gradio_app.pages.vote_training import VoteTrainingPage
from gradio_app.playground import Playground
from gradio_app.versions.promotion import Promotions

TITLE = "mlflow-finetune playground"
_NO_MODEL = (
    "No registered model is known, so votes are not stored and there are no standings. "
    "Start the playground with --model NAME, or with an endpoint that serves one."
)


def build(
    playground: Playground,
    model: str | None,
    may_promote: Callable[[str | None], bool],
    promotions: Promotions | None = None,
) -> gr.Blocks:
    """Build the page.

    Args:
        playground: The playground that the page displays.
        model: The registered model of the other tabs; None leaves these tabs out.
        may_promote: Whether a login may promote, roll back, and train on votes.
        promotions: The promotions under way; None begins with none.
    """
    blocks: gr.Blocks = gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=True)
    with blocks:
        ComparisonApi(playground).build()  # First, so that no other event takes the names of its endpoints.
        with gr.Row(elem_classes="mf-head"):
            gr.HTML(f"<h1>{TITLE}</h1>")
            switch = gr.Button("Light or dark", size="sm", scale=0, min_width=100, elem_id="mf-theme")
        switch.click(None, js="() => window.mfTheme()")
        with gr.Tabs():
            with gr.Tab("Compare", id="compare"):
                ComparePage(playground).build(blocks)
            if model is None:
                gr.HTML(view.notice(_NO_MODEL, "warn"))
                return blocks
            with gr.Tab("Standings", id="standings") as tab:
                StandingsPage(
                    model,
                    open_turns=playground.open_turns,
                    voted_pair=lambda request: playground.voted_pair(*visitor(request)),
                    live=playground.settings.live_standings,
                ).build(tab)
                VoteTrainingPage(
                    model,
                    lambda request: may_promote(request.username),
                    playground.settings.project,
                    offer=playground.offer,
                ).build(tab)
            with gr.Tab("Runs", id="runs") as tab:
                RunsPage(model, lambda request: may_promote(request.username), promotions).build(tab)
            with gr.Tab("Data", id="data") as tab:
                DataPage(model).build(tab)
    return blocks


def theme() -> Mapping[str, Any]:
    """Return what ``gradio.mount_gradio_app`` takes as theme, css and head."""
    return {"theme": _gradio_theme(), "css": style_sheet(), "head": script()}


def _gradio_theme() -> gr.themes.Base:
    """Return the theme: system fonts, so that nothing is loaded from other servers, and one accent colour."""
    return gr.themes.Default(
        primary_hue=gr.themes.colors.blue,
        neutral_hue=gr.themes.colors.slate,
        radius_size=gr.themes.sizes.radius_md,
        font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"],
        font_mono=["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"],
    ).set(  # Gradio's own colours are below a contrast of 4.5 to 1.
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_400",
        block_label_text_color="*neutral_600",
        block_info_text_color="*neutral_600",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_600",
    )
