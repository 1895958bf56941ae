"""Options that hold the parts of a reward: where they are in an objective's options, and the files that they name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from mlflow_finetune_plugin.config.overrides import path_from
from mlflow_finetune_plugin.evaluation.metric_modules import REWARD, is_reward
from mlflow_finetune_plugin.rewards import RewardSettings, part_names, reward_faults
from mlflow_finetune_plugin.section import Section

FIELD = "rewards"
"""The option of every objective that learns from rewards."""


class ScoringOptions(Section):
    """The options of a recipe that an evaluation reads."""

    rewards: list[RewardSettings] = Field([], description="Parts of the reward that the answers are scored with.")

    @field_validator("rewards", mode="before")
    @classmethod
    def _as_list(cls, value: Any) -> Any:
        """Read one part as a list of one."""
        return [value] if isinstance(value, (str, Mapping)) else value


def has_rewards(options: type[Section]) -> bool:
    """Return whether these options hold the parts of a reward."""
    field = options.model_fields.get(FIELD)
    return field is not None and field.annotation == list[RewardSettings]


def rewards_of(options: Section) -> list[RewardSettings]:
    """Return the parts of the reward in an objective's options; none for an objective without rewards."""
    return list(getattr(options, FIELD)) if has_rewards(type(options)) else []


def reward_metrics(parts: Sequence[RewardSettings]) -> list[str]:
    """Return the metrics of the rewards: the weighted sum first, then each part where there are several."""
    names = part_names(parts)
    return [REWARD, *(f"{REWARD}/{name}" for name in names if len(names) > 1)] if names else []


def reward_metric_faults(metrics: Sequence[str], parts: Sequence[RewardSettings]) -> list[str]:
    """Return why metrics cannot be measured that read the rewards of answers; the other metrics are passed over."""
    names = part_names(parts)
    known = [REWARD, *(f"{REWARD}/{name}" for name in names)]
    if not names:
        fault = "needs answers that are scored; fix: -P reward=FILE.py:FUNCTION, or options.rewards in the recipe"
    else:
        fault = f"is not a part of options.rewards; fix: pick one of: {', '.join(known)}"
    return [
        f"eval.metrics: {metric} {fault}" for metric in metrics if is_reward(metric) and not (names and metric in known)
    ]


def absolute_rewards(options: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return options of a recipe with the files of its rewards absolute; relative ones start in ``folder``."""
    parts = options.get(FIELD)
    if parts is None:
        return dict(options)
    parts = parts if isinstance(parts, list) else [parts]
    return {**options, FIELD: [_absolute_part(part, folder) for part in parts]}


def reward_option_faults(options: Section) -> list[str]:
    """Return what can be seen of wrong parts without starting a process: a file that is missing, or has no such function."""
    parts = rewards_of(options)
    return [f"options.{fault}" for fault in reward_faults(parts, Path.cwd())] if parts else []


def _absolute_part(part: Any, folder: Path) -> Any:
    if isinstance(part, str):
        return path_from(folder, part)
    if not isinstance(part, Mapping):
        return part
    absolute = {**part}
    if isinstance(part.get("python"), str):
        absolute["python"] = path_from(folder, part["python"])
    if isinstance(part.get("scorer"), str) and part["scorer"].partition(":")[0].endswith(".py"):
        absolute["scorer"] = path_from(folder, part["scorer"])
    return absolute
