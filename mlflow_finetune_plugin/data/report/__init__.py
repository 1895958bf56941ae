"""Check prepared rows and report on them, as text, as JSON and as an HTML page.

The room promises a verdict first, and with every warning the place where it occurs and the fix.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow_finetune_plugin.data.report.contents import DataFinding as DataFinding
    from mlflow_finetune_plugin.data.report.contents import DataReport as DataReport
    from mlflow_finetune_plugin.data.report.contents import FileReport as FileReport
    from mlflow_finetune_plugin.data.report.contents import UnusableDataError as UnusableDataError
    from mlflow_finetune_plugin.data.report.page import report_fragment as report_fragment
    from mlflow_finetune_plugin.data.report.page import report_page as report_page
    from mlflow_finetune_plugin.data.report.text import report_text as report_text

_MODULES = {
    "DataFinding": "contents",
    "DataReport": "contents",
    "FileReport": "contents",
    "UnusableDataError": "contents",
    "report_fragment": "page",
    "report_page": "page",
    "report_text": "text",
}

__all__ = [
    "DataFinding",
    "DataReport",
    "FileReport",
    "UnusableDataError",
    "report_fragment",
    "report_page",
    "report_text",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
