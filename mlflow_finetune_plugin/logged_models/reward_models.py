"""What proves that a logged reward model is the one that was trained: the rewards of known pairs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from mlflow_finetune_plugin.errors import ConfigError, ReloadError
from mlflow_finetune_plugin.evaluation.results import EvalRow, chat_fields
from mlflow_finetune_plugin.evaluation.rewards import rewards_of
from mlflow_finetune_plugin.logged_models.adapter import Reference
from mlflow_finetune_plugin.logged_models.probes import PROBES

_TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 2e-2}
"""Largest difference of a reward of the same weights: half precision may pick other kernels."""


def make_reward_reference(
    model: PeftModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[EvalRow], *, precision: str
) -> Reference:
    """Return texts, token ids and rewards of the first held-out pairs."""
    probes = [
        {
            **chat_fields(row.messages),
            "prompt": tokenizer.decode(row.prompt_ids),
            "prompt_ids": list(row.prompt_ids),
            "completion_ids": list(row.completion_ids),
            "rejected_ids": list(row.rejected_ids),
            "reward": float(better),
            "rejected_reward": float(worse),
        }
        for row, (better, worse) in zip(rows, _probe_rewards(model, rows), strict=False)
    ]
    return Reference(precision, probes)


def check_reward_reload(scorer: Any, reference: Reference, rows: Sequence[EvalRow]) -> float:
    """Compare the loaded reward model with the trained one, and the scores that anybody gets; return the largest difference.

    The scores come from ``mlflow.pyfunc`` and the messages, so that they also show that the model renders a conversation as
    its training did.

    Args:
        scorer: The logged model, loaded back through ``mlflow.pyfunc``.
        reference: The rewards of the trained model.
        rows: The held-out pairs.

    Raises:
        ReloadError: A reward differs by more than the precision allows.
    """
    expected = np.array([[probe["reward"], probe["rejected_reward"]] for probe in reference.probes])
    scores = np.array(scorer.predict(None, [chat_fields(row.turns) for row in rows[:PROBES]]))
    difference = max(
        float(np.abs(_probe_rewards(scorer.model, rows) - expected).max()), float(np.abs(scores - expected[:, 0]).max())
    )
    allowed = _TOLERANCE[reference.precision.split("+")[0]]
    if not math.isfinite(difference) or difference > allowed:
        raise ReloadError(
            f"the loaded reward model differs from the trained one by {difference:.2g} on a conversation (allowed {allowed:g} in "
            f"{reference.precision}); fix: report it with the base and its chat template"
        )
    return difference


def refuse_reward_model(card: Mapping[str, Any], uri: str, what: str) -> None:
    """Raise ConfigError for a reward model where only a model that answers can be used; ``what`` names the operation."""
    if card.get("kind") == "reward":
        raise ConfigError(
            [
                f"{uri} is a reward model, which gives scores and no answers, so {what} does not apply; fix: load it with "
                "mlflow.pyfunc.load_model (docs/guides/reward-models.md)"
            ]
        )


def _probe_rewards(model: torch.nn.Module, rows: Sequence[EvalRow]) -> np.ndarray:
    """Return the rewards of the better and the worse answers of the first pairs, (pairs, 2)."""
    model.eval()
    chosen = rows[:PROBES]
    better = [[*row.prompt_ids, *row.completion_ids] for row in chosen]
    worse = [[*row.prompt_ids, *row.rejected_ids] for row in chosen]
    return rewards_of(model, [*better, *worse]).reshape(2, -1).T
