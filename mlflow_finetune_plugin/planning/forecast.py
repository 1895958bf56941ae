"""Forecast the memory and time of a run before any weight is read: whether it fits, and which changes would make it fit."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import cached_property
from importlib.util import find_spec
from math import prod
from typing import Any

import torch

from mlflow_finetune_plugin.config.sections import TrainingSettings
from mlflow_finetune_plugin.data.preparation import PreparedData
from mlflow_finetune_plugin.errors import PlanError
from mlflow_finetune_plugin.evaluation.forgetting import DEFAULT_TEXT, read_texts
from mlflow_finetune_plugin.evaluation.generation import DEFAULT_BATCH_TOKENS
from mlflow_finetune_plugin.methods import load_method
from mlflow_finetune_plugin.planning.fitting import TIGHT, alternatives, smaller_auto
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
from mlflow_finetune_plugin.planning.rollouts import check_engine_serves, steps_with_rollouts
from mlflow_finetune_plugin.planning.step_trace import AdaptedModel, StepTrace, UntraceableError, adapted_model
from mlflow_finetune_plugin.planning.throughput import Rates, device_rates, step_seconds, torch_threads
from mlflow_finetune_plugin.serving.settings import VLLM
from mlflow_finetune_plugin.training.rollouts.engine_choice import SavedAdapter, choose_sampling_engine

REFUSED = 1.2
"""Above this share of the room a run is refused: no prediction was ever too high by that much."""
_PROCESS = 645 * MIB
"""Python, torch, transformers, TRL, PEFT and MLflow in a worker without a GPU (Linux, torch 2.13)."""
_PROCESS_QUANTISED = 690 * MIB
_VLLM = 150 * MIB
"""What TRL's trainers of rollouts add where vLLM is installed: they import it, whether it samples or not."""
_HEAP = 1.05
"""Factor for heap fragmentation: glibc holds more than the live blocks, because not every hole is reused."""
_FORWARD_SHARE = 0.5
"""Share of a step's work that is its forward pass: with frozen weights the backward pass has as many products."""
_PASSES = 2
"""A step's work in forward passes: the backward pass of an adapter, with frozen weights, costs as much as the forward pass."""
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
    reference_seconds: float = 0.0
    """Time to compute the log-probabilities of the model before training, where the objective needs them."""
    rollout_seconds: float = 0.0
    """The part of ``seconds`` in which completions are sampled and scored by the start, where the objective samples."""

    @property
    def verdict(self) -> str:
        """``fits``, ``tight`` or ``does not fit``."""
        share = self.memory.total / self.room.bytes
        return "fits" if share <= TIGHT else "tight" if share <= REFUSED else "does not fit"

    def line(self) -> str:
        """Return the verdict, memory and time in one line."""
        return (
            f"{self.verdict}: needs {mib(self.memory.total):,.0f} MiB ({self.memory.peak_phase}) of "
            f"{mib(self.room.bytes):,.0f} MiB ({self.room.limit}){self._engine_words()}; {self.shapes.steps:,} steps, "
            f"{self.shapes.tokens:,} tokens in about {duration(self.seconds)}"
            + (f", after {duration(self.reference_seconds)} for the reference" if self.reference_seconds else "")
            + (f", at most {duration(self.rollout_seconds)} of it for sampling" if self.rollout_seconds else "")
        )

    def _engine_words(self) -> str:
        size = self.memory.sampling_engine
        return (
            f", of which {mib(size):,.0f} MiB for the engine that samples, with a second copy of the base"
            if size
            else ""
        )

    def refusal(self) -> str:
        """Return why the run does not fit, and the changes with which it would."""
        return (
            f"the run does not fit: it needs {mib(self.memory.total):,.0f} MiB ({self.memory.peak_phase}), more than {REFUSED} times "
            f"the {mib(self.room.bytes):,.0f} MiB available ({self.room.limit}){self._engine_words()}; fix: "
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
            "reference_seconds": self.reference_seconds,
            "rollout_seconds": self.rollout_seconds,
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
    forecaster = Forecaster(plan, data)
    if plan.rollouts is not None and plan.rollouts.sampler == "engine":
        check_engine_serves(forecaster.model.model.active_peft_config)
    training = plan.config.training
    parts, shapes = forecaster.parts(training)
    if parts.total > TIGHT * forecaster.room.bytes:
        smaller = smaller_auto(plan, forecaster)
        if smaller is not None:
            plan, parts, shapes = smaller
    forecast = forecaster.forecast(plan.config.training, parts, shapes)
    # Completions may end early, so their tokens per second cannot be compared with a forecast of the longest ones.
    is_known = forecast.seconds > 0 and plan.rollouts is None
    plan = replace(plan, expected_tokens_per_s=shapes.tokens / forecast.seconds if is_known else None)
    if forecast.verdict == "does not fit":
        forecast = replace(forecast, alternatives=tuple(alternatives(plan, forecaster)))
    return plan, forecast


def check_fits(forecast: Forecast | None) -> None:
    """Raise PlanError where the run does not fit. None, a missing forecast, passes."""
    if forecast is not None and forecast.verdict == "does not fit":
        raise PlanError(forecast.refusal())


class Forecaster:
    """Forecasts one plan under several settings; builds the model without weights once."""

    def __init__(self, plan: Plan, data: PreparedData) -> None:
        self.plan, self.data = plan, data
        self.lengths = RowLengths.of(data.train)
        self.rollouts = plan.rollouts
        if self.rollouts is not None:
            longest = self.rollouts.max_completion_length
            self.lengths = self.lengths.with_completions(self.rollouts.num_generations, longest)
        self.room = memory_room(plan.processes)
        self.on_gpu = torch.cuda.is_available()

    @cached_property
    def model(self) -> AdaptedModel:
        plan = self.plan
        adaptation = load_method("adaptation", plan.config.adaptation)
        kind = plan.method.objective.MODEL
        return adapted_model(plan.base, adaptation, plan.adaptation_options, seed=plan.config.training.seed, kind=kind)

    def shapes(self, training: TrainingSettings) -> Shapes:
        if self.rollouts is None:
            lengths = self.lengths.clipped(int(training.max_length))
            return shapes_of(
                lengths,
                training,
                on_gpu=self.on_gpu,
                processes=self.plan.processes,
                gives_rewards=self.plan.is_reward_model,
                sees=self.plan.facts.sees,
            )
        steps = steps_with_rollouts(training, self.rollouts, len(self.data.train))
        return shapes_of(self.lengths, training, on_gpu=self.on_gpu, steps=steps)

    def parts(self, training: TrainingSettings, quantization: str | None = "as planned") -> tuple[MemoryParts, Shapes]:
        """Return the memory under these settings, and the micro-batches that decide it."""
        base, model, shapes = self.plan.base, self.model, self.shapes(training)
        quantization = base.quantization if quantization == "as planned" else quantization
        dtype = str(base.dtype).removeprefix("torch.")
        weights = weight_bytes(self.plan.facts.parameters, self.plan.facts.linear_shapes, dtype, quantization)
        process = 0 if self.on_gpu else _PROCESS if quantization is None else _PROCESS_QUANTISED
        if self.rollouts is not None and not self.on_gpu and find_spec("vllm") is not None:
            process += _VLLM
        traces = [
            model.trace(batch, checkpointing=bool(training.gradient_checkpointing), accumulates=shapes.per_step > 1)
            for batch in shapes.largest
        ]
        largest_layer = max((prod(shape) for shape in self.plan.facts.linear_shapes.values()), default=0)
        unpacked = largest_layer * base.dtype.itemsize if quantization is not None else 0
        engine = self._engine(training, process + weights + unpacked)
        # An engine that samples holds the completions of a step instead of the worker.
        rollout = self._rollout(training) if engine == 0 else 0
        adapter = model.trainable_bytes
        held = process + weights
        return (
            MemoryParts(
                process=process,
                base_weights=weights,
                adapter=adapter,
                gradients=model.trainable_bytes,
                optimizer=optimizer_bytes(training.optim, model.trainable, model.trainable_bytes),
                micro_batch=int(max([*(trace.peak_bytes for trace in traces), rollout]) * (1 if self.on_gpu else _HEAP))
                + unpacked,
                loading=held + unpacked,
                proof=held + unpacked + model.trainable_bytes + self._proof,
                sampling_engine=engine,
            ),
            shapes,
        )

    def _engine(self, training: TrainingSettings, held: int) -> int:
        """Return the bytes of the engine that samples; 0 without one. ``held`` are those of a process with the base alone."""
        if self.rollouts is None or self.rollouts.sampler != "engine":
            return 0
        plan = self.plan
        adapter = SavedAdapter.of(plan.base, plan.method.adaptation, plan.adaptation_options)
        if choose_sampling_engine(adapter)[0] == VLLM:  # it takes its share whatever the base needs
            share = self.rollouts.vllm_gpu_memory_utilization
            return int(share * torch.cuda.get_device_properties(0).total_memory)
        return held + int(self._rollout(training) * (1 if self.on_gpu else _HEAP))

    def _rollout(self, training: TrainingSettings) -> int:
        """Return the bytes beside the weights while the completions of a step are sampled, all at once; 0 without rollouts."""
        if self.rollouts is None:
            return 0
        completions = int(training.per_device_train_batch_size) * int(training.gradient_accumulation_steps)
        return self.model.trace_answers(completions, int(self.lengths.tokens.max()), 1)

    @cached_property
    def _proof(self) -> int:
        """Bytes beside the weights of the largest batch of answers, of scored answers or of the forgetting text."""
        answer = int(self.plan.config.eval.max_new_tokens)
        prompt = max(len(row.prompt_ids) for row in self.data.eval_rows) + len(self.plan.virtual_token_ids)
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
        rollout_s = self._rollout_seconds(trace, rates, training, parts, shapes)
        seconds = (a_step + rollout_s) * shapes.steps
        return Forecast(
            parts,
            self.room,
            shapes,
            seconds,
            flops,
            rates,
            self.model.trainable,
            reference_seconds=self._reference_share(shapes) * seconds,
            rollout_seconds=rollout_s * shapes.steps,
        )

    def _rollout_seconds(
        self, trace: StepTrace, rates: Rates, training: TrainingSettings, parts: MemoryParts, shapes: Shapes
    ) -> float:
        """Return the time to sample the completions of a step, and to score them with the start, per optimizer step.

        An estimate: every completion is taken as long as it may be, and a token costs a forward pass over all completions that
        reads the weights once.
        """
        rollouts = self.rollouts
        if rollouts is None:
            return 0.0
        forward = trace.flops * shapes.per_step / _PASSES
        tokens = rollouts.max_completion_length
        sampling = step_seconds(
            rates,
            flops=forward,
            bytes_moved=float(parts.base_weights) * tokens,
            operations=trace.operations / _PASSES * tokens,
        )
        scoring = 0.0
        if rollouts.compares_with_start:
            scoring = step_seconds(
                rates,
                flops=forward,
                bytes_moved=trace.bytes_moved * shapes.per_step / _PASSES,
                operations=trace.operations * shapes.per_step / _PASSES,
            )
        return (sampling + scoring) / rollouts.num_iterations

    def _reference_share(self, shapes: Shapes) -> float:
        """Return the time of the reference as a share of the training's: one forward pass over all rows, without a backward pass."""
        method = self.plan.method
        if not method.objective.needs_reference(method.objective_options):
            return 0.0
        return _FORWARD_SHARE * float(self.lengths.tokens.sum()) / shapes.tokens
