"""What objectives share: a TRL trainer set up from the resolved config, run, and watched."""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import datasets
import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainingArguments
from trl import SFTTrainer

from mlflow_finetune_plugin.report import Report
from mlflow_finetune_plugin.settings import TrainingSettings
from mlflow_finetune_plugin.training.micro_batches import MicroBatchTrainer
from mlflow_finetune_plugin.training.packed_attention import packed_attention
from mlflow_finetune_plugin.training.packing import MicroBatches
from mlflow_finetune_plugin.training.watcher import Watcher

_OURS = {"max_length", "max_steps", "eval_steps", "batching", "max_batch_tokens"}
"""Settings that are no argument of transformers, or are given to it in another way."""


@dataclass(frozen=True)
class TrainingResult:
    """What training leaves besides the weights: the loss curve as (step, loss), and what it took."""

    losses: list[tuple[int, float]]
    eval_losses: list[tuple[int, float]]
    steps: int
    tokens: int
    seconds: float


def train(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    train_rows: datasets.Dataset,
    eval_rows: datasets.Dataset | None,
    settings: TrainingSettings,
    adaptation: ModuleType,
    adaptation_options: Any,
    objective: ModuleType,
    objective_options: Any,
    folder: Path,
    report: Report,
) -> TrainingResult:
    """Trains the adapter in place. Raises TrainingError when the loss is no longer a number."""
    trainer_class, config_class, extra = objective.trainer_class_and_config(objective_options)
    divides = issubclass(trainer_class, SFTTrainer)
    arguments = config_class(**_arguments(settings, folder, evaluates=eval_rows is not None, divides=divides), **extra)
    watcher = Watcher(report)
    own: dict[str, Any] = {}
    if divides:
        trainer_class = MicroBatchTrainer
        own = {"micro_batches": _micro_batches(settings), "on_smaller": watcher.on_smaller_micro_batches}
    trainer = trainer_class(
        **own,
        model=model,
        args=arguments,
        train_dataset=train_rows,
        eval_dataset=eval_rows,
        processing_class=tokenizer,
        callbacks=[watcher],
        optimizers=(_optimizer(model, arguments, trainer_class, adaptation, adaptation_options), None),
    )
    trainer.remove_callback(_printer())
    started = time.monotonic()
    packs = divides and settings.batching == "packed"
    with packed_attention(model) if packs else nullcontext():
        output = trainer.train()
    trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)  # whoever asks the model next gets no autocast
    for parameter in model.parameters():
        if parameter.requires_grad:  # TRL trains adapters on a quantised base in bfloat16; loaded back they are float32
            parameter.data = parameter.data.float()
    return TrainingResult(
        losses=watcher.losses,
        eval_losses=watcher.eval_losses,
        steps=int(output.global_step),
        tokens=watcher.tokens,
        seconds=time.monotonic() - started,
    )


def _micro_batches(settings: TrainingSettings) -> MicroBatches:
    return MicroBatches(
        settings.batching, rows=int(settings.per_device_train_batch_size), tokens=int(settings.max_batch_tokens)
    )


def _arguments(settings: TrainingSettings, folder: Path, *, evaluates: bool, divides: bool) -> dict[str, Any]:
    """The training section in the words of transformers.TrainingArguments.

    A trainer that ``divides`` takes all rows of an optimiser step at once.
    """
    given = settings.model_dump(exclude=_OURS)
    if divides:
        rows = int(settings.per_device_train_batch_size) * int(settings.gradient_accumulation_steps)
        given |= {"per_device_train_batch_size": rows, "gradient_accumulation_steps": 1}
    on_gpu = torch.cuda.is_available()
    arguments = {
        **given,
        "max_steps": settings.max_steps or -1,
        "output_dir": str(folder / "trainer"),
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "logging_nan_inf_filter": False,
        "logging_first_step": True,
        "use_cpu": not on_gpu,
        "data_seed": settings.seed,
        "dataloader_pin_memory": on_gpu,
    }
    if evaluates and settings.eval_steps is not None:
        arguments |= {
            "eval_strategy": "steps",
            "eval_steps": settings.eval_steps,
            "per_device_eval_batch_size": given["per_device_train_batch_size"],
        }
    if settings.gradient_checkpointing:
        arguments["gradient_checkpointing_kwargs"] = {"use_reentrant": False}
    return arguments


def _optimizer(
    model: PeftModel, arguments: TrainingArguments, trainer_class: Any, adaptation: ModuleType, options: Any
) -> Any | None:
    make = getattr(adaptation, "optimizer", None)
    if make is None:
        return None
    optimizer_class, keywords = trainer_class.get_optimizer_cls_and_kwargs(arguments, model)
    return make(
        model,
        options,
        optimizer_class=optimizer_class,
        optimizer_kwargs=keywords,
        weight_decay=arguments.weight_decay,
    )


def _printer() -> type[TrainerCallback]:
    from transformers.trainer_callback import PrinterCallback

    return PrinterCallback
