"""Check prepared rows and report on them, as text, as JSON and as an HTML page.

The room promises a verdict first, and with every warning the place where it occurs and the fix.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlflow_finetune_plugin.lazy import names_on_first_use

if TYPE_CHECKING:
    from mlflow_finetune_plugin.data.report.contents import DataFinding, DataReport, FileReport, UnusableDataError
    from mlflow_finetune_plugin.data.report.page import report_fragment, report_page
    from mlflow_finetune_plugin.data.report.preferences import PreferenceTally
    from mlflow_finetune_plugin.data.report.text import report_text

__all__ = [
    "DataFinding",
    "DataReport",
    "FileReport",
    "PreferenceTally",
    "UnusableDataError",
    "report_fragment",
    "report_page",
    "report_text",
]

__getattr__ = names_on_first_use(
    __name__,
    {
        "DataFinding": "contents",
        "DataReport": "contents",
        "FileReport": "contents",
        "PreferenceTally": "preferences",
        "UnusableDataError": "contents",
        "report_fragment": "page",
        "report_page": "page",
        "report_text": "text",
    },
)
