"""The trainers whose rows are more than one sequence of text.

The room promises that loss and gradient of a step do not depend on how its rows are divided, whatever a row holds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlflow_finetune_plugin.lazy import names_on_first_use

if TYPE_CHECKING:
    from mlflow_finetune_plugin.training.row_trainers.pairs import PairTrainer
    from mlflow_finetune_plugin.training.row_trainers.pictures import PictureTrainer
    from mlflow_finetune_plugin.training.row_trainers.ratings import RatedTrainer

__all__ = [
    "PairTrainer",
    "PictureTrainer",
    "RatedTrainer",
]

__getattr__ = names_on_first_use(
    __name__,
    {
        "PairTrainer": "pairs",
        "PictureTrainer": "pictures",
        "RatedTrainer": "ratings",
    },
)
