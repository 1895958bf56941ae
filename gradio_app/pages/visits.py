"""Who asks, as a handler sees it."""

from __future__ import annotations

from typing import Any

import gradio as gr

Values = tuple[Any, ...]
"""For all outputs of a handler, in their order."""


def visitor(request: gr.Request) -> tuple[str, str | None]:
    """The page's secret key, and who has logged in."""
    if request.session_hash is None:  # all who give none would share one conversation
        raise gr.Error("This needs a session: send a session_hash of your own.", print_exception=False)
    return str(request.session_hash), request.username or None
