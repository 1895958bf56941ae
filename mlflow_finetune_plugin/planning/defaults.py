"""Replace every ``auto`` of the training section by a value, with the reason. Needs no torch."""

from __future__ import annotations

from math import ceil

from mlflow_finetune_plugin.base_models.attention import PACKS
from mlflow_finetune_plugin.base_models.facts import BaseFacts, Reasons
from mlflow_finetune_plugin.config.sections import TrainingSettings
from mlflow_finetune_plugin.errors import BaseModelError

DEFAULT_VALIDATION_FRACTION = 0.1


def resolve_max_length(training: TrainingSettings, base: BaseFacts, reasons: Reasons) -> int:
    """Return the longest row in tokens. Raises BaseModelError where it exceeds the base's positions."""
    context = base.context_length
    if training.max_length == "auto":
        chosen = min(2048, context) if context else 2048
        reasons["training.max_length"] = f"{chosen}: " + (
            "the base's whole context" if chosen == context else "longer rows are rare in tuning data"
        )
        return chosen
    if context is not None and training.max_length > context:
        raise BaseModelError(
            f"training.max_length = {training.max_length}: beyond the base's {context} positions; fix: use at most {context}"
        )
    return training.max_length


def resolve_batching(
    training: TrainingSettings, base: BaseFacts, *, longest_row: int, reasons: Reasons
) -> dict[str, object]:
    """Return ``batching`` and ``max_batch_tokens``, resolved. ``longest_row``: tokens of the longest training row."""
    batching = training.batching
    if base.sees:
        if batching == "packed":
            raise BaseModelError(
                "training.batching = 'packed': a base that sees reads padded rows only; fix: use grouped, or leave it out"
            )
        reasons["training.batching"] = "grouped: rows with pictures are padded" if batching == "auto" else str(batching)
        batching = "grouped" if batching == "auto" else batching
    if batching == "auto":
        batching, why = (
            ("packed", "no padding; attention ends at each row's borders")
            if base.model_type in PACKS
            else ("grouped", f"packing is not tested with {base.model_type}")
        )
        reasons["training.batching"] = f"{batching}: {why}"
    tokens = training.max_batch_tokens
    if tokens == "auto":
        tokens = int(training.per_device_train_batch_size) * longest_row
        reasons["training.max_batch_tokens"] = (
            f"{tokens}: {training.per_device_train_batch_size} rows as long as the longest, {longest_row} tokens"
        )
    return {"batching": batching, "max_batch_tokens": tokens}


def resolve_training(
    training: TrainingSettings,
    *,
    learning_rate: tuple[float, str],
    rows: int,
    processes: int = 1,
    on_gpu: bool,
    has_bf16: bool,
    half_precision_base: bool,
    max_length: int,
    reasons: Reasons,
) -> TrainingSettings:
    """Return the training section without ``auto``.

    Args:
        training: the section as in the recipe.
        learning_rate: the adaptation's ``auto`` rate and its reason.
        rows: training rows.
        processes: processes that share each step.
        on_gpu: whether training runs on a GPU.
        has_bf16: whether that GPU supports bfloat16.
        half_precision_base: whether the base is held in half precision.
        max_length: tokens of the longest row.
        reasons: receives the reason for each choice.
    """
    update: dict[str, object] = {"max_length": max_length}

    def choose(key: str, value: object, why: str) -> None:
        if getattr(training, key) == "auto":
            update[key] = value
            reasons[f"training.{key}"] = f"{value}: {why}"
        else:
            update[key] = getattr(training, key)

    choose("learning_rate", *learning_rate)
    shared = "" if processes == 1 else f", shared by {processes} processes"
    choose(
        "per_device_train_batch_size",
        max(1, min(16 if not on_gpu else 8, 16 // processes, ceil(rows / processes))),
        f"fits little memory; only the effective batch affects the result{shared}",
    )
    at_once = int(update["per_device_train_batch_size"]) * processes  # type: ignore[call-overload]
    choose(
        "gradient_accumulation_steps",
        max(1, min(16 // at_once, ceil(rows / at_once))),
        f"effective batch of about 16; larger ones are worse for LoRA{shared}",
    )
    steps_per_epoch = ceil(rows / (at_once * int(update["gradient_accumulation_steps"])))  # type: ignore[call-overload]
    if training.max_steps is not None:
        choose("num_train_epochs", float(ceil(training.max_steps / steps_per_epoch)), "follows from max_steps")
        steps = training.max_steps
    else:
        choose(
            "num_train_epochs",
            float(min(3, max(1, ceil(200 / steps_per_epoch)))),
            "up to 3 passes, until about 200 optimizer steps",
        )
        steps = ceil(steps_per_epoch * float(update["num_train_epochs"]))  # type: ignore[arg-type]
    # The first step of a warm-up has learning rate 0, so a run of one step must not have any.
    choose("warmup_steps", float(min(ceil(0.05 * steps), steps - 1)), f"5 % of {steps} optimizer steps")
    choose(
        "gradient_checkpointing", on_gpu, "saves memory on a GPU" if on_gpu else "on a CPU time is scarcer than memory"
    )
    choose(
        "bf16",
        on_gpu and has_bf16 and half_precision_base,
        _why_bf16(on_gpu and has_bf16, half_precision_base),
    )
    choose("save_steps", max(1, ceil(steps / 4)), "about 4 checkpoints per run")
    choose("logging_steps", max(1, steps // 100), "about 100 points in the charts")
    return training.model_copy(update=update)


def _why_bf16(has_bf16: bool, half_precision_base: bool) -> str:
    if not has_bf16:
        return "no GPU with bfloat16"
    return "the GPU supports it" if half_precision_base else "the base is held in float32"


def validation_fraction(configured: float | None, training: TrainingSettings) -> float | None:
    """Return the share of the training rows that choose the weights, because the held-out rows must not; None takes none."""
    if configured is not None:
        return configured
    is_chosen = training.load_best_model_at_end or training.early_stopping_patience is not None
    return DEFAULT_VALIDATION_FRACTION if is_chosen else None
