"""Forecast the memory and time of a run before any weight is read: whether it fits, and which changes would make it fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from math import prod
from typing import Any

import torch

from mlflow_finetune_plugin.base_models.facts import Reasons
from mlflow_finetune_plugin.config.sections import TrainingSettings
from mlflow_finetune_plugin.data.preparation import PreparedData
from mlflow_finetune_plugin.errors import PlanError
from mlflow_finetune_plugin.evaluation.forgetting import DEFAULT_TEXT, read_texts
from mlflow_finetune_plugin.evaluation.generation import DEFAULT_BATCH_TOKENS
from mlflow_finetune_plugin.methods import load_method
from mlflow_finetune_plugin.planning.memory import (
    MIB,
    MemoryParts,
    MemoryRoom,
    memory_room,
    mib,
    optimizer_bytes,
    weight_bytes,
)
from mlflow_finetune_plugin.planning.micro_batch_shapes import RowLengths, Shapes, shapes_of
from mlflow_finetune_plugin.planning.plan import Plan
from mlflow_finetune_plugin.planning.step_trace import AdaptedModel, UntraceableError, adapted_model
from mlflow_finetune_plugin.planning.throughput import Rates, device_rates, step_seconds, torch_threads

TIGHT = 0.85
"""Above this share of the room a run is tight: the lowest prediction was 0.82 of the measured memory."""
REFUSED = 1.2
"""Above this share of the room a run is refused: no prediction was ever too high by that much."""
_PROCESS = 645 * MIB
"""Python, torch, transformers, TRL, PEFT and MLflow in a worker without a GPU (Linux, torch 2.13)."""
_PROCESS_QUANTISED = 690 * MIB
_HEAP = 1.05
"""Factor for heap fragmentation: glibc holds more than the live blocks, because not every hole is reused."""
_OPTIMIZER_OPERATIONS = 14  # per trainable tensor, single-tensor AdamW


@dataclass(frozen=True)
class Forecast:
    """The prediction for one run. ``seconds`` covers training only, ``flops`` all steps."""

    memory: MemoryParts
    room: MemoryRoom
    shapes: Shapes
    seconds: float
    flops: float
    rates: Rates
    trainable: int
    alternatives: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """``fits``, ``tight`` or ``does not fit``."""
        share = self.memory.total / self.room.bytes
        return "fits" if share <= TIGHT else "tight" if share <= REFUSED else "does not fit"

    def line(self) -> str:
        """Return the verdict, memory and time in one line."""
        return (
            f"{self.verdict}: needs {mib(self.memory.total):,.0f} MiB ({self.memory.peak_phase}) of "
            f"{mib(self.room.bytes):,.0f} MiB ({self.room.limit}); {self.shapes.steps:,} steps, "
            f"{self.shapes.tokens:,} tokens in about {duration(self.seconds)}"
        )

    def refusal(self) -> str:
        """Return why the run does not fit, and the changes with which it would."""
        return (
            f"the run does not fit: it needs {mib(self.memory.total):,.0f} MiB ({self.memory.peak_phase}), more than {REFUSED} times "
            f"the {mib(self.room.bytes):,.0f} MiB available ({self.room.limit}); fix: "
            + (
                "; or ".join(self.alternatives)
                or "use a smaller base or a machine with more memory, no setting makes it fit"
            )
        )

    def to_json(self) -> dict[str, Any]:
        """Return all figures in bytes, seconds and operations."""
        return {
            "memory_bytes": self.memory.to_json(),
            "room": asdict(self.room),
            "verdict": self.verdict,
            "alternatives": list(self.alternatives),
            "train_seconds": self.seconds,
            "flops": self.flops,
            "steps": self.shapes.steps,
            "tokens": self.shapes.tokens,
            "trainable_parameters": self.trainable,
            "micro_batches_per_step": self.shapes.per_step,
            "largest_micro_batches": [asdict(batch) for batch in self.shapes.largest],
            "rates": asdict(self.rates),
        }


def duration(seconds: float) -> str:
    """Return seconds as text, such as ``25 s``, ``12 min`` or ``3.4 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def forecast_run(plan: Plan, data: PreparedData) -> tuple[Plan, Forecast | None, str]:
    """Forecast a settled plan, with a smaller micro-batch where that was ``auto`` and memory requires it.

    Returns:
        The plan, its forecast, and an empty text. Where the architecture cannot run without weights: the plan, None, and
        the reason.
    """
    try:
        return (*_forecast_run(plan, data), "")
    except UntraceableError as error:
        return plan, None, f"memory and time cannot be predicted: {plan.facts.model_type} cannot be traced ({error})"


def _forecast_run(plan: Plan, data: PreparedData) -> tuple[Plan, Forecast]:
    forecaster = _Forecaster(plan, data)
    training = plan.config.training
    parts, shapes = forecaster.parts(training)
    if parts.total > TIGHT * forecaster.room.bytes:
        smaller = _smaller_auto(plan, forecaster)
        if smaller is not None:
            plan, parts, shapes = smaller
    forecast = forecaster.forecast(plan.config.training, parts, shapes)
    plan = replace(plan, expected_tokens_per_s=shapes.tokens / forecast.seconds if forecast.seconds > 0 else None)
    if forecast.verdict == "does not fit":
        forecast = replace(forecast, alternatives=tuple(_alternatives(plan, forecaster)))
    return plan, forecast


def check_fits(forecast: Forecast | None) -> None:
    """Raise PlanError where the run does not fit. None, a missing forecast, passes."""
    if forecast is not None and forecast.verdict == "does not fit":
        raise PlanError(forecast.refusal())


