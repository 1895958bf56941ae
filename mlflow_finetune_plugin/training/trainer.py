"""What objectives share: a TRL trainer set up from the resolved config, run, and watched."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import datasets
import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainerState, TrainingArguments
from trl import SFTTrainer

from mlflow_finetune_plugin.report import Report
from mlflow_finetune_plugin.settings import TrainingSettings
from mlflow_finetune_plugin.training.best import BestWeights
from mlflow_finetune_plugin.training.checkpoints import Checkpoint
from mlflow_finetune_plugin.training.micro_batches import MicroBatchTrainer
from mlflow_finetune_plugin.training.packed_attention import packed_attention
from mlflow_finetune_plugin.training.packing import MicroBatches
from mlflow_finetune_plugin.training.saving import Restorer, Saves, SavingTrainer, saving
from mlflow_finetune_plugin.training.stopping import stoppable
from mlflow_finetune_plugin.training.watcher import Watcher
from mlflow_finetune_plugin.training.weights import restore_weights

_OURS = {
    "max_length",
    "max_steps",
    "eval_steps",
    "batching",
    "max_batch_tokens",
    "save_steps",
    "save_total_limit",
    "load_best_model_at_end",
    "metric_for_best_model",
    "early_stopping_patience",
}
"""Settings that are no argument of transformers, or are given to it in another way."""


@dataclass(frozen=True)
class TrainingResult:
    """What training leaves besides the weights: the loss curve as (step, loss), and what it took."""

    losses: list[tuple[int, float]]
    eval_losses: list[tuple[int, float]]
    steps: int
    tokens: int
    seconds: float
    best_step: int | None = None
    """The step whose weights were kept, with load_best_model_at_end."""


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
    saves: Saves | None = None,
    checkpoint: Checkpoint | None = None,
) -> TrainingResult:
    """Trains the adapter in place, from ``checkpoint`` on when there is one, saving as ``saves`` says.

    Raises TrainingError when the loss is no longer a number. Asked to end by SIGTERM, it saves after the step that runs,
    and the process ends as it was asked to.
    """
    trainer, packs = _trainer(
        model,
        tokenizer,
        train_rows,
        eval_rows,
        settings,
        adaptation,
        adaptation_options,
        objective,
        objective_options,
        folder,
        report,
    )
    watcher = trainer.watcher
    trainer.saves = saves
    if checkpoint is not None:
        trainer.add_callback(Restorer(trainer, checkpoint))
    with packed_attention(model) if packs else nullcontext(), stoppable(watcher.stop if saves else None):
        steps = _run(trainer, checkpoint)
    if settings.load_best_model_at_end and trainer.best is not None and trainer.best.score is not None:
        restore_weights(model, trainer.best.folder)
        report.note(f"the weights of step {trainer.best.step} are kept: {trainer.best.metric} {trainer.best.score:.4g}")
    trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)  # whoever asks the model next gets no autocast
    for parameter in model.parameters():
        if parameter.requires_grad:  # TRL trains adapters on a quantised base in bfloat16; loaded back they are float32
            parameter.data = parameter.data.float()
    return TrainingResult(
        losses=watcher.losses,
        eval_losses=watcher.eval_losses,
        steps=steps,
        tokens=watcher.tokens,
        seconds=watcher.seconds,
        best_step=trainer.best.step if settings.load_best_model_at_end and trainer.best is not None else None,
    )


def _run(trainer: SavingTrainer, checkpoint: Checkpoint | None) -> int:
    """Trains what is left to be trained; returns the steps made, all attempts together."""
    if checkpoint is None:
        return int(trainer.train().global_step)
    total = int(trainer.set_initial_training_values(trainer.args, trainer.get_train_dataloader())[-1])
    if checkpoint.step < total:
        return int(trainer.train(resume_from_checkpoint=str(checkpoint.folder)).global_step)
    # Trainer would make one more step when the last one was not the last of an epoch
    restore_weights(trainer.model, checkpoint.folder)
    state = TrainerState.load_from_json(str(checkpoint.folder / "trainer_state.json"))
    trainer.callback_handler.on_train_begin(trainer.args, state, trainer.control)
    return checkpoint.step


def _trainer(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    train_rows: datasets.Dataset,
    eval_rows: datasets.Dataset | None,
    settings: TrainingSettings,
    adaptation: ModuleType,
    adaptation_options: Any,
    objective: ModuleType,
    objective_options: Any,
    folder: Path,
    report: Report,
) -> tuple[Any, bool]:
    """The objective's trainer, ours where we have a better one, and whether it packs rows."""
    trainer_class, config_class, extra = objective.trainer_class_and_config(objective_options)
    divides = issubclass(trainer_class, SFTTrainer)
    evaluates = eval_rows is not None and settings.eval_steps is not None
    arguments = config_class(**_arguments(settings, folder, evaluates=evaluates, divides=divides), **extra)
    watcher = Watcher(report)
    callbacks: list[TrainerCallback] = [watcher]
    best = None
    if evaluates and (settings.load_best_model_at_end or settings.early_stopping_patience is not None):
        best = BestWeights(
            folder / "trainer",
            metric=settings.metric_for_best_model,
            patience=settings.early_stopping_patience,
            report=report,
            writes=settings.load_best_model_at_end,
        )
        callbacks.append(best)
    own: dict[str, Any] = {}
    if divides:
        trainer_class = MicroBatchTrainer
        own = {"micro_batches": _micro_batches(settings), "on_smaller": watcher.on_smaller_micro_batches}
    trainer = saving(trainer_class)(
        **own,
        model=model,
        args=arguments,
        train_dataset=train_rows,
        eval_dataset=eval_rows,
        processing_class=tokenizer,
        callbacks=callbacks,
        optimizers=(_optimizer(model, arguments, trainer_class, adaptation, adaptation_options), None),
    )
    trainer.remove_callback(_printer())
    trainer.watcher, trainer.best = watcher, best
    return trainer, divides and settings.batching == "packed"


def _micro_batches(settings: TrainingSettings) -> MicroBatches:
    assert settings.batching != "auto"  # resolved by the plan
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
        "save_strategy": "no" if settings.save_steps is None else "steps",
        "save_steps": settings.save_steps or 500,
        "report_to": "none",
        "disable_tqdm": True,
        "logging_nan_inf_filter": False,
        "logging_first_step": True,
        "use_cpu": not on_gpu,
        "data_seed": settings.seed,
        "dataloader_pin_memory": on_gpu,
    }
    if evaluates:
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
