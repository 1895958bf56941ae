"""Read rows from files, saved data sets, Hugging Face data sets and MLflow artifacts.

The room promises that a malformed source raises an error with its line and the fix; it never loses or repairs a row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlflow_finetune_plugin.lazy import names_on_first_use

if TYPE_CHECKING:
    from mlflow_finetune_plugin.data.sources.locations import check_location, is_remote, local_copy
    from mlflow_finetune_plugin.data.sources.rows import peek, read_rows

__all__ = [
    "check_location",
    "is_remote",
    "local_copy",
    "peek",
    "read_rows",
]

__getattr__ = names_on_first_use(
    __name__,
    {
        "check_location": "locations",
        "is_remote": "locations",
        "local_copy": "locations",
        "peek": "rows",
        "read_rows": "rows",
    },
)
