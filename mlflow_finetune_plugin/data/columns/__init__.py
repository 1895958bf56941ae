"""Judge the columns of a file by their names and values: what they rate, what the layout leaves out, what to offer instead.

The room promises that a column is used, refused by name, or counted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlflow_finetune_plugin.lazy import names_on_first_use

if TYPE_CHECKING:
    from mlflow_finetune_plugin.data.columns.offers import columns_fix, columns_offer
    from mlflow_finetune_plugin.data.columns.ratings import AnswerLists
    from mlflow_finetune_plugin.data.columns.remainder import UnusedColumns

__all__ = [
    "AnswerLists",
    "UnusedColumns",
    "columns_fix",
    "columns_offer",
]

__getattr__ = names_on_first_use(
    __name__,
    {
        "AnswerLists": "ratings",
        "UnusedColumns": "remainder",
        "columns_fix": "offers",
        "columns_offer": "offers",
    },
)
