"""Read the rows of objectives that learn from preferences or rewards: pairs of answers, rated answers, and prompts.

The room promises that a row is read completely or left out with a reason, and that a file of another form is refused with the
entry points that take it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlflow_finetune_plugin.lazy import names_on_first_use

if TYPE_CHECKING:
    from mlflow_finetune_plugin.data.conversations.row_forms.detection import form_layout
    from mlflow_finetune_plugin.data.conversations.row_forms.pairs import pairs_of
    from mlflow_finetune_plugin.data.conversations.row_forms.prompts import prompts_of
    from mlflow_finetune_plugin.data.conversations.row_forms.rated import RatingCounts, rated_of

__all__ = ["RatingCounts", "form_layout", "pairs_of", "prompts_of", "rated_of"]

__getattr__ = names_on_first_use(
    __name__,
    {
        "RatingCounts": "rated",
        "form_layout": "detection",
        "pairs_of": "pairs",
        "prompts_of": "prompts",
        "rated_of": "rated",
    },
)
