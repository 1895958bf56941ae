"""Kahneman-Tversky optimisation (Ethayarajh et al. 2024, arXiv 2402.01306): learn from answers that are good or bad on their own.

The loss is TRL's. The mean of answers to other prompts, which it compares with, is taken over all rows of a step; TRL takes it
over the rows of one device.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from mlflow_finetune_plugin.methods import RowForm
from mlflow_finetune_plugin.objectives._alarms import trainer_arguments
from mlflow_finetune_plugin.section import Auto, Section
from mlflow_finetune_plugin.training.alarms.settings import AlarmSettings

if TYPE_CHECKING:
    import torch

    from mlflow_finetune_plugin.base_models.facts import Reasons

__all__ = [
    "LOGS",
    "ROWS",
    "Options",
    "learning_rate",
    "needs_reference",
    "settle",
    "trainer_arguments",
    "trainer_class_and_config",
]

_MOST_WEIGHT = 1.33
"""The paper keeps the good answers' share of the loss at 1 to 1.33 times that of the bad ones."""


class KtoOptions(Section):
    """Options of Kahneman-Tversky optimisation, named as in trl.KTOConfig."""

    beta: float = Field(
        0.1, gt=0, description="How closely the model stays at the reference: larger values keep it closer."
    )
    loss_type: Literal["kto", "apo_zero_unpaired"] = Field(
        "kto", description="kto, or apo_zero_unpaired (arXiv 2408.06266), which compares with no other answers."
    )
    desirable_weight: float | Auto = Field(
        "auto", description="The weight of good answers; auto: such that both kinds have a similar share of the loss."
    )
    undesirable_weight: float | Auto = Field("auto", description="The weight of bad answers; auto: as above.")
    alarms: AlarmSettings = Field(default_factory=AlarmSettings, description="Thresholds of the alarms while training.")


Options = KtoOptions

ROWS: RowForm = "rated"
LOGS = ("rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen", "logps/rejected", "kl")


def learning_rate(rate: float, options: KtoOptions) -> tuple[float, str]:
    """Return a quarter of the adaptation's rate for imitation."""
    return rate / 4, f"a quarter of {rate:g}, the rate for answers: ratings need smaller steps"


def needs_reference(options: KtoOptions) -> bool:
    """Return True: every loss compares with the model before training."""
    return True


def settle(options: KtoOptions, rows: Mapping[str, Any], reasons: Reasons) -> KtoOptions:
    """Return the options with the weights that balance the good and the bad answers of the training rows."""
    good = sum(rows["is_good"])
    bad = len(rows["is_good"]) - good
    desirable, undesirable = options.desirable_weight, options.undesirable_weight
    counts = f"{good:,} good and {bad:,} bad answers"
    if undesirable == "auto":
        largest = (1.0 if desirable == "auto" else desirable) * good / max(1, bad)
        least = 1.0 if desirable == "auto" else min(1.0, largest)
        undesirable = round(max(least, largest / _MOST_WEIGHT), 3)
        reasons["options.undesirable_weight"] = f"{undesirable:g}: {counts}"
    if desirable == "auto":
        least = undesirable * bad / max(1, good)
        desirable = round(min(max(1.0, least), max(least * _MOST_WEIGHT, least)), 3)
        reasons["options.desirable_weight"] = f"{desirable:g}: {counts}"
    return options.model_copy(update={"desirable_weight": desirable, "undesirable_weight": undesirable})


def trainer_class_and_config(options: KtoOptions) -> tuple[type, type, dict[str, object]]:
    """Return the trainer of rated answers with this loss, and the arguments with which TRL takes tokens as they are."""
    from trl import SFTConfig

    from mlflow_finetune_plugin.training.reference import AS_TOKENS
    from mlflow_finetune_plugin.training.row_trainers.ratings import RatedTrainer, Ratings

    ratings = Ratings(_loss(options), options.beta, borrows=options.loss_type == "kto")
    return RatedTrainer.of(ratings), SFTConfig, AS_TOKENS


def _loss(options: KtoOptions) -> Any:
    import torch

    beta = options.beta
    good_weight = 1.0 if options.desirable_weight == "auto" else options.desirable_weight
    bad_weight = 1.0 if options.undesirable_weight == "auto" else options.undesirable_weight

    def loss(ratios: torch.Tensor, is_good: torch.Tensor, kl: torch.Tensor) -> torch.Tensor:
        good, bad = 1 - torch.sigmoid(beta * (ratios - kl)), 1 - torch.sigmoid(beta * (kl - ratios))
        return torch.where(is_good, good_weight * good, bad_weight * bad)

    return loss
