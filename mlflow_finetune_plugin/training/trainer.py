"""Set up the objective's trainer from the resolved config, run it and report its progress."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainerState, TrainingArguments

from mlflow_finetune_plugin.base_models.loading import BaseModel
from mlflow_finetune_plugin.config.sections import TrainingSettings
from mlflow_finetune_plugin.data.tokens.renderer import ChatRenderer
from mlflow_finetune_plugin.errors import TrainingError
from mlflow_finetune_plugin.jobs.report import Report
from mlflow_finetune_plugin.methods import Method, TrainerContext
from mlflow_finetune_plugin.store.names import TRAIN_REFERENCE_SECONDS
from mlflow_finetune_plugin.training.best import BestWeights
from mlflow_finetune_plugin.training.checkpoints import Checkpoint
from mlflow_finetune_plugin.training.micro_batches import MicroBatchTrainer
from mlflow_finetune_plugin.training.packed_attention import packed_attention
from mlflow_finetune_plugin.training.packing import MicroBatches
from mlflow_finetune_plugin.training.processes import ALONE, Processes, checksum
from mlflow_finetune_plugin.training.reference import ReferenceTrainer
from mlflow_finetune_plugin.training.reporter import TrainerReporter
from mlflow_finetune_plugin.training.row_trainers.pictures import PictureTrainer
from mlflow_finetune_plugin.training.saving import Restorer, Saves, SavingTrainer, saving
from mlflow_finetune_plugin.training.stopping import stoppable
from mlflow_finetune_plugin.training.weights import restore_weights

_OURS = {
    "keep_checkpoints",
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
"""Settings that TrainingArguments does not have, or that are passed to it in another form."""


@dataclass(frozen=True)
class TrainingResult:
    """The result of a training besides the weights. Losses are (step, loss); ``seconds`` and ``tokens`` cover all attempts."""

    losses: list[tuple[int, float]]
    eval_losses: list[tuple[int, float]]
    steps: int
    tokens: int
    seconds: float
    best_step: int | None = None
    """With load_best_model_at_end: the step of the final weights."""


def train(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    train_rows: datasets.Dataset,
    eval_rows: datasets.Dataset | None,
    settings: TrainingSettings,
    method: Method,
    folder: Path,
    report: Report,
    saves: Saves | None = None,
    checkpoint: Checkpoint | None = None,
    processes: Processes = ALONE,
    expected_tokens_per_s: float | None = None,
    renderer: ChatRenderer | None = None,
    base: BaseModel | None = None,
) -> TrainingResult:
    """Train the adapter in place.

    With several ``processes``, each calls this with the same model, rows and settings, and ends with the same model. On
    SIGTERM the training saves after the running step, then the process ends by that signal.

    Args:
        model: the wrapped base; its trainable weights change.
        tokenizer: supplies the padding token.
        train_rows: rows with ``input_ids`` and ``labels``.
        eval_rows: validation rows of the same form; None never evaluates.
        settings: the training section, without ``auto``.
        method: adaptation and objective with their options.
        folder: scratch folder of this process.
        report: receives progress, metrics and notes.
        saves: how checkpoints are saved; None saves none.
        checkpoint: where to resume; None starts at step 0.
        processes: the processes that share each step.
        expected_tokens_per_s: the plan's speed; the report warns at a tenth of it.
        renderer: rendered the rows; an objective that generates needs it.
        base: the files of the base; an objective that samples with an engine needs it.

    Raises:
        TrainingError: the loss is not finite, or memory does not suffice for a single row.
    """
    _check_same_weights(model, processes, "the weights at the start of training")
    best = _best(settings, folder, report, processes, evaluates=eval_rows is not None)
    reporter = TrainerReporter(
        report, processes, expected_tokens_per_s=expected_tokens_per_s, further=method.objective.LOGS
    )
    can_stop = saves is not None or (not processes.is_first and settings.save_steps is not None)
    context = TrainerContext(renderer, folder, report, base, method)
    with method.objective.trainer_arguments(method.objective_options, context) as further:
        trainer, packs = _trainer(
            model, tokenizer, train_rows, eval_rows, settings, method, folder, reporter, best, further, renderer
        )
        trainer.saves = saves
        if checkpoint is not None:
            trainer.add_callback(Restorer(trainer, checkpoint))
        with packed_attention(model) if packs else nullcontext(), stoppable(reporter.stop if can_stop else None):
            if method.objective.needs_reference(method.objective_options):
                _add_reference(trainer, checkpoint, report)
            steps = _run(trainer, checkpoint)
    _check_same_weights(model, processes, "the weights at the end of training")
    if processes.is_first and settings.load_best_model_at_end and best is not None and best.score is not None:
        restore_weights(model, best.folder)
        report.note(f"the weights of step {best.step} are kept: {best.metric} {best.score:.4g}")
    trainer.accelerator.unwrap_model(
        model, keep_fp32_wrapper=False
    )  # Otherwise accelerate's autocast stays around forward during the proof.
    for parameter in model.parameters():
        if parameter.requires_grad:  # TRL casts adapters on a quantised base to bfloat16; PEFT loads them as float32.
            parameter.data = parameter.data.float()
    return TrainingResult(
        losses=reporter.losses,
        eval_losses=reporter.eval_losses,
        steps=steps,
        tokens=reporter.tokens,
        seconds=reporter.seconds,
        best_step=best.step if settings.load_best_model_at_end and best is not None else None,
    )


def _add_reference(trainer: Any, checkpoint: Checkpoint | None, report: Report) -> None:
    """Let the trainer compute the log-probabilities of the model before training, which is as it was applied until here."""
    if not hasattr(trainer, "add_reference"):
        raise TrainingError(
            f"the objective needs a reference, and {type(trainer).__name__} has no add_reference; "
            "fix: a trainer like training.row_trainers.pairs.PairTrainer"
        )
    started = time.monotonic()
    trainer.add_reference(
        checkpoint.folder if checkpoint is not None else None,
        lambda done, total: report.progress(done, total, "rows of the reference", stage="train"),
    )
    report.metrics({TRAIN_REFERENCE_SECONDS: time.monotonic() - started})
    if checkpoint is None and isinstance(trainer, ReferenceTrainer):
        trainer.describe_reference(report)


def _run(trainer: SavingTrainer, checkpoint: Checkpoint | None) -> int:
    """Train the remaining steps; return the number of steps over all attempts."""
    if checkpoint is None:
        return int(trainer.train().global_step)
    total = int(trainer.set_initial_training_values(trainer.args, trainer.get_train_dataloader())[-1])
    if checkpoint.step < total:
        return int(trainer.train(resume_from_checkpoint=str(checkpoint.folder)).global_step)
    # All steps are done. Trainer would train one more where the last step was not the last of an epoch.
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
    method: Method,
    folder: Path,
    reporter: TrainerReporter,
    best: BestWeights | None,
    further: Mapping[str, Any],
    renderer: ChatRenderer | None,
) -> tuple[Any, bool]:
    """Return the objective's trainer with checkpoints and callbacks, and whether it packs rows."""
    processes = reporter.processes
    trainer_class, config_class, extra = method.objective.trainer_class_and_config(method.objective_options)
    further = dict(further)
    if trainer_class is MicroBatchTrainer and renderer is not None and renderer.pictures is not None:
        trainer_class, further["renderer"] = PictureTrainer, renderer
    divides = issubclass(trainer_class, MicroBatchTrainer)
    if processes.count > 1 and not divides:
        raise TrainingError(
            f"{trainer_class.__name__} cannot divide a step among {processes.count} processes; "
            "fix: one process (-c '{\"gpus_per_node\": 1}')"
        )
    evaluates = eval_rows is not None and settings.eval_steps is not None
    arguments = config_class(**_arguments(settings, folder, processes, evaluates=evaluates, divides=divides), **extra)
    extra_arguments: dict[str, Any] = dict(further)
    callbacks = extra_arguments.pop("callbacks", [])
    if divides:
        extra_arguments |= {
            "micro_batches": _micro_batches(settings),
            "on_smaller": reporter.on_smaller_micro_batches,
            "processes": processes,
        }
    trainer = saving(trainer_class)(
        **extra_arguments,
        model=model,
        args=arguments,
        train_dataset=train_rows,
        eval_dataset=eval_rows,
        processing_class=tokenizer,
        callbacks=[reporter, *([best] if best is not None else []), *callbacks],
        optimizers=(_optimizer(model, arguments, trainer_class, method), None),
    )
    trainer.remove_callback(_printer())
    trainer.reporter, trainer.best = reporter, best
    return trainer, divides and settings.batching == "packed"


