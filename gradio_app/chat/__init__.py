"""The conversation with two to four models: endpoints, sessions, turns, and the pace at which answers are shown.

All sides of a turn receive the same messages. While names are hidden, nothing that a session returns reveals a side: no
name, no receipt and no time.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradio_app.chat.client import Endpoint, SamplingSettings
    from gradio_app.chat.endpoints import ServedModels
    from gradio_app.chat.session import Contender, Prompt, Session, SessionError
    from gradio_app.chat.streams import Streams

__all__ = ["Contender", "Endpoint", "Prompt", "SamplingSettings", "ServedModels", "Session", "SessionError", "Streams"]
_FILES = {
    "Contender": "session",
    "Endpoint": "client",
    "Prompt": "session",
    "SamplingSettings": "client",
    "ServedModels": "endpoints",
    "Session": "session",
    "SessionError": "session",
    "Streams": "streams",
}


def __getattr__(name: str) -> Any:
    """Import a name on first use, because the client imports an HTTP library."""
    if name not in _FILES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_FILES[name]}"), name)
