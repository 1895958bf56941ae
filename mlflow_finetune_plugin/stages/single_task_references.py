"""Train one adapter per task with the settings of the mixture, to measure what the mixture costs each task."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from peft import PeftModel

from mlflow_finetune_plugin.base_models.loading import load_model
from mlflow_finetune_plugin.data.mixture import rows_of
from mlflow_finetune_plugin.data.preparation import PreparedData
from mlflow_finetune_plugin.evaluation.comparison import AnswerSet
from mlflow_finetune_plugin.evaluation.interference import interference
from mlflow_finetune_plugin.evaluation.proof import measure
from mlflow_finetune_plugin.evaluation.results import EvalReport, EvalRow, Interval, MetricResult
from mlflow_finetune_plugin.jobs.report import Report
from mlflow_finetune_plugin.planning.plan import Plan
from mlflow_finetune_plugin.rewards import scoring
from mlflow_finetune_plugin.stages.records.description import metric_label
from mlflow_finetune_plugin.store.clients import metric_part
from mlflow_finetune_plugin.store.names import HELD_OUT_FOLDER, INTERFERENCE, PLOTS_FOLDER

Train = Callable[[Plan, PreparedData, Path], Path]
"""Trains an adapter by the plan, on the rows of one task, in a folder, and returns the adapter's folder."""


def costs_of_mixing(
    plan: Plan, data: PreparedData, proof: EvalReport, folder: Path, report: Report, *, train: Train
) -> dict[str, tuple[MetricResult, ...]]:
    """Compare the mixture's adapter, for each task and metric, with one trained on that task's rows alone, as often as drawn.

    These adapters are neither logged nor registered.
    """
    singles: dict[str, AnswerSet] = {}
    for number, task in enumerate(proof.tasks):
        task_rows = rows_of(data.train, task)
        if not len(task_rows):
            report.note(f"task {task} has no row to train on, so no single-task adapter to compare with")
            continue
        report.progress(number, len(proof.tasks), f"single-task adapters (now {task})", stage="proof")
        rows = [row for row in data.eval_rows if row.task == task]
        only = replace(data, train=task_rows, eval_rows=rows, validation=rows_of(data.validation, task))
        adapter = train(plan, only, folder / "single_tasks" / str(number))
        singles[task] = _answers(plan, adapter, rows)
    return interference(
        proof, data.eval_rows, singles, metrics=list(plan.config.eval.metrics), seed=plan.config.training.seed
    )


def _answers(plan: Plan, adapter: Path, rows: list[EvalRow]) -> AnswerSet:
    model = load_model(plan.base, plan.method.objective.MODEL, seed=plan.config.training.seed)
    model = PeftModel.from_pretrained(model, adapter)
    model.eval()
    answers = measure(
        model,
        plan.renderer.tokenizer,
        rows,
        max_new_tokens=int(plan.config.eval.max_new_tokens),
        stop_token_ids=plan.renderer.stop_token_ids,
        answer_prefix=plan.renderer.answer_prefix,
    )
    with scoring(plan.rewards) as score:
        return answers if score is None else replace(answers, rewards=score(rows, answers.answers))


def record_interference(costs: Mapping[str, tuple[MetricResult, ...]], folder: Path, report: Report) -> None:
    """Record ``interference/<metric>/<task>``: the mixture's adapter minus the task's own; below 0 where the mixture costs."""
    if not costs:
        return
    values: dict[str, float] = {}
    table = []
    for task, results in costs.items():
        for result in results:
            values |= _gains(f"{INTERFERENCE}{result.name}/{metric_part(task)}", result.gain)
            table.append(
                [task, result.name, result.base, result.adapter, result.gain.value, result.gain.low, result.gain.high]
            )
    report.metrics(values)
    columns = ["task", "metric", "single_task", "mixture", "gain", "gain_low", "gain_high"]
    text = json.dumps({"columns": columns, "data": table}, ensure_ascii=False)
    report.text(folder / "interference.json", text, HELD_OUT_FOLDER)
    from mlflow_finetune_plugin.evaluation.plots import plot_tasks

    figure = plot_tasks({task: results[0] for task, results in costs.items()}, "mixture against single-task adapters")
    figure.savefig(folder / "interference.png", dpi=120)
    report.artifact(folder / "interference.png", PLOTS_FOLDER)
    for task, results in costs.items():
        first = results[0]
        report.stage(
            "proof",
            f"{task}: {metric_label(first.name)} {first.base:.3g} trained alone, {first.adapter:.3g} in the mixture "
            f"(95 % interval of the difference {first.gain.low:+.3g} to {first.gain.high:+.3g})",
        )


def _gains(name: str, gain: Interval) -> dict[str, float]:
    return {name: gain.value, f"{name}_low": gain.low, f"{name}_high": gain.high}
