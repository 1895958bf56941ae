"""The playground's pages: layout and handlers, one file for each tab.

A handler keeps no state: it reads and changes the session. These files import Gradio, together with ``gradio_app.app``
and ``gradio_app.web``. No name of a hidden model is in the page, in its requests or in its configuration.
"""

from typing import TYPE_CHECKING

from mlflow_finetune_plugin.lazy import names_on_first_use

if TYPE_CHECKING:
    from gradio_app.pages.api import ComparisonApi
    from gradio_app.pages.compare import ComparePage
    from gradio_app.pages.data import DataPage
    from gradio_app.pages.runs import RunsPage
    from gradio_app.pages.standings import StandingsPage

__all__ = ["ComparePage", "ComparisonApi", "DataPage", "RunsPage", "StandingsPage"]

__getattr__ = names_on_first_use(
    __name__,
    {
        "ComparePage": "compare",
        "ComparisonApi": "api",
        "DataPage": "data",
        "RunsPage": "runs",
        "StandingsPage": "standings",
    },
)
