"""Read rows from files, saved data sets, Hugging Face data sets and MLflow artifacts.

The room promises that a malformed source raises an error with its line and the fix; it never loses or repairs a row.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow_finetune_plugin.data.sources.locations import check_location as check_location
    from mlflow_finetune_plugin.data.sources.locations import is_remote as is_remote
    from mlflow_finetune_plugin.data.sources.locations import local_copy as local_copy
    from mlflow_finetune_plugin.data.sources.rows import peek as peek
    from mlflow_finetune_plugin.data.sources.rows import read_rows as read_rows

_MODULES = {
    "check_location": "locations",
    "is_remote": "locations",
    "local_copy": "locations",
    "peek": "rows",
    "read_rows": "rows",
}

__all__ = [
    "check_location",
    "is_remote",
    "local_copy",
    "peek",
    "read_rows",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
