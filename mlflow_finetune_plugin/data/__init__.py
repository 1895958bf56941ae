"""Prepare data files for training: read, check, render and tokenize them, and report on every row.

The room promises that ``prepare`` loses no row without a reason: the report counts each row that is left out, with its line.
Names are imported on first use, so that importing this package stays light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow_finetune_plugin.data.preparation import DataRequest as DataRequest
    from mlflow_finetune_plugin.data.preparation import PreparedData as PreparedData
    from mlflow_finetune_plugin.data.preparation import prepare as prepare
    from mlflow_finetune_plugin.data.reader import DataFile as DataFile
    from mlflow_finetune_plugin.data.report.contents import DataReport as DataReport
    from mlflow_finetune_plugin.data.report.contents import UnusableDataError as UnusableDataError
    from mlflow_finetune_plugin.data.report.page import report_page as report_page
    from mlflow_finetune_plugin.data.report.text import report_text as report_text
    from mlflow_finetune_plugin.data.tokens.renderer import ChatRenderer as ChatRenderer

_MODULES = {
    "ChatRenderer": "tokens.renderer",
    "DataFile": "reader",
    "DataReport": "report.contents",
    "DataRequest": "preparation",
    "PreparedData": "preparation",
    "UnusableDataError": "report.contents",
    "prepare": "preparation",
    "report_page": "report.page",
    "report_text": "report.text",
}

__all__ = [
    "ChatRenderer",
    "DataFile",
    "DataReport",
    "DataRequest",
    "PreparedData",
    "UnusableDataError",
    "prepare",
    "report_page",
    "report_text",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
