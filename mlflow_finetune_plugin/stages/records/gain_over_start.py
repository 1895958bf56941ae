"""After the proof: what a training gained over the version that it started from, on the same held-out rows."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from peft import PeftModel

from mlflow_finetune_plugin.data.preparation import PreparedData
from mlflow_finetune_plugin.evaluation.comparison import AnswerSet
from mlflow_finetune_plugin.evaluation.proof import gain_over, measure
from mlflow_finetune_plugin.evaluation.results import EvalReport, MetricResult
from mlflow_finetune_plugin.jobs.report import Report
from mlflow_finetune_plugin.logged_models.start_version import StartVersion, load_start
from mlflow_finetune_plugin.planning.plan import Plan
from mlflow_finetune_plugin.rewards import scoring
from mlflow_finetune_plugin.stages.records.description import length_line, metric_line
from mlflow_finetune_plugin.store.names import (
    EVAL_ANSWER_TOKENS,
    EVAL_GAIN_OVER_START,
    EVAL_GAIN_OVER_START_HIGH,
    EVAL_GAIN_OVER_START_LOW,
    EVAL_START,
    HELD_OUT_FOLDER,
    START_TABLE,
)


def compare_with_start(
    start: StartVersion,
    plan: Plan,
    data: PreparedData,
    model: PeftModel,
    proof: EvalReport,
    model_id: str | None,
    step: int,
    folder: Path,
    report: Report,
) -> tuple[MetricResult, ...]:
    """Let the start version answer the held-out rows, and record the adapter's gain over it.

    Args:
        start: The version.
        plan: The run's plan.
        data: The run's data.
        model: The proven adapter on its base. Its weights are replaced by those of the version.
        proof: The adapter's proof.
        model_id: The logged model that the metrics are linked to.
        step: The step of the adapter.
        folder: Receives the table.
        report: Receives metrics, table and one line for each metric.
    """
    load_start(model, start.adapter)
    with scoring(plan.rewards) as score_answers:
        answers = _answers(plan, data, model, report)
        if score_answers is not None:
            answers = replace(answers, rewards=score_answers(data.eval_rows, answers.answers))
    seed, names = plan.config.training.seed, list(plan.config.eval.metrics)
    gains = gain_over(proof, data.eval_rows, answers, metrics=names, seed=seed)
    _record(gains, answers, model_id, step, report)
    report.text(folder / START_TABLE, json.dumps(_table(proof, answers), ensure_ascii=False), HELD_OUT_FOLDER)
    for gain in gains:
        report.stage("proof", metric_line(gain, other=start.uri))
    if answers.answer_ids and proof.lengths is not None:
        report.stage("proof", length_line(answers.mean_tokens, proof.lengths.adapter, other=start.uri))
    return gains


def _answers(plan: Plan, data: PreparedData, model: PeftModel, report: Report) -> AnswerSet:
    return measure(
        model,
        plan.renderer.tokenizer,
        data.eval_rows,
        max_new_tokens=int(plan.config.eval.max_new_tokens),
        stop_token_ids=plan.renderer.stop_token_ids,
        answer_prefix=plan.renderer.answer_prefix,
        on_progress=lambda done, total: report.progress(done, total, "answers of the start version", stage="proof"),
    )


def _record(
    gains: tuple[MetricResult, ...], answers: AnswerSet, model_id: str | None, step: int, report: Report
) -> None:
    values = {f"{EVAL_ANSWER_TOKENS}start": answers.mean_tokens} if answers.answer_ids else {}
    for metric in gains:
        values |= {
            f"{EVAL_START}{metric.name}": metric.base,
            f"{EVAL_GAIN_OVER_START}{metric.name}": metric.gain.value,
            f"{EVAL_GAIN_OVER_START_LOW}{metric.name}": metric.gain.low,
            f"{EVAL_GAIN_OVER_START_HIGH}{metric.name}": metric.gain.high,
        }
    report.metrics(values, step=step, model_id=model_id)


def _table(proof: EvalReport, answers: AnswerSet) -> dict[str, object]:
    columns = ["prompt", "reference", "start_answer", "adapter_answer"]
    rows = zip(proof.rows, answers.answers, strict=True)
    return {
        "columns": columns,
        "data": [[row["prompt"], row["reference"], answer, row["adapter_answer"]] for row, answer in rows],
    }
