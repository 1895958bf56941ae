"""What a new version means for the champion: a comparison with it, or the decision whether this version becomes the first one."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mlflow_finetune_plugin.errors import FinetuneError, TrackingError, one_line
from mlflow_finetune_plugin.evaluation.results import EvalReport, MetricResult
from mlflow_finetune_plugin.jobs.report import Report
from mlflow_finetune_plugin.stages.context import RunContext
from mlflow_finetune_plugin.stages.outages import with_patience
from mlflow_finetune_plugin.stages.records.description import metric_label
from mlflow_finetune_plugin.stages.records.gate import held_out_digest
from mlflow_finetune_plugin.store.names import ADAPTER_DIGEST_TAG, CHAMPION, EVAL_ADAPTER, HELD_OUT_TAG
from mlflow_finetune_plugin.store.registered_model import read_model
from mlflow_finetune_plugin.store.registry import RegisteredVersion

if TYPE_CHECKING:
    from mlflow import MlflowClient

_RECORD_PATIENCE_S = 120.0
_POLL_S = 0.1


@dataclass(frozen=True)
class ChampionNews:
    """A line for the person who watches the run, and whether ``promote`` could still change something."""

    line: str
    may_promote: bool


def champion_news(
    client: MlflowClient,
    version: RegisteredVersion,
    proof: EvalReport,
    first_champion: Literal["auto", "manual"],
    adapter_digest: str,
    context: RunContext,
    report: Report,
) -> ChampionNews:
    """Compare the version with the champion. Where there is none, judge by the policy whether this version becomes it.

    Nothing here can fail the run: its model is registered, and ``promote`` can do the same later.
    """
    try:
        number, tags, metrics = with_patience(lambda: _champion(client, version.name), report)
    except TrackingError as error:
        return ChampionNews(f"could not be read: {error}", may_promote=True)
    if number is not None:
        is_better = proof.is_better
        return ChampionNews(_beside(number, tags, metrics, proof.metrics[0], context.folder), may_promote=is_better)
    if not proof.is_better:
        over = "better than its base" if proof.rewards is None else f"clearly better than {proof.over}"
        return ChampionNews(
            f"{version.name} has none yet, and a version that is not {over} does not become it",
            may_promote=False,
        )
    if first_champion == "manual":
        return ChampionNews(f"{version.name} has none yet; promote this version to make it the champion", True)
    return _first(client, version, adapter_digest, context, report)


def _beside(number: str, tags: dict[str, str], metrics: dict[str, float], metric: MetricResult, folder: Path) -> str:
    """Compare the version with the champion in the first metric, where both answered the same held-out rows."""
    if tags.get(HELD_OUT_TAG) != held_out_digest(folder):
        return f"version {number} was proven on other held-out rows; promote asks both versions the same rows"
    value = metrics.get(f"{EVAL_ADAPTER}{metric.name}")
    if value is None:
        return f"version {number} was not measured in {metric_label(metric.name)}; promote compares both versions"
    gain = metric.adapter - value if metric.higher_is_better else value - metric.adapter
    verdict = "better than" if gain > 0 else "worse than" if gain < 0 else "equal to"
    return (
        f"{verdict} version {number}: {metric_label(metric.name)} {value:.3g} -> {metric.adapter:.3g} "
        f"on the same {metric.rows:,} held-out rows, gain {gain:+.3g}; promote decides whether that is enough"
    )


def _first(
    client: MlflowClient, version: RegisteredVersion, adapter_digest: str, context: RunContext, report: Report
) -> ChampionNews:
    from mlflow.exceptions import MlflowException

    from mlflow_finetune_plugin.promotion.request import promote_first  # scipy is imported only after the first step

    command = f"mlflow-finetune promote {version.name} --version {version.version}"
    try:
        _wait_until_recorded(client, adapter_digest, context, report)
        result = promote_first(client, version.name, version.version)
    except (FinetuneError, MlflowException) as error:
        why = one_line(error)
        return ChampionNews(f"{version.name} has none yet, and this version was not judged: {why}", may_promote=True)
    if result is None:
        return ChampionNews(f"another version became champion meanwhile; to compare the two: {command}", True)
    if result.is_promoted:
        return ChampionNews(
            f"version {version.version}, because {version.name} had none and this version passed the gate", False
        )
    return ChampionNews(
        f"{version.name} has none yet, and this version did not pass the gate ({result.outcome}, {result.reason})", True
    )


def _wait_until_recorded(client: MlflowClient, adapter_digest: str, context: RunContext, report: Report) -> None:
    """Wait until the supervisor has copied the proof to MLflow, because the gate believes nothing else.

    The report is copied in its order, and the digest of the adapter comes last. Raises TrackingError after two minutes.
    """
    deadline = time.monotonic() + _RECORD_PATIENCE_S
    while True:
        tags = with_patience(lambda: client.get_run(context.run_id), report, patience_s=_RECORD_PATIENCE_S).data.tags
        if tags.get(ADAPTER_DIGEST_TAG) == adapter_digest:
            return
        if time.monotonic() > deadline:
            raise TrackingError(f"MLflow did not have the run's proof after {_RECORD_PATIENCE_S:.0f} s")
        time.sleep(_POLL_S)


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
