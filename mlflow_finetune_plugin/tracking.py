"""The run as MLflow holds it: what the supervisor writes there, and how failures of the tracking server are told apart.

A server that is away is waited for; a request that the server refuses will be refused again, so it is noted and left.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_finetune_plugin.errors import TrackingError
from mlflow_finetune_plugin.jobs import jobs_home

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.tracing.client import TracingClient

logger = logging.getLogger(__name__)

STATUS_TAG = "finetune.status_reason"
HEARTBEAT_TAG = "finetune.heartbeat"
ATTEMPT_TAG = "finetune.attempt"
JOB_TAG = "finetune.job"
HOST_TAG = "finetune.host"
HEARTBEAT_EVERY_S = 20.0
HEARTBEAT_EXPIRES_S = 300.0
_REFUSALS = {
    "INVALID_PARAMETER_VALUE",
    "BAD_REQUEST",
    "RESOURCE_DOES_NOT_EXIST",
    "RESOURCE_ALREADY_EXISTS",
    "RESOURCE_LIMIT_EXCEEDED",
    "PERMISSION_DENIED",
    "INVALID_STATE",
    "FEATURE_DISABLED",
    "NOT_IMPLEMENTED",
}
_PASSING_STATUS = (408, 425, 429)  # timeout, too early, too many requests
_PARAM_LIMIT = 6000
_TAG_LIMIT = 5000


def is_refusal(error: Exception) -> bool:
    """True when asking again cannot help; everything else may be an outage."""
    status = getattr(getattr(error, "response", None), "status_code", None)  # of an artifact store behind HTTP
    if isinstance(status, int):
        return 400 <= status < 500 and status not in _PASSING_STATUS
    return getattr(error, "error_code", None) in _REFUSALS


def client_for(tracking_uri: str) -> MlflowClient:
    """A client whose calls fail within seconds, so that its caller decides how long to wait."""
    import os

    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri)


def tracing_client_for(tracking_uri: str) -> TracingClient:
    """MLflow's own looks for the files of a trace (one without spans may have some) where the process tracks, and fails
    where it was asked to look at another server.
    """
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
    from mlflow.tracing.client import TracingClient
    from mlflow.tracing.utils.artifact_utils import get_artifact_uri_for_trace

    class OfThatServer(TracingClient):  # type: ignore[misc]
        def _get_artifact_repo_for_trace(self, trace_info: Any) -> Any:
            return get_artifact_repository(get_artifact_uri_for_trace(trace_info), tracking_uri=self.tracking_uri)

    return OfThatServer(tracking_uri)


def command_client() -> MlflowClient:
    """Where MLflow tracks, for a command at whose end somebody waits: a server that is away is told within seconds, not waited
    for, and MLflow prints neither links nor bars into what the command says.
    """
    import os

    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    from mlflow import MlflowClient

    return MlflowClient()


class RunRecord:
    """One run and the attempt that may write to it."""

    def __init__(self, client: MlflowClient, run_id: str, attempt: int) -> None:
        self._client = client
        self.run_id = run_id
        self._attempt = attempt
        self._steps_known: dict[str, set[int]] = {}

    def is_mine(self) -> bool:
        """False once a later attempt owns the run: then this writer must be silent."""
        tags = self._client.get_run(self.run_id).data.tags
        return int(tags.get(ATTEMPT_TAG, self._attempt)) == self._attempt

    def heartbeat(self) -> None:
        self._client.set_tag(self.run_id, HEARTBEAT_TAG, str(int(time.time())))

    def apply(self, event: dict[str, Any]) -> None:
        """Carries one event of the worker's report over. Events that are only for watchers are passed by."""
        handler = getattr(self, f"_{event['event']}", None)
        if handler is not None:
            handler(event)

    def finish(self, status: str, reason: str, files: Iterable[tuple[Path, str]], *, must_upload: bool = True) -> None:
        """Writes the end: reason, logs, status; the status last, so that a finished run is complete.

        With ``must_upload`` a log file that cannot be uploaded now, for a reason that may pass, is an error.
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
        """A resumed run makes steps again that were logged before it died: they stay as they were logged."""
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
        items = [
            Param(key, _shortened(value, _PARAM_LIMIT)) for key, value in event["values"].items() if key not in known
        ]
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
        """A folder that gives way to later ones: when it has, or does meanwhile, a later one is on its way."""
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


def _shortened(value: str, limit: int) -> str:
    return value if len(value) <= limit else value[: limit - 40] + " ... (whole in finetune/config.json)"


def reap_expired(
    client: MlflowClient, experiment_ids: list[str], *, now_s: float, act: bool = True
) -> list[tuple[str, str]]:
    """Runs of ours that still say RUNNING though their heartbeat stopped: marked FAILED when ``act``.

    Returns (run id, what is wrong). A run of this host is left to its job folder, which knows more, while that is there.
    """
    import socket

    found: list[tuple[str, str]] = []
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
            found.append((run.info.run_id, reason))
        token = page.token
        if not token:
            break
    for run_id, reason in found if act else []:  # after the last page: pages are counted among those that run
        client.set_tag(run_id, STATUS_TAG, reason)
        client.set_terminated(run_id, "FAILED")
    return found


def _has_folder(run: Any) -> bool:
    return (jobs_home() / "jobs" / run.data.tags.get(JOB_TAG, "-")).is_dir()


def metric_part(task: str) -> str:
    """A name as a part of a metric's name, where MLflow takes only some characters."""
    return re.sub(r"[^\w\-. ]", "_", task, flags=re.ASCII).strip(". ") or "_"


_SQLITE_FILE = re.compile(r"^(sqlite(?:\+\w+)?:///)(?!/)([^?]+)(.*)$", re.DOTALL)


def absolute_store(tracking_uri: str, caller: Path) -> str:
    """A store on this disk as every process of the run must name it, wherever that process stands."""
    if tracking_uri in ("sqlite://", "sqlite:///:memory:"):
        raise TrackingError(
            f"tracking URI {tracking_uri}: lives in the memory of one process, and a run has several; fix: name a file or a server"
        )
    if found := _SQLITE_FILE.match(tracking_uri):
        return f"{found[1]}{caller / found[2]}{found[3]}"
    is_folder = tracking_uri and ":" not in tracking_uri and tracking_uri not in ("databricks", "uc", "databricks-uc")
    return str(caller / tracking_uri) if is_folder else tracking_uri
