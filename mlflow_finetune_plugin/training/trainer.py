"""What objectives share: a TRL trainer set up from the resolved config, run, and watched."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import datasets
import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mlflow_finetune_plugin.errors import TrainingError
from mlflow_finetune_plugin.report import Report
from mlflow_finetune_plugin.settings import TrainingSettings


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
    arguments = config_class(**_arguments(settings, folder, evaluates=eval_rows is not None), **extra)
    watcher = _Watcher(report)
    trainer = trainer_class(
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


def _arguments(settings: TrainingSettings, folder: Path, *, evaluates: bool) -> dict[str, Any]:
    """The training section in the words of transformers.TrainingArguments."""
    given = settings.model_dump(exclude={"max_length", "max_steps", "eval_steps"})
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
            "per_device_eval_batch_size": settings.per_device_train_batch_size,
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


@dataclass
class _Watcher(TrainerCallback):  # type: ignore[misc]
    """Tells the report what happens, and stops a training whose loss is no longer a number."""

    report: Report
    losses: list[tuple[int, float]] = field(default_factory=list)
    eval_losses: list[tuple[int, float]] = field(default_factory=list)
    tokens: int = 0
    _mark: tuple[float, int, int] = (0.0, 0, 0)  # time, tokens, step at the last log

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._mark = (time.monotonic(), 0, 0)
        self.report.progress(0, state.max_steps, "steps", stage="train")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step == 1:
            self.report.event("first_step")
        if state.global_step == state.max_steps:
            control.should_log = True  # else the last steps are missing from the curve and from the token count

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        figures = {key: float(value) for key, value in (logs or {}).items() if isinstance(value, (int, float))}
        if "loss" in figures:
            self._on_train_log(state, figures)
        elif "eval_loss" in figures:
            self.eval_losses.append((state.global_step, figures["eval_loss"]))
            then, tokens, step = self._mark
            self._mark = (then + figures.get("eval_runtime", 0.0), tokens, step)  # no time of training
            self.report.metrics({"eval_loss": figures["eval_loss"]}, step=state.global_step)

    def _on_train_log(self, state: TrainerState, figures: dict[str, float]) -> None:
        step, loss = state.global_step, figures["loss"]
        self.tokens = int(figures.get("num_tokens", self.tokens))
        now = time.monotonic()
        then, tokens_then, step_then = self._mark
        self._mark = (now, self.tokens, step)
        seconds = max(now - then, 1e-9)
        rate = (self.tokens - tokens_then) / seconds
        kept = {
            f"train/{key}": figures[key]
            for key in ("loss", "grad_norm", "learning_rate", "mean_token_accuracy", "epoch")
            if key in figures
        }
        self.report.metrics({**kept, "train/tokens_per_second": rate, "train/tokens": float(self.tokens)}, step=step)
        if not math.isfinite(loss) or not math.isfinite(figures.get("grad_norm", 0.0)):
            raise TrainingError(
                f"the loss is {loss} and the gradient norm {figures.get('grad_norm')} {_span(step_then, step)}; "
                "fix: lower training.learning_rate, or train in float32"
            )
        self.losses.append((step, loss))
        left = (state.max_steps - step) * seconds / max(1, step - step_then)
        self.report.progress(
            step, state.max_steps, "steps", stage="train", loss=loss, tokens_per_s=rate, seconds_left=left
        )


def _span(after: int, to: int) -> str:
    return f"at step {to}" if to - after == 1 else f"between steps {after + 1} and {to}"
