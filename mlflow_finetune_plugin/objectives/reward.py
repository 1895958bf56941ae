"""Reward models: a score head behind the base learns from pairs which of two answers people prefer (Bradley and Terry 1952;
Ouyang et al. 2022, arXiv 2203.02155).

The result gives a conversation one number and writes no answers. It is a grader for reinforcement learning and for Python
(docs/guides/reward-models.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from mlflow_finetune_plugin.methods import ModelKind, RowForm
from mlflow_finetune_plugin.section import Section

if TYPE_CHECKING:
    import torch


class RewardOptions(Section):
    """Options of reward models, named as in trl.RewardConfig."""

    center_rewards_coefficient: float = Field(
        0.01,
        ge=0,
        description="Weight of the squared sum of a pair's rewards, which keeps their mean near 0 (arXiv 2312.09244); 0: none.",
    )


Options = RewardOptions

MODEL: ModelKind = "score"
ROWS: RowForm = "pairs"
LOGS = ("accuracy", "margin", "min_reward", "mean_reward", "max_reward")
_SLOWEST = 1e-4


def learning_rate(rate: float, options: RewardOptions) -> tuple[float, str]:
    """Return the adaptation's rate for imitation, halved; TRL's default where that is less."""
    if rate / 2 <= _SLOWEST:
        return _SLOWEST, "TRL's default for reward models"
    return rate / 2, f"half of {rate:g}, the rate for answers; at least {_SLOWEST:g}, TRL's default for reward models"


def trainer_class_and_config(options: RewardOptions) -> tuple[type, type, dict[str, object]]:
    """Return the trainer of rewards with this loss, and the arguments with which TRL takes token ids as they are."""
    from trl import SFTConfig

    from mlflow_finetune_plugin.training.reference import AS_TOKENS
    from mlflow_finetune_plugin.training.row_trainers.pairs import RewardTrainer

    coefficient = options.center_rewards_coefficient

    def loss(chosen: torch.Tensor, rejected: torch.Tensor, margins: torch.Tensor) -> torch.Tensor:
        from torch.nn.functional import logsigmoid

        return -logsigmoid(chosen - rejected - margins) + coefficient * (chosen + rejected) ** 2

    return RewardTrainer.of(loss), SFTConfig, AS_TOKENS
