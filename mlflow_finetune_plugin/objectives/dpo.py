"""Direct preference optimisation (Rafailov et al. 2023, arXiv 2305.18290): prefer the better of two answers to a prompt.

The loss compares the log-probabilities of both answers with those that the model gave them before training. By default the
better answers are imitated, too (``sft``): with the sigmoid loss alone, every held-out pair was ordered rightly while the
generated answers lost words (docs/guides/preferences.md).
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mlflow_finetune_plugin.methods import RowForm
from mlflow_finetune_plugin.objectives._alarms import trainer_arguments
from mlflow_finetune_plugin.section import Section
from mlflow_finetune_plugin.training.alarms.settings import AlarmSettings

__all__ = [
    "LOGS",
    "ROWS",
    "Options",
    "learning_rate",
    "needs_reference",
    "option_faults",
    "trainer_arguments",
    "trainer_class_and_config",
]

LossType = Literal[
    "sigmoid",
    "hinge",
    "ipo",
    "exo_pair",
    "nca_pair",
    "robust",
    "sppo_hard",
    "apo_zero",
    "apo_down",
    "sigmoid_norm",
    "sft",
]


class DpoOptions(Section):
    """Options of direct preference optimisation, named as in trl.DPOConfig."""

    beta: float = Field(
        0.1, gt=0, description="How closely the model stays at the reference: larger values keep it closer."
    )
    loss_type: list[LossType] = Field(
        ["sigmoid", "sft"],
        min_length=1,
        description="Losses that are added up, with TRL's names; sft imitates the better answers.",
    )
    loss_weights: list[float] | None = Field(
        None, description="The weight of each loss_type; null means 1 for each.", min_length=1
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=0.5, description="The share of pairs that may be swapped; for loss_type robust and exo_pair."
    )
    alarms: AlarmSettings = Field(default_factory=AlarmSettings, description="Thresholds of the alarms while training.")


Options = DpoOptions

ROWS: RowForm = "pairs"
LOGS = (
    "rewards/chosen",
    "rewards/rejected",
    "rewards/accuracies",
    "rewards/margins",
    "logps/chosen",
    "logps/rejected",
)


def learning_rate(rate: float, options: DpoOptions) -> tuple[float, str]:
    """Return a quarter of the adaptation's rate for imitation."""
    return rate / 4, f"a quarter of {rate:g}, the rate for answers: pairs need smaller steps"


def needs_reference(options: DpoOptions) -> bool:
    """Return whether any loss compares with the model before training."""
    return any(name != "sft" for name in options.loss_type)


def option_faults(options: DpoOptions) -> list[str]:
    """Return what is wrong with the options together."""
    faults = []
    weights = options.loss_weights
    if weights is not None and len(weights) != len(options.loss_type):
        faults.append(
            f"loss_weights has {len(weights)} values, and loss_type {len(options.loss_type)}; fix: one weight for each loss"
        )
    if set(options.loss_type) == {"sft"}:
        faults.append("loss_type: sft alone does not use the worse answers; fix: add sigmoid, or -P objective=sft")
    smoothed = {"robust", "exo_pair"} & set(options.loss_type)
    if options.label_smoothing and not smoothed:
        faults.append("label_smoothing is not used by these losses; fix: loss_type robust or exo_pair, or remove it")
    if "exo_pair" in options.loss_type and not options.label_smoothing:
        faults.append("loss_type exo_pair needs label_smoothing above 0; fix: label_smoothing: 0.001")
    return faults


def trainer_class_and_config(options: DpoOptions) -> tuple[type, type, dict[str, object]]:
    """Return the trainer of pairs with this loss, and the arguments with which TRL takes token ids and labels as they are."""
    from trl import SFTConfig

    from mlflow_finetune_plugin.objectives._pair_losses import dpo_loss
    from mlflow_finetune_plugin.training.reference import AS_TOKENS
    from mlflow_finetune_plugin.training.row_trainers.pairs import PairTrainer

    weights = options.loss_weights or [1.0] * len(options.loss_type)
    loss = dpo_loss(options.loss_type, weights, options.beta, options.label_smoothing)
    return PairTrainer.of(loss), SFTConfig, AS_TOKENS
