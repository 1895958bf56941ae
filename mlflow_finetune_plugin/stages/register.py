"""The last stage: register the proven model as a version, describe the run, and show what it came to and what is next."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from mlflow_finetune_plugin.evaluation.results import EvalReport
from mlflow_finetune_plugin.jobs.report import Report
from mlflow_finetune_plugin.stages.champion import champion_news
from mlflow_finetune_plugin.stages.context import RunContext
from mlflow_finetune_plugin.stages.log import LoggedRun
from mlflow_finetune_plugin.stages.outages import with_patience
from mlflow_finetune_plugin.stages.plan import PlannedRun
from mlflow_finetune_plugin.stages.records.description import (
    metric_label,
    no_interval_line,
    run_description,
    summary,
    version_description,
)
from mlflow_finetune_plugin.store.links import run_page, version_page
from mlflow_finetune_plugin.store.names import CHALLENGER, CHECKPOINTS_FOLDER, CONTENT_DIGEST_TAG, DESCRIPTION_TAG
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
    tags = logged.identity.tags() | {CONTENT_DIGEST_TAG: logged.adapter.content_digest}
    version = _register(client, planned, logged, proof, tags, report)
    uri = logged.adapter.uri if version is None else version.uri
    report.tags({**tags, DESCRIPTION_TAG: run_description(planned.plan, planned.data, proof, uri)})
    may_promote = False
    if version is None or settings.register_as is None:
        report.stage("model", f"{uri} (not registered: the recipe has no register.name)")
    else:
        report.stage("model", f"{uri}, {_alias_of(proof)}")
        first, digest = settings.register_as.first_champion, logged.identity.adapter_digest
        news = champion_news(client, version, proof, first, digest, context, report)
        report.stage("champion", news.line)
        may_promote = news.may_promote
    if line := no_interval_line(proof, of_votes=bool(planned.plan.votes.files)):
        report.stage("gate", line, colour="yellow")
    for line in _pages(client, context, version, report):
        report.stage("page", line)
    for command in next_commands(version, uri, may_promote=may_promote, is_reward_model=proof.rewards is not None):
        report.stage("next", command)
    return {
        "model_uri": uri,
        "model_id": logged.adapter.model_id,
        "summary": summary(proof, uri),
        "obsolete_artifacts": [] if settings.training.keep_checkpoints else [CHECKPOINTS_FOLDER],
    }


def _register(
    client: MlflowClient,
    planned: PlannedRun,
    logged: LoggedRun,
    proof: EvalReport,
    tags: Mapping[str, str],
    report: Report,
) -> RegisteredVersion | None:
    section = planned.plan.config.register_as
    if section is None:
        return None
    description = version_description(planned.plan, proof)
    return with_patience(
        lambda: register_adapter(
            client,
            logged.adapter.uri,
            section.name,
            tags=tags,
            description=description,
            is_challenger=proof.is_better,
        ),
        report,
    )


def _alias_of(proof: EvalReport) -> str:
    metric = proof.metrics[0]
    if proof.is_better:
        return f"alias {CHALLENGER}"
    values = f"{metric_label(metric.name)} {metric.base:.3g} -> {metric.adapter:.3g}"
    over = "not better than its base" if proof.rewards is None else f"not clearly better than {proof.over}"
    return f"no alias, because it is {over}: {values}"


def _pages(
    client: MlflowClient, context: RunContext, version: RegisteredVersion | None, report: Report
) -> Iterator[str]:
    """Yield where MLflow shows the run and the version: an address, or the command that opens a local store."""
    run = with_patience(lambda: client.get_run(context.run_id), report)
    yield run_page(context.tracking_uri, run.info.experiment_id, context.run_id)
    if version is not None:
        yield version_page(context.tracking_uri, version.name, version.version)


def next_commands(
    version: RegisteredVersion | None, uri: str, *, may_promote: bool, is_reward_model: bool = False
) -> list[str]:
    """Return the commands that a user is likely to want now, ready to be copied. A reward model is not served."""
    if version is None:
        return [f"mlflow-finetune run . -e evaluate -P model={uri} -P eval_data=FILE"]
    use = [f"mlflow-finetune serve {version.name}", f"mlflow-finetune playground --model {version.name}"]
    if is_reward_model:
        use = [f"mlflow.pyfunc.load_model({version.uri!r}).predict([{{'messages': [...]}}])"]
    return [
        *use,
        *([f"mlflow-finetune promote {version.name} --version {version.version}"] if may_promote else []),
    ]
