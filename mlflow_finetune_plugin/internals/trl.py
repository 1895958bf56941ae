"""TRL's internals: the output layer that returns log-probabilities without logits, and the state of its trainers."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import trl
from trl import SFTTrainer

from mlflow_finetune_plugin.internals.required import check_names, required

if TYPE_CHECKING:
    from transformers import PreTrainedModel, Trainer

_SUMS = ("_total_train_tokens", "_metrics")
_ROLLOUTS = (
    "_tokenize_prompts",
    "_calculate_rewards",
    "_generate_single_turn",
    "_generate",
    "_get_train_sampler",
)
_ROLLOUT_STATE = (*_SUMS, "_step", "_buffered_inputs", "ref_model", "beta", "eos_token_ids", "reward_func_names")
_ROUTER_LOSS = ("aux_loss_enabled", "router_aux_loss_coef")


def add_fused_lm_head(model: PreTrainedModel) -> None:
    """Let a model return log-probabilities, hits and entropies, each (batch, tokens), instead of logits, as ``SFTTrainer`` does."""
    required("trl.trainer.utils", "add_fused_lm_head")(model, outputs=("log_probs", "is_top1", "entropy"))


def import_rollout_classes(*names: str) -> list[Any]:
    """Return classes of TRL that import vLLM. TRL's warning about its version is left out, because a CPU never samples with it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="TRL currently supports vLLM versions")
        return [getattr(trl, name) for name in names]


def check_sft_trainer(trainer: SFTTrainer) -> None:
    """Raise LibraryVersionError if a new ``SFTTrainer`` lacks what this package reads of it."""
    required("trl.trainer.utils", "add_fused_lm_head")  # the trainer's loss reads what it returns
    check_names("trl", trainer, _SUMS + _ROUTER_LOSS)


def check_rollout_trainer(trainer: Trainer) -> None:
    """Raise LibraryVersionError if a new trainer of rollouts lacks a method that this package overrides, or state that it saves."""
    own = next(kind for kind in type(trainer).__mro__ if kind.__module__.partition(".")[0] == "trl")
    check_names("trl", own, _ROLLOUTS)
    check_names("trl", trainer, _ROLLOUT_STATE)


def single_turn_result(trainer: Trainer, completion_ids: list[list[int]]) -> Any:
    """Return completions as ``_generate_single_turn`` of this trainer does: GRPO's has log-probabilities beside, here None."""
    return (completion_ids, None) if isinstance(trainer, trl.GRPOTrainer) else completion_ids


def _has_sums(trainer: Trainer) -> bool:
    return all(hasattr(trainer, name) for name in _SUMS)


def token_sums(trainer: Trainer) -> dict[str, Any]:
    """Return the sums that TRL's trainers do not save; none of another trainer."""
    if not _has_sums(trainer):
        return {}
    metrics = {mode: dict(lists) for mode, lists in trainer._metrics.items()}
    return {"_total_train_tokens": trainer._total_train_tokens, "metrics": metrics}


def restore_token_sums(trainer: Trainer, values: Mapping[str, Any]) -> None:
    """Restore what ``token_sums`` returned."""
    if _has_sums(trainer):
        trainer._total_train_tokens = values["_total_train_tokens"]
        for mode, lists in values["metrics"].items():
            trainer._metrics[mode].update(lists)
