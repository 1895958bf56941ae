"""TRL's internals: the output layer that returns log-probabilities without logits, and the sums of ``SFTTrainer``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from trl import SFTTrainer

from mlflow_finetune_plugin.internals.required import check_names, required

if TYPE_CHECKING:
    from transformers import PreTrainedModel, Trainer

_SUMS = ("_total_train_tokens", "_metrics")
_ROUTER_LOSS = ("aux_loss_enabled", "router_aux_loss_coef")


def add_fused_lm_head(model: PreTrainedModel) -> None:
    """Let a model return log-probabilities, hits and entropies, each (batch, tokens), instead of logits, as ``SFTTrainer`` does."""
    required("trl.trainer.utils", "add_fused_lm_head")(model, outputs=("log_probs", "is_top1", "entropy"))


def check_sft_trainer(trainer: SFTTrainer) -> None:
    """Raise LibraryVersionError if a new ``SFTTrainer`` lacks what this package reads of it."""
    required("trl.trainer.utils", "add_fused_lm_head")  # the trainer's loss reads what it returns
    check_names("trl", trainer, _SUMS + _ROUTER_LOSS)


def token_sums(trainer: Trainer) -> dict[str, Any]:
    """Return the sums that ``SFTTrainer`` does not save; none of another trainer."""
    if not isinstance(trainer, SFTTrainer):
        return {}
    metrics = {mode: dict(lists) for mode, lists in trainer._metrics.items()}
    return {"_total_train_tokens": trainer._total_train_tokens, "metrics": metrics}


def restore_token_sums(trainer: Trainer, values: Mapping[str, Any]) -> None:
    """Restore what ``token_sums`` returned."""
    if isinstance(trainer, SFTTrainer):
        trainer._total_train_tokens = values["_total_train_tokens"]
        for mode, lists in values["metrics"].items():
            trainer._metrics[mode].update(lists)
