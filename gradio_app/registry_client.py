"""Access to MLflow for handlers that run concurrently in threads.

MLflow is imported here, when the app starts and no other thread runs. Functions elsewhere import parts of MLflow on
their first call, and two threads that do so at once can deadlock in the import system (``_DeadlockError``).
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
    """Return the client of MLflow's present stores. One thread alone creates it, because that imports the stores."""
    with _lock:
        stores = (mlflow.get_tracking_uri(), mlflow.get_registry_uri())
        if stores not in _clients:
            client = command_client()
            with suppress(MlflowException):  # The next request reports the fault.
                client.search_registered_models(max_results=1)
            _clients[stores] = client
        return _clients[stores]


async def ask_mlflow(
    read: Callable[Arguments, Result], *arguments: Arguments.args, **named: Arguments.kwargs
) -> Result:
    """Call ``read`` in a new thread, because it may wait for MLflow.

    The event loop's few threads write votes, look up names and hash passwords, and must not wait for a server that does
    not answer. Raises what ``read`` raises, and TrackingError where too many calls already wait.
    """
    if not _calls.acquire(blocking=False):
        raise TrackingError(
            f"{MOST_CALLS} requests already wait for MLflow; fix: check whether it answers, then try again"
        )
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
