"""The visitor of a request, as a handler receives it."""

from __future__ import annotations

from typing import Any

import gradio as gr

Values = tuple[Any, ...]
"""The values of all outputs of a handler, in their order."""


def visitor(request: gr.Request) -> tuple[str, str | None]:
    """Return the page's secret key and the login, which is None on a page without a login."""
    if request.session_hash is None:  # Without a key, all clients would share one conversation.
        raise gr.Error("This request has no session; fix: send a session_hash of your own.", print_exception=False)
    return str(request.session_hash), request.username or None
