"""The plan as text for a terminal: the verdict first, then what the run consists of and what it needs."""

from __future__ import annotations

from mlflow_finetune_plugin.planning.forecast import Forecast, duration
from mlflow_finetune_plugin.planning.memory import mib
from mlflow_finetune_plugin.planning.plan import Plan


def plan_text(plan: Plan, forecast: Forecast | None, why_not: str, data_summary: str) -> str:
    """Return the plan, one heading a line.

    Args:
        plan: the settled plan.
        forecast: memory and time, or None where they cannot be predicted.
        why_not: the reason for the missing forecast.
        data_summary: the data report's summary line.
    """
    flags = f" {' '.join(plan.serving_flags)}" if plan.serving_flags else ""
    lines = [
        f"verdict  {verdict(forecast) if forecast is not None else why_not}",
        *(f"fix      {change}" for change in (forecast.alternatives if forecast is not None else ())),
        f"run      {plan.config.adaptation} x {plan.config.objective} on {plan.base.name}"
        f"{f' from {plan.start.uri}' if plan.start else ''} "
        f"({plan.facts.parameters / 1e6:,.1f}M parameters, {plan.base.precision})",
        f"data     {data_summary}",
        *(_forecast_lines(forecast, plan.rows_a_step) if forecast is not None else ()),
        f"serving  {plan.serving}{flags}: {plan.serving_reason}",
        *(f"auto     {key} = {reason}" for key, reason in sorted(plan.reasons.items())),
    ]
    return "\n".join(lines)


def verdict(forecast: Forecast) -> str:
    """Return whether the run fits, with the memory that it needs and the time that training takes."""
    advice = {
        "fits": "",
        "tight": "; a step is divided further if memory runs out",
        "does not fit": "; nothing was started",
    }[forecast.verdict]
    return (
        f"{forecast.verdict}: needs {mib(forecast.memory.total):,.0f} MiB of {mib(forecast.room.bytes):,.0f} MiB "
        f"({forecast.room.limit}), training takes about {duration(forecast.seconds)}{advice}"
    )


def _forecast_lines(forecast: Forecast, step_rows: int) -> list[str]:
    memory, shapes = forecast.memory, forecast.shapes
    parts = {
        "process": memory.process,
        "base weights": memory.base_weights,
        "adapter": memory.adapter,
        "gradients": memory.gradients,
        "optimizer": memory.optimizer,
        "micro-batch": memory.micro_batch,
    }
    largest = max(shapes.largest, key=lambda batch: batch.tokens)
    return [
        f"steps    {shapes.steps:,} optimizer steps of {step_rows} rows, {shapes.per_step:.1f} micro-batches per step; "
        f"the largest micro-batch has {largest.tokens:,} tokens",
        f"memory   training {mib(memory.training):,.0f} MiB: "
        + ", ".join(f"{name} {mib(size):,.1f}" for name, size in parts.items() if size),
        f"memory   loading the base {mib(memory.loading):,.0f} MiB, proof {mib(memory.proof):,.0f} MiB",
        f"time     about {duration(forecast.seconds)} of training: {shapes.tokens:,} tokens, {forecast.flops / 1e12:,.1f} TFLOP "
        f"at {forecast.rates.flops / 1e9:,.0f} GFLOP/s (measured {forecast.rates.measured})",
    ]
