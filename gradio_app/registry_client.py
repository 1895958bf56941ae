"""The way to MLflow for handlers that run side by side in threads.

MLflow is imported here, when the app starts and nothing runs beside it: functions elsewhere import parts of it when they are
first called, and two threads that do so at once lock each other out (``_DeadlockError``).
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import ParamSpec, TypeVar

import mlflow
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from mlflow_finetune_plugin.errors import TrackingError
from mlflow_finetune_plugin.store.clients import command_client

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

MOST_CALLS = 64
_calls = threading.BoundedSemaphore(MOST_CALLS)
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


async def ask_mlflow(
    read: Callable[Arguments, Result], *arguments: Arguments.args, **named: Arguments.kwargs
) -> Result:
    """``read`` in a thread of its own, for what may wait for MLflow; never in the event loop's few threads.

    Those write votes, look names up and hash passwords, and none of that may wait for a server that does not answer.
    Raises what ``read`` raises, and TrackingError where too many wait already.
    """
    if not _calls.acquire(blocking=False):
        raise TrackingError(f"{MOST_CALLS} questions wait for MLflow already; fix: look whether it answers, try again")
    done: Future[Result] = Future()
    done.set_running_or_notify_cancel()

    def work() -> None:
        try:
            done.set_result(read(*arguments, **named))
        except BaseException as error:
            done.set_exception(error)
        finally:
            _calls.release()

    threading.Thread(target=work, name="mlflow-call", daemon=True).start()
    return await asyncio.wrap_future(done)
