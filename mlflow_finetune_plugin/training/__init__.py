"""Train: set up the objective's trainer, run it, save checkpoints and resume from them.

The room promises the same rows in the same order and the same loss, whatever the batching and however many processes share
a step, and that a resumed training continues as if it had not been interrupted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlflow_finetune_plugin.lazy import names_on_first_use

if TYPE_CHECKING:
    from mlflow_finetune_plugin.training.best import BestWeights
    from mlflow_finetune_plugin.training.checkpoints import Checkpoint
    from mlflow_finetune_plugin.training.memory import PeakMemory
    from mlflow_finetune_plugin.training.micro_batches import MicroBatchTrainer
    from mlflow_finetune_plugin.training.processes import Processes
    from mlflow_finetune_plugin.training.trainer import TrainingResult, train

__all__ = ["BestWeights", "Checkpoint", "MicroBatchTrainer", "PeakMemory", "Processes", "TrainingResult", "train"]

__getattr__ = names_on_first_use(
    __name__,
    {
        "BestWeights": "best",
        "Checkpoint": "checkpoints",
        "MicroBatchTrainer": "micro_batches",
        "PeakMemory": "memory",
        "Processes": "processes",
        "TrainingResult": "trainer",
        "train": "trainer",
    },
)
