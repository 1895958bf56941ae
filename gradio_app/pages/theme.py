"""The style sheet and the script of the page, read once from ``static``."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from gradio_app.versions.data_html import REPORT_CSS

_STATIC = Path(__file__).parent / "static"


@cache
def style_sheet() -> str:
    """Return the CSS of all tabs.

    The data report's own rules come first, so that the page's colours replace its own.
    """
    return f"{REPORT_CSS}\n{(_STATIC / 'style.css').read_text(encoding='utf-8')}"


@cache
def script() -> str:
    """Return the page's script as an element for the page's head, where the guard allows it by its digest."""
    return f"<script>\n{(_STATIC / 'page.js').read_text(encoding='utf-8')}</script>"
