"""The page put together: tabs, theme, script, API."""

from __future__ import annotations

import gradio as gr

from gradio_app.look import CSS, SCRIPT
from gradio_app.pages.api import ComparisonApi
from gradio_app.pages.compare_page import ComparePage
from gradio_app.playground import Playground

TITLE = "mlflow-finetune playground"


def theme() -> gr.themes.Base:
    """Quiet surfaces, system fonts (nothing is fetched from elsewhere), one accent."""
    fonts = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
    mono = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"]
    return gr.themes.Default(
        primary_hue=gr.themes.colors.blue,
        neutral_hue=gr.themes.colors.slate,
        radius_size=gr.themes.sizes.radius_md,
        font=fonts,
        font_mono=mono,
    )


def head() -> str:
    """What goes into the page's head."""
    return SCRIPT


def css() -> str:
    """The style sheets of all tabs."""
    return CSS


def build(playground: Playground) -> gr.Blocks:
    """All of it."""
    blocks: gr.Blocks = gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=True)
    with blocks:
        ComparisonApi(playground).build()  # first, for the names of its endpoints
        gr.HTML(f'<div class="mf-head"><h1>{TITLE}</h1></div>')
        with gr.Tabs(), gr.Tab("Compare", id="compare"):
            ComparePage(playground).build(blocks)
    return blocks
