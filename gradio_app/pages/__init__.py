"""The playground's pages: layout and handlers, one file for each tab.

A handler keeps no state: it reads and changes the session. These files import Gradio, together with ``gradio_app.app``
and ``gradio_app.web``. No name of a hidden model is in the page, in its requests or in its configuration.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradio_app.pages.api import ComparisonApi
    from gradio_app.pages.compare import ComparePage
    from gradio_app.pages.data import DataPage
    from gradio_app.pages.runs import RunsPage
    from gradio_app.pages.standings import StandingsPage

__all__ = ["ComparePage", "ComparisonApi", "DataPage", "RunsPage", "StandingsPage"]
_FILES = {
    "ComparePage": "compare",
    "ComparisonApi": "api",
    "DataPage": "data",
    "RunsPage": "runs",
    "StandingsPage": "standings",
}


def __getattr__(name: str) -> Any:
    """Import a page on first use, because it imports Gradio."""
    if name not in _FILES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_FILES[name]}"), name)