def _best(
    settings: TrainingSettings, folder: Path, report: Report, processes: Processes, *, evaluates: bool
) -> BestWeights | None:
    is_needed = settings.load_best_model_at_end or settings.early_stopping_patience is not None
    if not (evaluates and settings.eval_steps is not None and is_needed):
        return None
    return BestWeights(
        folder / "trainer",
        metric=settings.metric_for_best_model,
        patience=settings.early_stopping_patience,
        report=report,
        writes=settings.load_best_model_at_end and processes.is_first,
    )


def _check_same_weights(model: PeftModel, processes: Processes, what: str) -> None:
    if processes.count > 1:
        processes.check_same(checksum(p for p in model.parameters() if p.requires_grad), what)


def _micro_batches(settings: TrainingSettings) -> MicroBatches:
    assert settings.batching != "auto"  # the plan replaces it
    return MicroBatches(
        settings.batching, rows=int(settings.per_device_train_batch_size), tokens=int(settings.max_batch_tokens)
    )


def _arguments(
    settings: TrainingSettings, folder: Path, processes: Processes, *, evaluates: bool, divides: bool
) -> dict[str, Any]:
    """Return the training section as arguments of transformers.TrainingArguments.

    A trainer that ``divides`` receives all rows of an optimizer step at once, of all processes.
    """
    recipe = settings.model_dump(exclude=_OURS)
    if divides:
        rows = int(settings.per_device_train_batch_size) * int(settings.gradient_accumulation_steps)
        recipe |= {"per_device_train_batch_size": rows * processes.count, "gradient_accumulation_steps": 1}
    on_gpu = torch.cuda.is_available()
    arguments = {
        **recipe,
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
            "per_device_eval_batch_size": recipe["per_device_train_batch_size"],
        }
    if settings.gradient_checkpointing:
        arguments["gradient_checkpointing_kwargs"] = {"use_reentrant": False}
    return arguments


def _optimizer(model: PeftModel, arguments: TrainingArguments, trainer_class: Any, method: Method) -> Any | None:
    optimizer_class, keywords = trainer_class.get_optimizer_cls_and_kwargs(arguments, model)
    return method.adaptation.optimizer(
        model,
        method.adaptation_options,
        optimizer_class=optimizer_class,
        optimizer_kwargs=keywords,
        weight_decay=arguments.weight_decay,
    )


def _printer() -> type[TrainerCallback]:
    from transformers.trainer_callback import PrinterCallback

    return PrinterCallback
