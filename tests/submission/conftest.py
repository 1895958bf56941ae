"""Requests to this package as ``mlflow run`` makes them. Real store, real files."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from conftest import Workplace
from submission_requests import DATA, assert_nothing_left

from mlflow_finetune_plugin.errors import FinetuneError
from mlflow_finetune_plugin.submission.mlflow_run import Submission
from mlflow_finetune_plugin.submission.submitted_job import SubmittedJob, submit


@pytest.fixture
def ask(desk: Workplace) -> Callable[..., SubmittedJob]:
    def ask(parameters: dict[str, str] | None = None, **more: object) -> SubmittedJob:
        request = {
            "project_uri": ".",
            "entry_point": "lora",
            "parameters": DATA if parameters is None else parameters,
            "version": None,
            "backend_config": {},
            "tracking_uri": desk.tracking_uri,
            "experiment_id": "0",
            **more,
        }
        return submit(Submission(**request))  # type: ignore[arg-type]

    return ask


@pytest.fixture
def refused(desk: Workplace, ask: Callable[..., SubmittedJob]) -> Callable[..., str]:
    """The message of a refusal, after making sure that it left no run and no job folder."""

    def refused(parameters: dict[str, str] | None = None, **more: object) -> str:
        with pytest.raises(FinetuneError) as caught:
            ask(parameters, **more)
        assert_nothing_left(desk)
        return str(caught.value)

    return refused
