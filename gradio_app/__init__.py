"""The playground: compare models blind in the browser, vote, and watch the standings.

``python -m gradio_app`` serves it.

The package is a client of any OpenAI-compatible endpoint. Votes are on disk before the page confirms them, and no name
of a hidden model reaches the browser before its vote is final.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradio_app.__main__ import main
    from gradio_app.app import build
    from gradio_app.playground import Playground
    from gradio_app.settings import PlaygroundSettings, check_settings

__all__ = ["Playground", "PlaygroundSettings", "build", "check_settings", "main"]
_FILES = {
    "Playground": "playground",
    "PlaygroundSettings": "settings",
    "build": "app",
    "check_settings": "settings",
    "main": "__main__",
}


def __getattr__(name: str) -> Any:
    """Import a name on first use, because the page imports Gradio."""
    if name not in _FILES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_FILES[name]}"), name)
