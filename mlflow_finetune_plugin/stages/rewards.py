"""The rewards of a run: checked before any weight is read, and recorded."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from mlflow_finetune_plugin.jobs.report import Report
from mlflow_finetune_plugin.rewards import RewardSettings, load_rewards, reward_files
from mlflow_finetune_plugin.store.names import RECORDS_FOLDER


def check_rewards(rewards: Sequence[RewardSettings], fields: Iterable[str]) -> None:
    """Check the parts of the reward against the columns of the rows. A user's file is imported, in a process apart.

    Args:
        rewards: The parts.
        fields: The further columns of some rows, each as a JSON object.

    Raises:
        ConfigError: With every problem.
    """
    if rewards:
        columns = {column for text in fields for column in json.loads(text or "{}")}
        load_rewards(rewards, Path.cwd(), columns=columns)


def record_rewards(rewards: Sequence[RewardSettings], report: Report) -> None:
    """Add the files of the rewards to the run's records."""
    for path in reward_files(rewards):
        report.artifact(path, RECORDS_FOLDER)
