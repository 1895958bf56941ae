"""Rewards made of a few lines of a user's file."""

import textwrap
from pathlib import Path

from mlflow_finetune_plugin.rewards import Completion, RewardSettings, load_rewards


def completion(text, row=0, asks="What is 2 + 2?", **fields):
    return Completion([{"role": "user", "content": asks}], text, fields, row)


def completions(*texts, **fields):
    return [completion(text, row, **fields) for row, text in enumerate(texts)]


def write(folder: Path, source: str, name: str = "reward.py") -> Path:
    path = folder / name
    path.write_text(textwrap.dedent(source))
    return path


def settings(**values):
    return RewardSettings.model_validate(values)


def loaded(folder, *parts, columns=None):
    return load_rewards([RewardSettings.model_validate(part) for part in parts], folder, columns=columns)


def values(folder, source, rows, **more):
    """The scores of one function of a file."""
    write(folder, source)
    with loaded(folder, {"python": "reward.py", "name": "score", **more}) as rewards:
        return rewards.score(rows)
