"""Turn completions into numbers: Python functions, graders in OpenAI's form, MLflow scorers, reward models and judges.

The room promises that a user's code never runs in the trainer's process, and that each number is finite and belongs to its
row: anything else ends in one error that names the row, or is skipped and counted. Names are imported on first use, so that
importing this package stays light.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlflow_finetune_plugin.lazy import names_on_first_use

if TYPE_CHECKING:
    from mlflow_finetune_plugin.rewards.answers import is_harmless, reward_files, rewards_digest, scoring
    from mlflow_finetune_plugin.rewards.combination import Rewards, load_rewards, part_names, reward_faults
    from mlflow_finetune_plugin.rewards.completion import Completion, RewardScores
    from mlflow_finetune_plugin.rewards.settings import ChatEndpoint, JudgePrompt, RewardSettings

__all__ = [
    "ChatEndpoint",
    "Completion",
    "JudgePrompt",
    "RewardScores",
    "RewardSettings",
    "Rewards",
    "is_harmless",
    "load_rewards",
    "part_names",
    "reward_faults",
    "reward_files",
    "rewards_digest",
    "scoring",
]

__getattr__ = names_on_first_use(
    __name__,
    {
        "ChatEndpoint": "settings",
        "Completion": "completion",
        "JudgePrompt": "settings",
        "RewardScores": "completion",
        "RewardSettings": "settings",
        "Rewards": "combination",
        "is_harmless": "answers",
        "load_rewards": "combination",
        "part_names": "combination",
        "reward_faults": "combination",
        "reward_files": "answers",
        "rewards_digest": "answers",
        "scoring": "answers",
    },
)
