"""The way to MLflow for handlers that run side by side in threads.

MLflow is imported here, when the app starts and nothing runs beside it: functions elsewhere import parts of it when they are
first called, and two threads that do so at once lock each other out (``_DeadlockError``).
"""

from __future__ import annotations

import threading
from contextlib import suppress

import mlflow
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from mlflow_finetune_plugin.tracking import command_client

_lock = threading.Lock()
_clients: dict[tuple[str, str], MlflowClient] = {}


def registry_client() -> MlflowClient:
    """Where MLflow tracks now. The first of each place is made by one thread alone, with the stores that it imports."""
    with _lock:
        stores = (mlflow.get_tracking_uri(), mlflow.get_registry_uri())
        if stores not in _clients:
            client = command_client()
            with suppress(MlflowException):  # whoever asks for something is told
                client.search_registered_models(max_results=1)
            _clients[stores] = client
        return _clients[stores]
