"""The last stage: register the proven model as a version, describe the run, and show what it came to and what is next."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_finetune_plugin.errors import TrackingError
from mlflow_finetune_plugin.evaluation.results import EvalReport, MetricResult
from mlflow_finetune_plugin.jobs.report import Report
from mlflow_finetune_plugin.stages.context import RunContext
from mlflow_finetune_plugin.stages.log import LoggedRun
from mlflow_finetune_plugin.stages.outages import with_patience
from mlflow_finetune_plugin.stages.plan import PlannedRun
from mlflow_finetune_plugin.stages.records.description import (
    metric_label,
    run_description,
    summary,
    version_description,
)
from mlflow_finetune_plugin.stages.records.gate import held_out_digest
from mlflow_finetune_plugin.store.links import run_page, version_page
from mlflow_finetune_plugin.store.names import (
    CHALLENGER,
    CHAMPION,
    CHECKPOINTS_FOLDER,
    DESCRIPTION_TAG,
    EVAL_ADAPTER,
    HELD_OUT_TAG,
)
from mlflow_finetune_plugin.store.registered_model import read_model
from mlflow_finetune_plugin.store.registry import RegisteredVersion, register_adapter

if TYPE_CHECKING:
    from mlflow import MlflowClient


def register(
    planned: PlannedRun, logged: LoggedRun, proof: EvalReport, context: RunContext, report: Report
) -> dict[str, Any]:
    """Register the model when the recipe names one, describe the run, and report its end.

    Returns:
        ``model_uri``, ``model_id``, ``summary`` (the run in one line), and ``obsolete_artifacts``: the folders of the
        run that a finished run no longer needs.
    """
    from mlflow import MlflowClient

    client, settings = MlflowClient(), planned.plan.config
    version = _register(client, planned, logged, proof, report)
    uri = logged.adapter.uri if version is None else version.uri
    report.tags({**logged.identity.tags(), DESCRIPTION_TAG: run_description(planned.plan, planned.data, proof, uri)})
    if version is None:
        report.stage("model", f"{uri} (not registered: the recipe has no register.name)")
    else:
        report.stage("model", f"{uri}, alias {CHALLENGER}")
        report.stage("champion", champion_line(client, version, proof, context.folder, report))
    for line in _pages(client, context, version, report):
        report.stage("page", line)
    for command in next_commands(version, uri):
        report.stage("next", command)
    return {
        "model_uri": uri,
        "model_id": logged.adapter.model_id,
        "summary": summary(proof, uri),
        "obsolete_artifacts": [] if settings.training.keep_checkpoints else [CHECKPOINTS_FOLDER],
    }


def _register(
    client: MlflowClient, planned: PlannedRun, logged: LoggedRun, proof: EvalReport, report: Report
) -> RegisteredVersion | None:
    section = planned.plan.config.register_as
    if section is None:
        return None
    tags, description = logged.identity.tags(), version_description(planned.plan, proof)
    return with_patience(
        lambda: register_adapter(client, logged.adapter.uri, section.name, tags=tags, description=description), report
    )


def champion_line(
    client: MlflowClient, version: RegisteredVersion, proof: EvalReport, folder: Path, report: Report
) -> str:
    """Compare the version with the champion in the first metric, where both answered the same held-out rows."""
    try:
        number, tags, metrics = with_patience(lambda: _champion(client, version.name), report)
    except TrackingError as error:
        return f"could not be read: {error}"
    if number is None:
        return f"{version.name} has none yet; promote this version to make it the champion"
    if tags.get(HELD_OUT_TAG) != held_out_digest(folder):
        return f"version {number} was proven on other held-out rows; promote asks both versions the same rows"
    metric = proof.metrics[0]
    value = metrics.get(f"{EVAL_ADAPTER}{metric.name}")
    if value is None:
        return f"version {number} was not measured in {metric_label(metric.name)}; promote compares both versions"
    return _comparison(metric, number, value)


def _comparison(metric: MetricResult, number: str, champion: float) -> str:
    gain = metric.adapter - champion if metric.higher_is_better else champion - metric.adapter
    verdict = "better than" if gain > 0 else "worse than" if gain < 0 else "equal to"
    return (
        f"{verdict} version {number}: {metric_label(metric.name)} {champion:.3g} -> {metric.adapter:.3g} "
        f"on the same {metric.rows:,} held-out rows, gain {gain:+.3g}; promote decides whether that is enough"
    )


def _champion(client: MlflowClient, name: str) -> tuple[str | None, dict[str, str], dict[str, float]]:
    """Return the champion's number, and the tags and metrics of its run; no number where there is no champion."""
    from mlflow.exceptions import MlflowException

    number = read_model(client, name)[0].get(CHAMPION)
    if number is None:
        return None, {}, {}
    try:
        run = client.get_run(str(client.get_model_version(name, number).run_id))
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        return number, {}, {}  # its run was deleted
    return number, dict(run.data.tags), dict(run.data.metrics)


def _pages(
    client: MlflowClient, context: RunContext, version: RegisteredVersion | None, report: Report
) -> Iterator[str]:
    """Yield where MLflow shows the run and the version: an address, or the command that opens a local store."""
    run = with_patience(lambda: client.get_run(context.run_id), report)
    yield run_page(context.tracking_uri, run.info.experiment_id, context.run_id)
    if version is not None:
        yield version_page(context.tracking_uri, version.name, version.version)


def next_commands(version: RegisteredVersion | None, uri: str) -> list[str]:
    """Return the commands that a user is likely to want now, ready to be copied."""
    if version is None:
        return [f"mlflow-finetune run . -e evaluate -P model={uri} -P eval_data=FILE"]
    return [
        f"mlflow-finetune serve {version.name}",
        f"mlflow-finetune playground --model {version.name}",
        f"mlflow-finetune promote {version.name} --version {version.version}",
    ]
