"""Train on sampled completions and their rewards, with TRL's trainers.

The room promises that a training without a signal is refused before its first step, and that completions can be read while it runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlflow_finetune_plugin.lazy import names_on_first_use

if TYPE_CHECKING:
    from mlflow_finetune_plugin.training.rollouts.completion_table import CompletionTables
    from mlflow_finetune_plugin.training.rollouts.start_check import StartCheck
    from mlflow_finetune_plugin.training.rollouts.trainer import rollout_trainer

__all__ = [
    "CompletionTables",
    "StartCheck",
    "rollout_trainer",
]

__getattr__ = names_on_first_use(
    __name__,
    {
        "CompletionTables": "completion_table",
        "StartCheck": "start_check",
        "rollout_trainer": "trainer",
    },
)
