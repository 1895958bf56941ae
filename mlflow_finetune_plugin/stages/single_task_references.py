"""One adapter per task, trained as the mixture was, to show what the mixture costs each task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from peft import PeftModel

from mlflow_finetune_plugin.base_models.loading import load_base_model
from mlflow_finetune_plugin.data.mixture import rows_of
from mlflow_finetune_plugin.data.preparation import PreparedData
from mlflow_finetune_plugin.evaluation.comparison import AnswerSet
from mlflow_finetune_plugin.evaluation.interference import interference
from mlflow_finetune_plugin.evaluation.proof import measure
from mlflow_finetune_plugin.evaluation.results import EvalReport, EvalRow, MetricResult
from mlflow_finetune_plugin.jobs.report import Report
from mlflow_finetune_plugin.planning.plan import Plan

Train = Callable[[Plan, PreparedData, Path], Path]
"""Plan, the rows of one task, a folder to work in -> the adapter's folder."""


def costs_of_mixing(
    plan: Plan, data: PreparedData, proof: EvalReport, folder: Path, report: Report, *, train: Train
) -> dict[str, tuple[MetricResult, ...]]:
    """Per task and metric: the mixture's adapter against one trained on that task's rows alone, as often as drawn.

    These adapters are neither logged nor registered.
    """
    singles: dict[str, AnswerSet] = {}
    for number, task in enumerate(proof.tasks):
        own = rows_of(data.train, task)
        if not len(own):
            report.note(f"task {task} has no row to train on, so no single-task adapter to compare with")
            continue
        report.progress(number, len(proof.tasks), f"single-task adapters (now {task})", stage="proof")
        rows = [row for row in data.eval_rows if row.task == task]
        only = replace(data, train=own, eval_rows=rows, eval_dataset=rows_of(data.eval_dataset, task))
        adapter = train(plan, only, folder / "single_tasks" / str(number))
        singles[task] = _answers(plan, adapter, rows)
    return interference(
        proof, data.eval_rows, singles, metrics=list(plan.config.eval.metrics), seed=plan.config.training.seed
    )


def _answers(plan: Plan, adapter: Path, rows: list[EvalRow]) -> AnswerSet:
    model = PeftModel.from_pretrained(load_base_model(plan.base), adapter)
    model.eval()
    return measure(
        model,
        plan.renderer.tokenizer,
        rows,
        max_new_tokens=int(plan.config.eval.max_new_tokens),
        stop_token_ids=plan.renderer.stop_token_ids,
        answer_prefix=plan.renderer.answer_prefix,
    )
