"""Supervised fine-tuning: imitate the assistant's answers.

The loss covers the assistant's tokens only, including the end-of-turn token (data/tokens/renderer.py builds the labels).
It is divided by the number of those tokens in the whole effective batch.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mlflow_finetune_plugin.section import Section


class SftOptions(Section):
    """Options of supervised fine-tuning, named as in trl.SFTConfig."""

    loss_type: Literal["nll", "dft"] = Field("nll", description="nll, or dft: Dynamic Fine-Tuning (arXiv 2508.05629).")


Options = SftOptions


def trainer_class_and_config(options: SftOptions) -> tuple[type, type, dict[str, object]]:
    """Return the trainer, its config, and the arguments with which TRL takes token ids and labels as they are."""
    from trl import SFTConfig

    from mlflow_finetune_plugin.training.micro_batches import MicroBatchTrainer

    return (
        MicroBatchTrainer,
        SFTConfig,
        {"loss_type": options.loss_type, "max_length": None, "dataset_kwargs": {"skip_prepare_dataset": True}},
    )
