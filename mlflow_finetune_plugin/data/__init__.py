"""Prepare data files for training: read, check, render and tokenize them, and report on every row.

The room promises that ``prepare`` loses no row without a reason: the report counts each row that is left out, with its line.
Names are imported on first use, so that importing this package stays light.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlflow_finetune_plugin.lazy import names_on_first_use

if TYPE_CHECKING:
    from mlflow_finetune_plugin.data.preparation import PreparedData, prepare
    from mlflow_finetune_plugin.data.report.contents import DataReport, UnusableDataError
    from mlflow_finetune_plugin.data.report.page import report_page
    from mlflow_finetune_plugin.data.report.text import report_text
    from mlflow_finetune_plugin.data.request import DataFile, DataRequest
    from mlflow_finetune_plugin.data.tokens.renderer import ChatRenderer

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

__getattr__ = names_on_first_use(
    __name__,
    {
        "ChatRenderer": "tokens.renderer",
        "DataFile": "request",
        "DataReport": "report.contents",
        "DataRequest": "request",
        "PreparedData": "preparation",
        "UnusableDataError": "report.contents",
        "prepare": "preparation",
        "report_page": "report.page",
        "report_text": "report.text",
    },
)
