"""Write a run's status, tags and heartbeat to MLflow, and end the runs whose processes died."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_finetune_plugin.jobs.folder import JobFolder, jobs_home
from mlflow_finetune_plugin.store.clients import client_for, is_refusal, logger
from mlflow_finetune_plugin.store.names import ATTEMPT_TAG, HEARTBEAT_TAG, HOST_TAG, JOB_TAG, STATUS_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient


HEARTBEAT_EVERY_S = 20.0

HEARTBEAT_EXPIRES_S = 300.0

_PARAM_LIMIT = 6000

_TAG_LIMIT = 5000


class RunRecord:
    """One run and the attempt that may write to it."""

    def __init__(self, client: MlflowClient, run_id: str, attempt: int) -> None:
        self._client = client
        self.run_id = run_id
        self._attempt = attempt
        self._steps_known: dict[str, set[int]] = {}

    def is_mine(self) -> bool:
        """Return False once a later attempt owns the run. This writer must then write nothing more."""
        tags = self._client.get_run(self.run_id).data.tags
        return int(tags.get(ATTEMPT_TAG, self._attempt)) == self._attempt

    def heartbeat(self) -> None:
        self._client.set_tag(self.run_id, HEARTBEAT_TAG, str(int(time.time())))

    def apply(self, event: dict[str, Any]) -> None:
        """Copy one event of the worker's report to MLflow. Events that are only for display are skipped."""
        handler = getattr(self, f"_{event['event']}", None)
        if handler is not None:
            handler(event)

    def finish(self, status: str, reason: str, files: Iterable[tuple[Path, str]], *, must_upload: bool = True) -> None:
        """Write the end: reason, logs and status. The status comes last, so that a finished run is complete.

        With ``must_upload`` it is an error if a log file cannot be uploaded now, but perhaps later.
        """
        if not self.is_mine():
            logger.warning("run %s belongs to a later attempt; its status is left alone", self.run_id)
            return
        self._client.set_tag(self.run_id, STATUS_TAG, reason[:_TAG_LIMIT])
        for path, folder in files:
            try:
                self._client.log_artifact(self.run_id, str(path), folder)
            except Exception as error:
                if must_upload and not (is_refusal(error) or isinstance(error, OSError)):
                    raise
                logger.warning("%s could not be uploaded: %s", path, error)
        self._client.set_terminated(self.run_id, status)

    def remove_artifacts(self, folders: Iterable[str]) -> None:
        """Remove folders of artifacts that a finished run no longer needs. What the store refuses to remove stays."""
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        for folder in folders:
            try:
                if self._client.list_artifacts(self.run_id, folder):
                    uri = self._client.get_run(self.run_id).info.artifact_uri
                    get_artifact_repository(uri, tracking_uri=self._client.tracking_uri).delete_artifacts(folder)
            except Exception as error:  # an artifact store raises errors of many kinds, and the run has finished
                logger.warning("the artifacts %s could not be removed: %s: %s", folder, type(error).__name__, error)

    def _metrics(self, event: dict[str, Any]) -> None:
        from mlflow.entities import Metric

        model_id = event.get("model_id")
        metrics = [
            Metric(key, float(value), event["time_ms"], event["step"], model_id=model_id, run_id=self.run_id)
            for key, value in event["values"].items()
            if model_id is not None or event["step"] not in self._steps_of_earlier_attempts(key)
        ]
        if metrics:
            self._client.log_batch(self.run_id, metrics=metrics)

    def _steps_of_earlier_attempts(self, key: str) -> set[int]:
        """Return the steps that were logged before the interruption. A resumed run repeats them, and the first values
        stay.
        """
        if self._attempt == 1:
            return set()
        if key not in self._steps_known:
            self._steps_known[key] = {metric.step for metric in self._client.get_metric_history(self.run_id, key)}
        return self._steps_known[key]

    def _params(self, event: dict[str, Any]) -> None:
        from mlflow.entities import Param

        known = (
            self._client.get_run(self.run_id).data.params if self._attempt > 1 else {}
        )  # MLflow keeps the first value
        items = [Param(key, param_text(value)) for key, value in event["values"].items() if key not in known]
        for start in range(0, len(items), 100):
            self._client.log_batch(self.run_id, params=items[start : start + 100])

    def _tags(self, event: dict[str, Any]) -> None:
        from mlflow.entities import RunTag

        self._client.log_batch(
            self.run_id, tags=[RunTag(key, _shortened(value, _TAG_LIMIT)) for key, value in event["values"].items()]
        )

    def _artifact(self, event: dict[str, Any]) -> None:
        self._client.log_artifact(self.run_id, event["path"], event["folder"] or None)

    def _checkpoint(self, event: dict[str, Any]) -> None:
        """Upload a checkpoint folder. If it was replaced by a later one, before or during the upload, a later event
        brings that one.
        """
        try:
            if Path(event["path"]).is_dir():
                self._client.log_artifacts(self.run_id, event["path"], event["folder"])
        except FileNotFoundError as error:
            logger.info("the checkpoint of step %s gave way to a later one: %s", event["step"], error)

    def _datasets(self, event: dict[str, Any]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        self._client.log_inputs(
            self.run_id,
            datasets=[
                DatasetInput(
                    Dataset(
                        name=entry["name"],
                        digest=entry["digest"],
                        source_type="local",
                        source=entry["source"],
                        profile=entry["profile"],
                    ),
                    tags=[InputTag("mlflow.data.context", entry["context"])],
                )
                for entry in event["inputs"]
            ],
        )


def param_text(value: str) -> str:
    """Return the value of a param as MLflow records it: a long one is cut."""
    return _shortened(value, _PARAM_LIMIT)


def _shortened(value: str, limit: int) -> str:
    return value if len(value) <= limit else value[: limit - 40] + " ... (whole in finetune/config.json)"


def reap_expired(
    client: MlflowClient, experiment_ids: list[str], *, now_s: float, act: bool = True
) -> list[tuple[str, str]]:
    """Find runs of this package with status RUNNING whose heartbeat stopped, and mark them FAILED with ``act``.

    Returns:
        (run id, what is wrong). A run of this host is left to its job folder, which knows more, while that exists.
    """
    import socket

    expired: list[tuple[str, str]] = []
    token: str | None = None
    while True:
        page = client.search_runs(
            experiment_ids,
            filter_string=f"attributes.status = 'RUNNING' and tags.`{HEARTBEAT_TAG}` != ''",
            max_results=200,
            page_token=token,
        )
        for run in page:
            age_s = now_s - float(run.data.tags[HEARTBEAT_TAG])
            if age_s < HEARTBEAT_EXPIRES_S or (
                run.data.tags.get(HOST_TAG) == socket.gethostname() and _has_folder(run)
            ):
                continue
            reason = f"no sign of life from {run.data.tags.get(HOST_TAG, 'its host')} for {age_s / 60:.0f} minutes: the host or its network died"
            expired.append((run.info.run_id, reason))
        token = page.token
        if not token:
            break
    for run_id, reason in expired if act else []:  # after the last page: pages are counted among those that run
        client.set_tag(run_id, STATUS_TAG, reason)
        client.set_terminated(run_id, "FAILED")
    return expired


def experiment_of(folder: JobFolder, client: MlflowClient) -> str | None:
    """Return the experiment of a job's run; None when the command ended before it created the project's experiment."""
    run, job = folder.read("run") or {}, folder.read("job") or {}
    experiment_id = run.get("experiment_id") or job.get("experiment_id")
    if experiment_id is not None:
        return str(experiment_id)
    experiment = client.get_experiment_by_name(job["experiment_name"])
    return None if experiment is None else str(experiment.experiment_id)


def reap_neighbours(folder: JobFolder) -> None:
    """End the runs of a job's experiment whose host died. Every finished supervisor does this for the others."""
    try:
        client = client_for((folder.read("job") or {})["tracking_uri"])
        experiment_id = experiment_of(folder, client)
        for run_id, reason in reap_expired(client, [experiment_id], now_s=time.time()) if experiment_id else []:
            logger.info("run %s marked FAILED: %s", run_id, reason)
    except Exception as error:
        logger.warning("could not look for dead runs: %s: %s", type(error).__name__, error)


def _has_folder(run: Any) -> bool:
    return (jobs_home() / "jobs" / run.data.tags.get(JOB_TAG, "-")).is_dir()
