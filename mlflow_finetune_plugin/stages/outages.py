"""Wait for a tracking server that does not answer, in stages that cannot continue without it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from mlflow_finetune_plugin.errors import FinetuneError, TrackingError, one_line
from mlflow_finetune_plugin.jobs.report import Report
from mlflow_finetune_plugin.store.clients import is_refusal

logger = logging.getLogger(__name__)

PATIENCE_S = 1800.0
Result = TypeVar("Result")


def with_patience(action: Callable[[], Result], report: Report, *, patience_s: float = PATIENCE_S) -> Result:
    """Return what ``action`` returns, and repeat it while the tracking server is away.

    A refusal or a FinetuneError of another cause is not repeated.

    Raises:
        TrackingError: The server refused, or was away for ``patience_s`` seconds.
    """
    from mlflow.exceptions import MlflowException
    from requests.exceptions import (
        RequestException,  # an artifact store behind HTTP raises it; it is not Python's ConnectionError
    )

    deadline = time.monotonic() + patience_s
    wait_s = 1.0
    while True:
        try:
            return action()
        except FinetuneError as error:
            if (
                not isinstance(error.__cause__, MlflowException)
                or is_refusal(error.__cause__)
                or time.monotonic() > deadline
            ):
                raise
            reason: Exception = error
        except (MlflowException, RequestException, ConnectionError, TimeoutError) as error:
            if is_refusal(error):
                raise TrackingError(f"the tracking server refused: {one_line(error)}") from error
            if time.monotonic() > deadline:
                raise TrackingError(
                    f"the tracking server was away for {patience_s / 60:.0f} minutes: {one_line(error)}"
                ) from error
            reason = error
        logger.warning("tracking server away: %s", one_line(reason))
        if wait_s == 1.0:
            report.note("the tracking server is away; waiting for it")
        time.sleep(wait_s)
        wait_s = min(30.0, 2 * wait_s)
