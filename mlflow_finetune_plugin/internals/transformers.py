"""Transformers' internals: which attention kernel a model uses, and the methods and sums of ``Trainer`` that checkpoints need."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from mlflow_finetune_plugin.internals.required import check_names

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, Trainer

_OVERRIDDEN = ("_save_checkpoint", "_load_from_checkpoint", "_get_num_items_in_batch", "floating_point_ops")
_SUMS = ("_tr_loss", "_globalstep_last_logged")


def attention_kernel(config: PreTrainedConfig) -> str | None:
    """Return the attention kernel of a loaded model, as ``set_attn_implementation`` takes it."""
    check_names("transformers", config, ("_attn_implementation",))
    return config._attn_implementation  # type: ignore[no-any-return]


def score_head(model: PreTrainedModel) -> torch.nn.Module | None:
    """Return the layer that scores a conversation's last token, (batch, tokens, hidden) -> (batch, tokens, 1); None without one."""
    return getattr(model, "score", None)


def last_rewards(model: PreTrainedModel, inputs: Mapping[str, Any], last: torch.Tensor) -> torch.Tensor:
    """Return the score of some tokens of a batch, float32, (tokens,).

    The model's own forward pass looks for the last token that is not padding, by its id. That is another token where the
    end-of-turn token also pads, and there is only one where several conversations are packed into one sequence.

    Args:
        model: A model with a score head; adapters are inside it.
        inputs: ``input_ids`` and further arguments of its forward pass.
        last: Positions in the flattened batch, (tokens,).
    """
    head = score_head(model)
    assert head is not None
    backbone = getattr(model, model.base_model_prefix)
    hidden = backbone(**{**inputs, "use_cache": False}).last_hidden_state  # (batch, tokens, hidden)
    scores: torch.Tensor = head(hidden.flatten(0, 1)[last].float())  # (tokens, 1)
    return scores[:, 0].float()


def supports_sdpa(model_class: type[PreTrainedModel]) -> bool:
    """Return whether models of a class can use torch's fused attention."""
    check_names("transformers", model_class, ("_supports_sdpa",))
    return bool(model_class._supports_sdpa)


def check_trainer() -> None:
    """Raise LibraryVersionError if ``Trainer`` no longer calls a method that this package overrides."""
    from transformers import Trainer  # here, because engines need this module too, and Trainer imports scipy and pandas

    check_names("transformers", Trainer, _OVERRIDDEN)


def save_trainer_state(trainer: Trainer, model: torch.nn.Module, trial: Any) -> None:
    """Save a checkpoint as ``Trainer`` itself does. The versions of its subclasses are not called."""
    from transformers import Trainer

    Trainer._save_checkpoint(trainer, model, trial)


def trainer_sums(trainer: Trainer) -> dict[str, Any]:
    """Return what ``Trainer`` sums up since its last log and does not save: the loss in nats, and the step of that log."""
    check_names("transformers", trainer, _SUMS)
    return {"tr_loss": float(trainer._tr_loss), "_globalstep_last_logged": trainer._globalstep_last_logged}


def restore_trainer_sums(trainer: Trainer, values: Mapping[str, Any]) -> None:
    """Restore what ``trainer_sums`` returned. A trainer that has no step left never made these names itself."""
    trainer._tr_loss = torch.tensor(values["tr_loss"], device=trainer.args.device)
    trainer._globalstep_last_logged = values["_globalstep_last_logged"]
