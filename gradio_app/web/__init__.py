"""The web server of the playground: the login, the guard before Gradio, and the port.

Gradio receives a request only after the guard has checked its host, origin, route, size and user, and every response
carries a content security policy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradio_app.web.access import Access, Visitor
    from gradio_app.web.guard import Guard
    from gradio_app.web.server import Page, check_address, make_app, private_files, run

__all__ = ["Access", "Guard", "Page", "Visitor", "check_address", "make_app", "private_files", "run"]
_FILES = {
    "Access": "access",
    "Guard": "guard",
    "Page": "server",
    "Visitor": "access",
    "check_address": "server",
    "make_app": "server",
    "private_files": "server",
    "run": "server",
}


def __getattr__(name: str) -> Any:
    """Import a name on first use, because ``private_files`` must run before anything imports Gradio."""
    if name not in _FILES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_FILES[name]}"), name)
