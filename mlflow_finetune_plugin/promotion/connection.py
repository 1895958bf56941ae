"""The connection of promote, rollback, history and watch to the tracking server and registry."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlflow_finetune_plugin.store.clients import (
    check_store_answers,
    check_store_exists,
    command_client,
    current_store_uris,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient


def connect(client: MlflowClient | None = None) -> MlflowClient:
    """Return ``client``, or a client of the current tracking server where it is None.

    MLflow would create a store that does not exist, and try to reach a dead server for minutes. Both are errors here.

    Raises:
        TrackingError: There is no store, or it does not answer within seconds.
    """
    if client is not None:
        return client
    for uri in current_store_uris():
        check_store_exists(uri)
        check_store_answers(uri)
    return command_client()