class _Forecaster:
    """Forecasts one plan under several settings; builds the model without weights once."""

    def __init__(self, plan: Plan, data: PreparedData) -> None:
        self.plan, self.data = plan, data
        self.lengths = RowLengths.of(data.train)
        self.room = memory_room(plan.processes)
        self.on_gpu = torch.cuda.is_available()

    @cached_property
    def model(self) -> AdaptedModel:
        plan = self.plan
        adaptation = load_method("adaptation", plan.config.adaptation)
        return adapted_model(plan.base, adaptation, plan.adaptation_options, seed=plan.config.training.seed)

    def shapes(self, training: TrainingSettings) -> Shapes:
        lengths = self.lengths.clipped(int(training.max_length))
        return shapes_of(lengths, training, on_gpu=self.on_gpu, processes=self.plan.processes)

    def parts(self, training: TrainingSettings, quantization: str | None = "as planned") -> tuple[MemoryParts, Shapes]:
        """Return the memory under these settings, and the micro-batches that decide it."""
        base, model, shapes = self.plan.base, self.model, self.shapes(training)
        quantization = base.quantization if quantization == "as planned" else quantization
        dtype = str(base.dtype).removeprefix("torch.")
        weights = weight_bytes(self.plan.facts.parameters, self.plan.facts.linear_shapes, dtype, quantization)
        process = 0 if self.on_gpu else _PROCESS if quantization is None else _PROCESS_QUANTISED
        traces = [
            model.trace(batch, checkpointing=bool(training.gradient_checkpointing), accumulates=shapes.per_step > 1)
            for batch in shapes.largest
        ]
        largest_layer = max((prod(shape) for shape in self.plan.facts.linear_shapes.values()), default=0)
        unpacked = largest_layer * base.dtype.itemsize if quantization is not None else 0
        adapter = model.trainable_bytes * (1 if self.on_gpu else 2)  # A CPU also holds the copy of the start values.
        held = process + weights
        return (
            MemoryParts(
                process=process,
                base_weights=weights,
                adapter=adapter,
                gradients=model.trainable_bytes,
                optimizer=optimizer_bytes(training.optim, model.trainable, model.trainable_bytes),
                micro_batch=int(max(trace.peak_bytes for trace in traces) * (1 if self.on_gpu else _HEAP)) + unpacked,
                loading=held + unpacked,
                proof=held + unpacked + model.trainable_bytes + self._proof,
            ),
            shapes,
        )

    @cached_property
    def _proof(self) -> int:
        """Bytes beside the weights of the largest batch of answers, of scored answers or of the forgetting text."""
        answer = int(self.plan.config.eval.max_new_tokens)
        prompt = max(len(row.prompt_ids) for row in self.data.eval_rows)
        context = self.plan.facts.context_length or prompt + answer
        width = min(context, prompt + answer)
        rows = max(1, min(len(self.data.eval_rows), DEFAULT_BATCH_TOKENS // width))
        vocabulary = self.model.vocabulary
        columns = max(1, min(answer + 8, 2**28 // vocabulary // rows, width))
        worst = self.model.trace_answers(rows, width, columns)
        if (tokens := self._forgetting_tokens()) > 0:
            length = min(1024, context)
            windows = max(1, min(tokens, DEFAULT_BATCH_TOKENS, 2**28 // vocabulary) // length)
            worst = max(worst, self.model.trace_answers(windows, min(length, tokens), min(length, tokens)))
        return worst

    def _forgetting_tokens(self) -> int:
        setting = self.plan.config.eval.forgetting
        if setting is False:
            return 0
        texts = read_texts(setting or DEFAULT_TEXT)
        tokenizer = self.plan.renderer.tokenizer
        return sum(len(tokenizer(text, add_special_tokens=False, verbose=False).input_ids) for text in texts)

    def forecast(self, training: TrainingSettings, parts: MemoryParts, shapes: Shapes) -> Forecast:
        """Return the forecast: trace a mean micro-batch and measure the device for the time."""
        trace = self.model.trace(
            shapes.mean, checkpointing=bool(training.gradient_checkpointing), accumulates=shapes.per_step > 1
        )
        with torch_threads(self.plan.threads):
            rates = device_rates(self.plan.facts.hidden_size, self.plan.base.dtype)
        of_optimizer = _OPTIMIZER_OPERATIONS * self.model.tensors
        a_step = step_seconds(
            rates,
            flops=trace.flops * shapes.per_step,
            bytes_moved=trace.bytes_moved * shapes.per_step + 3 * parts.optimizer,
            operations=trace.operations * shapes.per_step + of_optimizer,
        )
        flops = float(trace.flops * shapes.per_step * shapes.steps)
        return Forecast(parts, self.room, shapes, a_step * shapes.steps, flops, rates, self.model.trainable)


def _smaller_auto(plan: Plan, forecaster: _Forecaster) -> tuple[Plan, MemoryParts, Shapes] | None:
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
    while (rows > 1 and rows % 2 == 0) if padded else tokens > longest:
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


def _alternatives(plan: Plan, forecaster: _Forecaster) -> Iterator[str]:
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
    if base.quantization is None:
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


def _fits(forecaster: _Forecaster, parts: MemoryParts) -> bool:
    """Return whether these parts fit and are not tight."""
    return parts.total <= TIGHT * forecaster.room.bytes


def _shorter(forecaster: _Forecaster, training: TrainingSettings) -> str | None:
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
