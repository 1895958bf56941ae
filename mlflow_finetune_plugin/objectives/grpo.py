"""Group relative policy optimisation (Shao et al. 2024, arXiv 2402.03300): several completions of each prompt are sampled and
rewarded, and those above their prompt's mean become likelier. TRL's GRPOTrainer.

The defaults are those of Dr. GRPO (Liu et al. 2025, arXiv 2503.20783) with a small KL penalty. Advantages are not divided by the
standard deviation of a group: where all completions are wrong, that blows a small tie-breaking reward up to the size of a right
answer, and the training collapses (docs/guides/reinforcement.md).
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mlflow_finetune_plugin.methods import RowForm
from mlflow_finetune_plugin.objectives import _rollouts
from mlflow_finetune_plugin.objectives._rollouts import (
    LOGS,
    RolloutOptions,
    config_arguments,
    learning_rate,
    rollouts,
    trainer_arguments,
)

__all__ = [
    "LOGS",
    "ROWS",
    "Options",
    "learning_rate",
    "option_faults",
    "rollouts",
    "trainer_arguments",
    "trainer_class_and_config",
]


class GrpoOptions(RolloutOptions):
    """Options of group relative policy optimisation, named as in trl.GRPOConfig."""

    beta: float = Field(
        0.04, ge=0, description="Weight of the KL divergence from the start; it needs no second model. 0 leaves it out."
    )
    loss_type: Literal["grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo", "vespo"] = Field(
        "dr_grpo", description="How the loss is averaged over tokens and completions, with TRL's names."
    )
    scale_rewards: Literal["group", "batch", "none"] = Field(
        "none",
        description="What advantages are divided by: the standard deviation of a group, of the batch, or nothing.",
    )
    importance_sampling_level: Literal["token", "sequence"] = Field(
        "token", description="Whether probability ratios are those of tokens or of whole completions (GSPO)."
    )
    multi_objective_aggregation: Literal["sum_then_normalize", "normalize_then_sum"] = Field(
        "sum_then_normalize", description="Whether parts of the reward are summed first, or normalised first (GDPO)."
    )


Options = GrpoOptions

ROWS: RowForm = "prompts"


def option_faults(options: GrpoOptions) -> list[str]:
    """Return what is wrong with the options together."""
    faults = _rollouts.option_faults(options)
    if options.loss_type == "luspo" and options.importance_sampling_level != "sequence":
        faults.append("loss_type luspo needs importance_sampling_level sequence; fix: set it")
    if options.loss_type == "cispo" and (options.epsilon_high or options.epsilon) < 1:
        faults.append(
            "loss_type cispo clips the ratio itself at epsilon_high, which must be above 1; fix: epsilon_high: 5.0"
        )
    return faults


def trainer_class_and_config(options: GrpoOptions) -> tuple[type, type, dict[str, object]]:
    """Return TRL's trainer for our prompts and rewards, its config, and the options as its arguments."""
    from mlflow_finetune_plugin.internals.trl import import_rollout_classes
    from mlflow_finetune_plugin.training.rollouts.trainer import rollout_trainer

    trainer_class, config_class = import_rollout_classes("GRPOTrainer", "GRPOConfig")
    names = ("beta", "loss_type", "scale_rewards", "importance_sampling_level", "multi_objective_aggregation")
    return rollout_trainer(trainer_class), config_class, config_arguments(options, *names)
