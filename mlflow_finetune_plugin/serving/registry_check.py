"""Check the registry before a service starts."""

from __future__ import annotations

from collections.abc import Callable

from mlflow_finetune_plugin.errors import TrackingError
from mlflow_finetune_plugin.store.clients import check_store_answers, check_store_exists, current_store_uris


def check_registry(report: Callable[[str], None]) -> None:
    """Check that the tracking store and the registry exist and answer, in less than ten seconds.

    A server that does not answer is reported, and the service starts: it waits for the server, and serves the versions
    that it served last until the server is back.

    Args:
        report: Receives one line about a server that does not answer.

    Raises:
        TrackingError: A store on this disk does not exist.
    """
    for uri in current_store_uris():
        check_store_exists(uri)
    for uri in current_store_uris():
        try:
            check_store_answers(uri, timeout_s=4.0)
        except TrackingError as error:
            report(f"{error}; the service keeps trying")
            return
