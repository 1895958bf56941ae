"""Which changes make a run fit the memory: a smaller micro-batch where that was ``auto``, and what a user could change."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from mlflow_finetune_plugin.base_models.facts import Reasons
from mlflow_finetune_plugin.config.sections import TrainingSettings
from mlflow_finetune_plugin.planning.memory import MemoryParts, mib
from mlflow_finetune_plugin.planning.micro_batch_shapes import Shapes
from mlflow_finetune_plugin.planning.plan import Plan

if TYPE_CHECKING:
    from mlflow_finetune_plugin.planning.forecast import Forecaster

TIGHT = 0.85
"""Above this share of the room a run is tight: the lowest prediction was 0.82 of the measured memory."""


def smaller_auto(plan: Plan, forecaster: Forecaster) -> tuple[Plan, MemoryParts, Shapes] | None:
    """Return the plan with the largest halving of an ``auto`` micro-batch that fits, or None where nothing was ``auto``."""
    training, best = plan.config.training, None
    for training in _halvings(plan):
        parts, shapes = forecaster.parts(training)
        best = (_with_smaller(plan, training), parts, shapes)
        if parts.total <= TIGHT * forecaster.room.bytes:
            break
    return best


def _halvings(plan: Plan, *, only_auto: bool = True) -> Iterator[TrainingSettings]:
    """Yield the settings with smaller and smaller micro-batches of the same step, down to one row."""
    training = plan.config.training
    rows, accumulation = int(training.per_device_train_batch_size), int(training.gradient_accumulation_steps)
    padded = training.batching == "padded"
    key = "training.per_device_train_batch_size" if padded else "training.max_batch_tokens"
    if only_auto and (
        key not in plan.reasons or (padded and "training.gradient_accumulation_steps" not in plan.reasons)
    ):
        return
    tokens = int(training.max_batch_tokens)
    longest = tokens // rows if "training.max_batch_tokens" in plan.reasons else int(training.max_length)
    fewest = plan.rollouts.num_generations if plan.rollouts is not None and training.eval_steps is not None else 1
    while (rows > fewest and rows % 2 == 0) if padded else tokens > longest:
        rows, accumulation, tokens = rows // 2, accumulation * 2, max(longest, tokens // 2)
        update = (
            {"per_device_train_batch_size": rows, "gradient_accumulation_steps": accumulation}
            if padded
            else {"max_batch_tokens": tokens}
        )
        training = training.model_copy(update=update)
        yield training


def _with_smaller(plan: Plan, training: TrainingSettings) -> Plan:
    reasons: Reasons = dict(plan.reasons)
    keys = (
        ("per_device_train_batch_size", "gradient_accumulation_steps")
        if training.batching == "padded"
        else ("max_batch_tokens",)
    )
    for key in keys:
        reasons[f"training.{key}"] = (
            f"{getattr(training, key)}: fits this machine's memory; the rows of a step stay the same"
        )
    return replace(plan, config=plan.config.model_copy(update={"training": training}), reasons=reasons)


def alternatives(plan: Plan, forecaster: Forecaster) -> Iterator[str]:
    """Yield the changes with which the run would fit, each computed for this run."""
    training = plan.config.training
    smallest = training
    for smallest in _halvings(plan, only_auto=False):
        parts, _ = forecaster.parts(smallest)
        if _fits(forecaster, parts):
            yield _with_size(_micro(smallest), parts)
            break
    options: list[tuple[str, TrainingSettings, str | None]] = []
    base = forecaster.plan.base
    checkpointed = smallest.model_copy(update={"gradient_checkpointing": True})
    if not training.gradient_checkpointing:
        whole = training.model_copy(update={"gradient_checkpointing": True})
        options.append(("training.gradient_checkpointing: true", whole, base.quantization))
        if smallest is not training:
            options.append(
                (f"training.gradient_checkpointing: true with {_micro(smallest)}", checkpointed, base.quantization)
            )
    if base.quantization is None and "nf4" in plan.method.adaptation.QUANTIZATIONS:
        options.append(("base_model.quantization: nf4 (or -e qlora)", training, "nf4"))
        options.append(
            (
                f"base_model.quantization: nf4, training.gradient_checkpointing: true and {_micro(smallest)}",
                checkpointed,
                "nf4",
            )
        )
    fitting = []
    for text, settings, quantization in options:
        parts, _ = forecaster.parts(settings, quantization)
        if _fits(forecaster, parts):
            fitting.append(_with_size(text, parts))
    yield from fitting[:2]
    if not fitting and (shorter := _shorter(forecaster, checkpointed)) is not None:
        yield shorter


def _fits(forecaster: Forecaster, parts: MemoryParts) -> bool:
    """Return whether these parts fit and are not tight."""
    return parts.total <= TIGHT * forecaster.room.bytes


def _shorter(forecaster: Forecaster, training: TrainingSettings) -> str | None:
    """Return the longest max_length, by halving, that fits with one row per micro-batch, or None."""
    length = int(forecaster.lengths.tokens.max())
    while length >= 64:
        length //= 2
        settings = training.model_copy(update={"max_length": length, "max_batch_tokens": length})
        parts, _ = forecaster.parts(settings)
        if _fits(forecaster, parts):
            return _with_size(
                f"training.max_length: {length} (data.overlength: drop) with {_micro(settings)} and training.gradient_checkpointing: true",
                parts,
            )
    return None


def _micro(training: TrainingSettings) -> str:
    if training.batching == "padded":
        return (
            f"training.per_device_train_batch_size: {training.per_device_train_batch_size} and "
            f"training.gradient_accumulation_steps: {training.gradient_accumulation_steps}"
        )
    return f"training.max_batch_tokens: {training.max_batch_tokens}"


def _with_size(change: str, parts: MemoryParts) -> str:
    return f"{change} ({mib(parts.total):,.0f} MiB)"
