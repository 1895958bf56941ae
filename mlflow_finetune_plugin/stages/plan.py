"""The first stage: decide everything, prepare the data and forecast the cost, before any weight is read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mlflow_finetune_plugin.base_models.loading import device
from mlflow_finetune_plugin.config.run_config import RunConfig
from mlflow_finetune_plugin.data.mixture import Mixture
from mlflow_finetune_plugin.data.preparation import PreparedData
from mlflow_finetune_plugin.data.report.contents import UnusableDataError
from mlflow_finetune_plugin.jobs.console import Colour
from mlflow_finetune_plugin.jobs.report import Report
from mlflow_finetune_plugin.planning.forecast import Forecast, check_fits, forecast_run
from mlflow_finetune_plugin.planning.memory import mib
from mlflow_finetune_plugin.planning.plan import Plan, make_plan, mix_tasks, settle_on
from mlflow_finetune_plugin.planning.rows import THINKING_PARAM, prepare_rows
from mlflow_finetune_plugin.stages.context import RunContext
from mlflow_finetune_plugin.stages.records.data import dataset_source, flat_params, record_data, record_votes
from mlflow_finetune_plugin.stages.records.description import run_description
from mlflow_finetune_plugin.stages.records.identity import start_tags
from mlflow_finetune_plugin.stages.records.trained_rows import record_trained_rows
from mlflow_finetune_plugin.stages.resume import chose_before, record_drift
from mlflow_finetune_plugin.stages.rewards import check_rewards, record_rewards
from mlflow_finetune_plugin.stages.start import find_start, note_start
from mlflow_finetune_plugin.store.names import (
    ADAPTATION_TAG,
    BASE_MODEL_TAG,
    DESCRIPTION_TAG,
    OBJECTIVE_TAG,
    PLAN_MEMORY,
    PLAN_SECONDS,
    PROCESSES_TAG,
    RECORDS_FOLDER,
)

_VERDICT_COLOURS: dict[str, Colour] = {"fits": "green", "tight": "yellow", "does not fit": "red"}


@dataclass(frozen=True)
class PlannedRun:
    """What will be trained, on which rows."""

    plan: Plan
    data: PreparedData


def plan(config: RunConfig, context: RunContext, report: Report) -> PlannedRun:
    """Resolve every option, prepare the data, forecast memory and time, and record all of it.

    Raises:
        ConfigError: An option or the forecast does not fit.
        DataError: No row is left to train or to evaluate on; the run has the report.
    """
    start = find_start(config, context, report)
    draft = make_plan(config, processes=context.processes, start=start)
    torch.set_num_threads(draft.threads.count)
    may_choose = config.resume is None or chose_before(THINKING_PARAM, context.tracking_uri, context.run_id, report)
    draft, rows = prepare_data(draft, context.folder, report, may_choose=may_choose)
    if start is not None:
        rows = note_start(start, draft, rows, context, report)
    mixture, data = mix_tasks(draft, rows)
    settled, forecast, why_not = forecast_run(settle_on(draft, data), data)
    if config.resume is not None:
        record_drift(plan_params(settled), context.tracking_uri, context.run_id, context.folder, report)
    if settled.rewards:
        check_rewards(settled.rewards, data.train[:100]["fields"])
    record_plan(settled, data, context.folder, report)
    record_rewards(settled.rewards, report)
    record_trained_rows(data.trained_rows, settled.config.training.seed, context.folder, report)
    record_forecast(forecast, why_not, context.folder, report)
    record_mixture(mixture, settled.config.data.mixing, context.folder, report)
    report.tags({DESCRIPTION_TAG: run_description(settled, data)})
    check_fits(forecast)
    return PlannedRun(settled, data)


def prepare_data(plan: Plan, folder: Path, report: Report, *, may_choose: bool = True) -> tuple[Plan, PreparedData]:
    """Return the plan for these rows, and the data as tokens. The report of data that cannot be trained on is recorded before the error is raised."""
    try:
        return prepare_rows(plan, folder, may_choose=may_choose)
    except UnusableDataError as error:
        record_data(error.report, folder, report)
        raise


def plan_params(plan: Plan) -> dict[str, Any]:
    """Return the resolved config, flat, as params are logged, without the run that is resumed."""
    config = plan.config.model_dump(mode="json", by_alias=True, exclude={"resume", "is_adaptation_default"})
    return flat_params({**config, "options": plan.options})


def record_plan(plan: Plan, data: PreparedData, folder: Path, report: Report) -> None:
    """The resolved config, whole as an artifact and flat as params, with the reason of every chosen value; the data report."""
    config = {**plan.config.model_dump(mode="json", by_alias=True), "options": plan.options, "reasons": plan.reasons}
    report.params(plan_params(plan))
    report.text(folder / "config.json", json.dumps(config, indent=1, ensure_ascii=False), RECORDS_FOLDER)
    record_data(data.report, folder, report)
    votes = plan.votes.files
    record_votes(votes, folder, report)
    held_out = plan.config.data.eval if isinstance(plan.config.data.eval, list) else plan.config.data.train
    report.datasets(
        [
            {
                "name": plan.config.data.train[0].task or Path(plan.config.data.train[0].path).name,
                "context": "train",
                "digest": data.digest,
                **dataset_source(plan.config.data.train, data, votes),
            },
            {
                "name": "held-out",
                "context": "eval",
                "digest": data.eval_digest,
                **dataset_source(held_out, data, votes),
            },
        ]
    )
    report.tags(
        {
            BASE_MODEL_TAG: plan.base.name,
            ADAPTATION_TAG: plan.config.adaptation,
            OBJECTIVE_TAG: plan.config.objective,
            PROCESSES_TAG: str(plan.processes),
            **start_tags(plan.start),
        }
    )
    training = plan.config.training
    shared = "" if plan.processes == 1 else f" x {plan.processes} processes"
    report.stage(
        "plan",
        f"{plan.config.adaptation} x {plan.config.objective} on {plan.base.name}{f' from {plan.start.uri}' if plan.start else ''} ({plan.facts.parameters / 1e6:,.1f}M parameters, {plan.base.precision}, {device().type}); "
        f"learning rate {training.learning_rate:g}, batch {training.per_device_train_batch_size} x {training.gradient_accumulation_steps}{shared}; serving {plan.serving}",
    )
    summary_line = data.report.summary()
    report.stage("data", summary_line.removeprefix("data").strip())
    for warning in data.report.warnings:
        report.note(warning)


def record_mixture(mixture: Mixture, mixing: str, folder: Path, report: Report) -> None:
    """How often each task is drawn, when there are several."""
    if len(mixture.tasks) < 2:
        return
    shares = [{"task": share.task, "rows": share.rows, "drawn": share.drawn} for share in mixture.tasks]
    report.text(folder / "mixture.json", json.dumps(shares, indent=1, ensure_ascii=False), RECORDS_FOLDER)
    report.stage(
        "data",
        f"{len(shares)} tasks, mixing {mixing}: "
        + ", ".join(
            f"{share.task} {share.rows:,}{'' if share.rows == share.drawn else f' -> {share.drawn:,}'}"
            for share in mixture.tasks
        ),
    )


def record_forecast(forecast: Forecast | None, why_not: str, folder: Path, report: Report) -> None:
    """``plan/memory_mib`` (training, as ``train/peak_memory_mib`` measures it), ``plan/train_seconds``, the parts as an artifact."""
    if forecast is None:
        report.note(why_not)
        return
    report.text(folder / "plan.json", json.dumps(forecast.to_json(), indent=1), RECORDS_FOLDER)
    report.metrics({PLAN_MEMORY: mib(forecast.memory.training_and_loading), PLAN_SECONDS: forecast.seconds})
    report.stage("plan", forecast.line(), colour=_VERDICT_COLOURS[forecast.verdict])
    if forecast.verdict == "tight":
        report.note("memory is tight by the prediction: steps are made in smaller parts if it runs out")
