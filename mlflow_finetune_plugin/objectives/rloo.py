"""REINFORCE leave-one-out (Ahmadian et al. 2024, arXiv 2402.14740): each completion is compared with the mean reward of the other
completions of its prompt. The KL divergence from the start is a part of the reward. TRL's RLOOTrainer.
"""

from __future__ import annotations

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


class RlooOptions(RolloutOptions):
    """Options of REINFORCE leave-one-out, named as in trl.RLOOConfig."""

    beta: float = Field(
        0.05, ge=0, description="Weight of the KL divergence from the start in the reward; it needs no second model."
    )
    normalize_advantages: bool = Field(False, description="Divide advantages by their standard deviation in the batch.")
    reward_clip_range: list[float] | None = Field(
        None,
        min_length=2,
        max_length=2,
        description="Lowest and highest reward; use [-5, 5] with a reward model, whose values have no bounds.",
    )


Options = RlooOptions

ROWS: RowForm = "prompts"


def option_faults(options: RlooOptions) -> list[str]:
    """Return what is wrong with the options together."""
    faults = _rollouts.option_faults(options)
    bounds = options.reward_clip_range
    if bounds is not None and bounds[0] >= bounds[1]:
        faults.append(f"reward_clip_range: {bounds} is empty; fix: give the lowest and then the highest reward")
    return faults


def trainer_class_and_config(options: RlooOptions) -> tuple[type, type, dict[str, object]]:
    """Return TRL's trainer for our prompts and rewards, its config, and the options as its arguments."""
    from mlflow_finetune_plugin.internals.trl import import_rollout_classes
    from mlflow_finetune_plugin.training.rollouts.trainer import rollout_trainer

    trainer_class, config_class = import_rollout_classes("RLOOTrainer", "RLOOConfig")
    arguments = config_arguments(options, "beta", "normalize_advantages")
    bounds = options.reward_clip_range
    return (
        rollout_trainer(trainer_class),
        config_class,
        {**arguments, "reward_clip_range": None if bounds is None else tuple(bounds)},
    )
