"""Odds-ratio preference optimisation (Hong et al. 2024, arXiv 2403.07691): imitate the better answer and avoid the worse.

It needs no reference model. As in the paper, the better answer's own tokens are imitated; TRL's experimental trainer also
imitates the prompt.
"""

from __future__ import annotations

from pydantic import Field

from mlflow_finetune_plugin.methods import RowForm
from mlflow_finetune_plugin.objectives._alarms import trainer_arguments
from mlflow_finetune_plugin.section import Section
from mlflow_finetune_plugin.training.alarms.settings import AlarmSettings

__all__ = [
    "LOGS",
    "ROWS",
    "Options",
    "trainer_arguments",
    "trainer_class_and_config",
]


class OrpoOptions(Section):
    """Options of odds-ratio preference optimisation, named as in trl.experimental.orpo.ORPOConfig."""

    beta: float = Field(0.1, gt=0, description="The weight of the odds ratio beside imitation (lambda in the paper).")
    alarms: AlarmSettings = Field(default_factory=AlarmSettings, description="Thresholds of the alarms while training.")


Options = OrpoOptions

ROWS: RowForm = "pairs"
LOGS = (
    "rewards/chosen",
    "rewards/rejected",
    "rewards/accuracies",
    "rewards/margins",
    "logps/chosen",
    "logps/rejected",
)


def trainer_class_and_config(options: OrpoOptions) -> tuple[type, type, dict[str, object]]:
    """Return the trainer of pairs with this loss, and the arguments with which TRL takes token ids and labels as they are."""
    from trl import SFTConfig

    from mlflow_finetune_plugin.objectives._pair_losses import orpo_loss
    from mlflow_finetune_plugin.training.reference import AS_TOKENS
    from mlflow_finetune_plugin.training.row_trainers.pairs import PairTrainer

    return PairTrainer.of(orpo_loss(options.beta)), SFTConfig, AS_TOKENS
