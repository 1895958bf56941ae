"""The fourth stage: base and adapter answer the same held-out rows, and the run records the gain and the forgetting."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

from peft import PeftModel

from mlflow_finetune_plugin.data.preparation import PreparedData
from mlflow_finetune_plugin.evaluation.forgetting import DEFAULT_TEXT, read_texts
from mlflow_finetune_plugin.evaluation.results import EvalReport, MetricResult, RewardFigures
from mlflow_finetune_plugin.jobs.report import Report
from mlflow_finetune_plugin.planning.plan import Plan
from mlflow_finetune_plugin.rewards import scoring
from mlflow_finetune_plugin.stages.context import RunContext
from mlflow_finetune_plugin.stages.log import LoggedRun
from mlflow_finetune_plugin.stages.plan import PlannedRun
from mlflow_finetune_plugin.stages.records.description import HELD_OUT, coloured_proof_lines
from mlflow_finetune_plugin.stages.train import train_aside
from mlflow_finetune_plugin.store.clients import metric_part
from mlflow_finetune_plugin.store.names import (
    CALIBRATION_TABLE,
    COMPLETIONS_FOLDER,
    EVAL_ADAPTER,
    EVAL_ANSWER_TOKENS,
    EVAL_BASE,
    EVAL_GAIN,
    EVAL_GAIN_HIGH,
    EVAL_GAIN_LOW,
    EVAL_KL,
    EVAL_ROWS,
    FORGETTING,
    FORGETTING_HIGH,
    FORGETTING_LOW,
    FORGETTING_TABLE,
    FORGETTING_TAG,
    GAIN_PICTURE,
    HELD_OUT_FOLDER,
    HELD_OUT_TABLE,
    PLOTS_FOLDER,
    PROOF_TAG,
    REWARD,
    START_COMPLETIONS,
)


def prove(planned: PlannedRun, logged: LoggedRun, context: RunContext, report: Report) -> EvalReport:
    """Compare base and adapter on the held-out rows and record the result on the run and on the logged model."""
    plan, data = planned.plan, planned.data
    model = logged.take_model()
    proof = prove_adapter(plan, data, model, report)
    record_proof(proof, logged.adapter.model_id, logged.steps, context.folder, report)
    if plan.start is not None:
        from mlflow_finetune_plugin.stages.records import gain_over_start

        gain_over_start.compare_with_start(
            plan.start, plan, data, model, proof, logged.adapter.model_id, logged.steps, context.folder, report
        )
    del model  # its memory is needed by what follows
    if plan.config.eval.single_task_references and proof.tasks:
        from mlflow_finetune_plugin.stages import single_task_references

        costs = single_task_references.costs_of_mixing(plan, data, proof, context.folder, report, train=train_aside)
        single_task_references.record_interference(costs, context.folder, report)
    return proof


def prove_adapter(plan: Plan, data: PreparedData, model: PeftModel, report: Report) -> EvalReport:
    """Let base and adapter answer the held-out rows, and measure both on text that the adapter was not trained on."""
    from mlflow_finetune_plugin.evaluation.proof import prove as compare  # scipy is imported only after the first step

    settings = plan.config.eval
    texts = [] if settings.forgetting is False else read_texts(settings.forgetting or DEFAULT_TEXT)
    with scoring(plan.rewards) as score_answers:
        return compare(
            model,
            plan.renderer.tokenizer,
            data.eval_rows,
            metrics=list(settings.metrics),
            max_new_tokens=int(settings.max_new_tokens),
            stop_token_ids=plan.renderer.stop_token_ids,
            forgetting_texts=texts,
            answer_prefix=plan.renderer.answer_prefix,
            seed=plan.config.training.seed,
            on_progress=lambda side, done, total: report.progress(done, total, f"answers of the {side}", stage="proof"),
            score_answers=score_answers,
        )


def record_proof(
    proof: EvalReport, model_id: str | None, step: int, folder: Path, report: Report, *, rows: str = HELD_OUT
) -> None:
    """Record the metrics on the run and on the logged model, the rows as a table and the gains as a picture.

    ``rows`` is what the lines for people call the rows.
    """
    report.metrics(proof_metrics(proof), step=step, model_id=model_id)
    columns = list(proof.rows[0])
    table = {"columns": columns, "data": [[row[column] for column in columns] for row in proof.rows]}
    text = json.dumps(table, ensure_ascii=False)
    report.text(folder / HELD_OUT_TABLE, text, HELD_OUT_FOLDER)
    tables = [f"{HELD_OUT_FOLDER}/{HELD_OUT_TABLE}", *_completion_tables(folder)]
    logged = json.dumps([{"path": path, "type": "table"} for path in tables])
    report.tags({"mlflow.loggedArtifacts": logged, PROOF_TAG: hashlib.sha256(text.encode()).hexdigest()})
    if proof.texts:
        text = json.dumps([asdict(sums) for sums in proof.texts])
        report.text(folder / FORGETTING_TABLE, text, HELD_OUT_FOLDER)
        report.tags({FORGETTING_TAG: hashlib.sha256(text.encode()).hexdigest()})
    if proof.rewards is not None:
        buckets = [asdict(bucket) for bucket in proof.rewards.calibration]
        report.text(folder / CALIBRATION_TABLE, json.dumps(buckets), HELD_OUT_FOLDER)
    from mlflow_finetune_plugin.evaluation.plots import plot_gain, plot_tasks

    figure = plot_gain(proof)
    figure.savefig(folder / GAIN_PICTURE, dpi=120)
    report.artifact(folder / GAIN_PICTURE)
    if proof.tasks:
        figure = plot_tasks({task: results[0] for task, results in proof.tasks.items()}, "adapter against base")
        figure.savefig(folder / "tasks.png", dpi=120)
        report.artifact(folder / "tasks.png", PLOTS_FOLDER)
    for line, colour in coloured_proof_lines(proof, rows=rows).items():
        report.stage("proof", line, colour=colour)


def _completion_tables(folder: Path) -> list[str]:
    """Return the tables of completions that the training wrote."""
    files = [folder / START_COMPLETIONS, *sorted(folder.glob("completions-*.json"))]
    return [f"{COMPLETIONS_FOLDER}/{file.name}" for file in files if file.is_file()]


def proof_metrics(proof: EvalReport) -> dict[str, float]:
    """``eval/base/M``, ``eval/adapter/M``, ``eval/gain/M``, ``eval/gain_low/M``, ``eval/gain_high/M``, ``forgetting/...``.

    With several tasks each again as ``eval/base/M/TASK`` and so on.
    """
    values: dict[str, float] = {EVAL_ROWS: float(len(proof.rows))}
    for metric in proof.metrics:
        values |= _sides_and_gain(metric, "")
    for task, results in proof.tasks.items():
        for metric in results:
            values |= _sides_and_gain(metric, f"/{metric_part(task)}")
    if proof.rewards is not None:
        values |= _reward_figures(proof.rewards)
    if proof.lengths is not None:
        values |= {f"{EVAL_ANSWER_TOKENS}{side}": tokens for side, tokens in asdict(proof.lengths).items()}
    if proof.kl is not None:
        values[EVAL_KL] = proof.kl
    if proof.forgetting is not None:
        values |= {
            FORGETTING: proof.forgetting.value,
            FORGETTING_LOW: proof.forgetting.low,
            FORGETTING_HIGH: proof.forgetting.high,
        }
    return values


def _reward_figures(figures: RewardFigures) -> dict[str, float]:
    values = {
        "accuracy": figures.accuracy.value,
        "accuracy_low": figures.accuracy.low,
        "accuracy_high": figures.accuracy.high,
        "margin": figures.margin,
        "mean": figures.mean,
        "deviation": figures.deviation,
        "calibration_error": figures.calibration_error,
        "longer_wins": figures.longer_wins,
        **({} if figures.length_correlation is None else {"length_correlation": figures.length_correlation}),
    }
    return {f"{REWARD}{name}": value for name, value in values.items()}


def _sides_and_gain(metric: MetricResult, task: str) -> dict[str, float]:
    return {
        f"{EVAL_BASE}{metric.name}{task}": metric.base,
        f"{EVAL_ADAPTER}{metric.name}{task}": metric.adapter,
        f"{EVAL_GAIN}{metric.name}{task}": metric.gain.value,
        f"{EVAL_GAIN_LOW}{metric.name}{task}": metric.gain.low,
        f"{EVAL_GAIN_HIGH}{metric.name}{task}": metric.gain.high,
    }
