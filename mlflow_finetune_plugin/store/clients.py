"""Connect to the tracking server and registry, and distinguish a server that is away from a request that it refuses.

Callers wait for a server that is away. A refused request would be refused again, so it is noted and left out.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import ssl
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from mlflow_finetune_plugin.errors import TrackingError, one_line, without_secrets

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
    """Return whether a repeated request cannot succeed. Any other error may be an outage."""
    status = getattr(getattr(error, "response", None), "status_code", None)  # of an artifact store behind HTTP
    if isinstance(status, int):
        return 400 <= status < 500 and status not in _PASSING_STATUS
    return getattr(error, "error_code", None) in _REFUSALS


def client_for(tracking_uri: str) -> MlflowClient:
    """Return a client whose calls fail within seconds, so that its caller decides how long to wait."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri)


def tracing_client_for(tracking_uri: str) -> TracingClient:
    """Return a client that reads the files of traces from its own server.

    MLflow's client looks for the files of a trace (one without spans may have some) on the server that the process
    tracks to, and fails if that is another one.
    """
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
    from mlflow.tracing.client import TracingClient
    from mlflow.tracing.utils.artifact_utils import get_artifact_uri_for_trace

    class OfThatServer(TracingClient):  # type: ignore[misc]
        def _get_artifact_repo_for_trace(self, trace_info: Any) -> Any:
            return get_artifact_repository(get_artifact_uri_for_trace(trace_info), tracking_uri=self.tracking_uri)

    return OfThatServer(tracking_uri)


def command_client() -> MlflowClient:
    """Return a client for a command that a person waits for.

    A server that is away is reported within seconds, and MLflow prints no links or progress bars into the command's
    output.
    """
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    from mlflow import MlflowClient

    return MlflowClient()


def metric_part(task: str) -> str:
    """Return a name with only the characters that MLflow allows in a metric's name."""
    return re.sub(r"[^\w\-. ]", "_", task, flags=re.ASCII).strip(". ") or "_"


_SQLITE_FILE = re.compile(r"^(sqlite(?:\+\w+)?:///)(?!/)([^?]+)(.*)$", re.DOTALL)


def absolute_store(tracking_uri: str, caller: Path) -> str:
    """Return the URI of a store on this disk with an absolute path, valid in every process of the run."""
    if tracking_uri in ("sqlite://", "sqlite:///:memory:"):
        raise TrackingError(
            f"tracking URI {tracking_uri}: lives in the memory of one process, and a run has several; fix: name a file or a server"
        )
    if match := _SQLITE_FILE.match(tracking_uri):
        return f"{match[1]}{caller / match[2]}{match[3]}"
    is_folder = tracking_uri and ":" not in tracking_uri and tracking_uri not in ("databricks", "uc", "databricks-uc")
    return str(caller / tracking_uri) if is_folder else tracking_uri


# checks before any work, without importing MLflow, which takes seconds ---------------------------------------------------

_DATABASE_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
_NO_STORE_FIX = "fix: set MLFLOW_TRACKING_URI to the store that has your runs, or train a model first with mlflow run"
_ANSWERS_S = 5.0
_GATEWAY_FAULTS = (502, 503, 504)


def current_tracking_uri() -> str:
    """Return the tracking URI that MLflow uses in this process."""
    mlflow = sys.modules.get("mlflow")
    if mlflow is not None and hasattr(mlflow, "get_tracking_uri"):
        return str(mlflow.get_tracking_uri())
    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        return uri
    has_folder_store = any(Path("mlruns").glob("[0-9]*/meta.yaml"))  # MLflow's own rule for its default
    return "mlruns" if has_folder_store else "sqlite:///mlflow.db"


def current_store_uris() -> tuple[str, ...]:
    """Return the tracking URI, and the registry URI if it is another one, that MLflow uses in this process."""
    mlflow = sys.modules.get("mlflow")
    if mlflow is not None and hasattr(mlflow, "get_registry_uri"):
        registry = str(mlflow.get_registry_uri())
    else:
        registry = os.environ.get("MLFLOW_REGISTRY_URI", "")
    return tuple(dict.fromkeys(filter(None, (current_tracking_uri(), registry))))


def check_store_exists(uri: str) -> None:
    """Check that the tracking store or registry exists, if it is a file or folder on this disk.

    MLflow creates a store that does not exist, and a command that only reads must not leave an empty one behind.

    Raises:
        TrackingError: There is no such file or folder.
    """
    path = _store_path(uri)
    if path is not None and not path.exists() and not Path(unquote(str(path))).exists():
        raise TrackingError(f"no MLflow tracking store at {path.absolute()}; {_NO_STORE_FIX}")


def check_store_answers(uri: str, *, timeout_s: float = _ANSWERS_S) -> None:
    """Check that the server or database behind a tracking URI accepts connections.

    A server that refuses the request, e.g. because it wants a login, answers. Stores on this disk always do.

    Args:
        uri: The tracking or registry URI.
        timeout_s: Seconds to wait for the connection, and again for the answer.

    Raises:
        TrackingError: The server cannot be reached, or does not answer in time.
    """
    parts = urlsplit(uri)
    database = parts.scheme.partition("+")[0]
    try:
        if parts.scheme in ("http", "https"):
            with urllib.request.urlopen(without_secrets(uri).rstrip("/") + "/health", timeout=timeout_s):
                pass
        elif database in _DATABASE_PORTS and parts.hostname:
            address = (parts.hostname, parts.port or _DATABASE_PORTS[database])
            with socket.create_connection(address, timeout=timeout_s):
                pass
    except urllib.error.HTTPError as error:
        if error.code in _GATEWAY_FAULTS:
            raise TrackingError(
                f"the tracking server {without_secrets(uri)} is not behind its proxy: HTTP {error.code}; "
                "fix: start it, or set MLFLOW_TRACKING_URI to one that runs"
            ) from error
        return  # any other refusal is an answer
    except (OSError, ValueError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(reason, ssl.SSLError):
            return  # a server answers; MLflow has its own settings for certificates
        raise TrackingError(
            f"the tracking server {without_secrets(uri)} does not answer: {one_line(Exception(reason))}; "
            "fix: start it, or set MLFLOW_TRACKING_URI to one that runs"
        ) from error


def _store_path(uri: str) -> Path | None:
    """Return the file or folder that a store on this disk uses; None for any other store."""
    if uri.startswith("sqlite"):
        name = uri.partition(":///")[2].partition("?")[0]
        return Path(name) if name and name != ":memory:" else None
    if uri.startswith("file:"):
        return Path(unquote(urlsplit(uri).path))
    is_folder = uri and ":" not in uri and uri not in ("databricks", "uc", "databricks-uc")
    return Path(uri) if is_folder else None
