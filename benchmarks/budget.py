"""The same budget for both sides of a comparison with TRL: rate, rows, steps, precision and checkpointing said once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mlflow_finetune_plugin.config.sections import TrainingSettings


def our_settings(*, rate: float, steps: int, batch: int, **more: Any) -> TrainingSettings:
    """``more``: batching, max_batch_tokens, max_length."""
    return TrainingSettings(
        num_train_epochs=1.0,
        max_steps=steps,
        learning_rate=rate,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=1,
        warmup_steps=0.0,
        gradient_checkpointing=False,
        bf16=False,
        logging_steps=steps,
        save_steps=None,
        **more,
    )


def trl_config(folder: Path, *, rate: float, steps: int, batch: int) -> Any:
    """SFTConfig with TRL's defaults but for what both sides share."""
    import torch
    from trl import SFTConfig

    return SFTConfig(
        output_dir=str(folder),
        max_steps=steps,
        learning_rate=rate,
        per_device_train_batch_size=batch,
        use_cpu=not torch.cuda.is_available(),
        bf16=False,
        gradient_checkpointing=False,
        seed=0,
        data_seed=0,
        save_strategy="no",
        report_to="none",
        logging_steps=steps,
        logging_first_step=True,
        disable_tqdm=True,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
