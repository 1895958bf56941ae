"""The run as MLflow holds it: what the supervisor writes there, and how failures of the tracking server are told apart.

A server that is away is waited for; a request that the server refuses will be refused again, so it is noted and left.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_finetune_plugin.errors import TrackingError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.tracing.client import TracingClient

logger = logging.getLogger(__name__)

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
