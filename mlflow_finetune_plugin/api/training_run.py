"""Run a training or an evaluation: ``ft.run``, ``ft.evaluate``, and ``ft.submit`` to start a run in the background."""

from __future__ import annotations

import html
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from mlflow_finetune_plugin.errors import RunFailedError, TrackingError, one_line, without_secrets

if TYPE_CHECKING:
    from mlflow_finetune_plugin.backend import FinetuneRun


@dataclass(frozen=True)
class RunResult:
    """A run that has FINISHED.

    ``model_uri`` names the registered version, or the logged model where the recipe registers none. ``metrics`` holds
    the run's last metrics by their MLflow names. ``summary`` is the line that the run ended with.
    """

    run_id: str
    status: str
    model_uri: str | None
    summary: str
    metrics: Mapping[str, float]
    tracking_uri: str

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {**asdict(self), "metrics": dict(self.metrics)}

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td><code>{html.escape(name)}</code></td><td>{value:,.4g}</td></tr>"
            for name, value in sorted(self.metrics.items())
        )
        return (
            f"<p><b>{html.escape(self.status)}</b> run <code>{html.escape(self.run_id)}</code>: "
            f"{html.escape(self.summary)}</p><details><summary>metrics</summary><table>{rows}</table></details>"
        )


def run(
    project: str | os.PathLike[str] = ".",
    entry_point: str | None = None,
    parameters: Mapping[str, Any] | None = None,
    *,
    version: str | None = None,
    backend_config: Mapping[str, Any] | None = None,
    experiment_name: str | None = None,
    run_name: str | None = None,
) -> RunResult:
    """Train, prove, log and register, and wait for the end. The same as ``mlflow run PROJECT -b finetune``.

    Progress goes to stderr. An interrupt (Ctrl-C, a notebook's stop button) cancels the run.

    Args:
        project: folder or git URI of a project with a ``finetune.yaml``.
        entry_point: for example ``lora``; None runs the project's ``main`` entry point, or ``lora`` where it has none.
        parameters: overrides of the recipe, as ``-P`` takes them: ``{"learning_rate": 2e-4, "data.train":
            "rows.jsonl"}``.
        version: git commit, tag or branch of ``project``.
        backend_config: as ``--backend-config`` takes it, for example ``{"gpus_per_node": 1}``.
        experiment_name: MLflow experiment; created when it does not exist. None is the experiment that the environment or
            ``mlflow.set_experiment`` names, else the one with the project's name.
        run_name: name of the MLflow run; None makes one such as ``lora-2026-11-22-1``.

    Raises:
        ConfigError: the request is not valid; nothing was started.
        RunFailedError: the run ended as FAILED or KILLED; its message says why.
    """
    return wait(
        submit(
            project,
            entry_point,
            parameters,
            version=version,
            backend_config=backend_config,
            experiment_name=experiment_name,
            run_name=run_name,
        )
    )


def evaluate(
    model: str,
    data: str | os.PathLike[str] | None = None,
    *,
    project: str | os.PathLike[str] = ".",
    parameters: Mapping[str, Any] | None = None,
    experiment_name: str | None = None,
    run_name: str | None = None,
) -> RunResult:
    """Prove a registered adapter again, on other held-out rows. The same as ``-e evaluate``.

    Args:
        model: ``my-bot``, ``my-bot/1``, ``my-bot@champion`` or a ``models:/`` URI.
        data: file of held-out rows; None takes ``data.eval`` of the project's recipe.
        project: folder with the recipe whose metrics and limits apply.
        parameters: further overrides of the recipe.

    Raises:
        ConfigError: the request is not valid; nothing was started.
        RunFailedError: the evaluation failed; its message says why.
    """
    overrides = {**(parameters or {}), "model": model}
    if data is not None:
        overrides["data.eval"] = os.fspath(data)
    return run(project, "evaluate", overrides, experiment_name=experiment_name, run_name=run_name)


def submit(
    project: str | os.PathLike[str] = ".",
    entry_point: str | None = None,
    parameters: Mapping[str, Any] | None = None,
    *,
    version: str | None = None,
    backend_config: Mapping[str, Any] | None = None,
    experiment_name: str | None = None,
    run_name: str | None = None,
    guard: Callable[[], Any] | None = None,
) -> FinetuneRun:
    """Check the request, start the run and return its handle at once.

    The run continues without the caller. The handle is MLflow's ``SubmittedRun``: ``wait()``, ``get_status()``,
    ``cancel()``.

    Args:
        guard: returns a context manager that surrounds the submission; the command line holds back Ctrl-C with it.
        The others: as for ``run``.

    Raises:
        ConfigError, ProjectError, DataError, BaseModelError, PlanError, TrackingError: nothing was started.
    """
    from contextlib import nullcontext

    import mlflow

    from mlflow_finetune_plugin.backend import FinetuneRun, parameter_text
    from mlflow_finetune_plugin.submission.mlflow_run import Submission
    from mlflow_finetune_plugin.submission.submitted_job import submit as submit_job

    request = Submission(
        project_uri=os.fspath(project),
        entry_point=entry_point or "main",
        parameters={name: parameter_text(value) for name, value in (parameters or {}).items()},
        version=version,
        backend_config=dict(backend_config or {}),
        tracking_uri=mlflow.get_tracking_uri(),
        experiment_id=_experiment_id(experiment_name),
        run_name=run_name,
        run_id=os.environ.get("MLFLOW_RUN_ID"),  # set when an MLproject's command calls this: then the run exists
    )
    with guard() if guard is not None else nullcontext():
        job = submit_job(request)
    return FinetuneRun(job.run_id, job.folder, job.tracking_uri)


def wait(handle: FinetuneRun, interrupts: list[int] | None = None) -> RunResult:
    """Wait for a submitted run and return its result.

    Args:
        handle: what ``submit`` returned.
        interrupts: numbers of signals that arrived during the submission; the run is cancelled for them.

    Raises:
        RunFailedError: the run ended as FAILED or KILLED.
    """
    from mlflow.exceptions import ExecutionException

    from mlflow_finetune_plugin.backend import wait_in_foreground

    if threading.current_thread() is threading.main_thread():
        try:
            wait_in_foreground(handle, interrupts or ())
        except ExecutionException as error:
            raise RunFailedError(str(error), handle.run_id) from None
    elif not handle.wait():  # signals can only be handled in the main thread
        raise RunFailedError(f"run {handle.run_id} is {handle.get_status()}: {handle.reason()}", handle.run_id)
    return _result(handle)


def _result(handle: FinetuneRun) -> RunResult:
    from mlflow import MlflowClient

    outcome = handle.folder.read("outcome") or {}
    result = outcome.get("result") or {}
    tracking_uri = handle.tracking_uri
    return RunResult(
        run_id=handle.run_id,
        status=str(outcome.get("status", handle.get_status())),
        model_uri=result.get("model_uri"),
        summary=str(result.get("summary", outcome.get("reason", ""))),
        metrics=dict(MlflowClient(tracking_uri).get_run(handle.run_id).data.metrics),
        tracking_uri=without_secrets(tracking_uri),
    )


def _experiment_id(name: str | None) -> str | None:
    """Return the experiment that the user chose, as ``mlflow run`` finds it; None for the project's own.

    Raises:
        TrackingError: The server cannot answer.
    """
    import mlflow

    from mlflow_finetune_plugin.internals.mlflow import experiment_id as experiment_of_mlflow
    from mlflow_finetune_plugin.store.clients import check_store_answers
    from mlflow_finetune_plugin.submission.experiment import chosen_experiment

    try:
        if name is None:
            experiment_id = str(os.environ.get("MLFLOW_EXPERIMENT_ID") or experiment_of_mlflow())
            return chosen_experiment(experiment_id, is_explicit=False)
        check_store_answers(mlflow.get_tracking_uri())
        client = mlflow.MlflowClient()
        experiment = client.get_experiment_by_name(name)
        return str(experiment.experiment_id if experiment else client.create_experiment(name))
    except TrackingError:
        raise
    except Exception as error:  # tracking stores raise many types; the user needs the server's own message
        raise TrackingError(
            f"tracking server {without_secrets(mlflow.get_tracking_uri())}: {one_line(error)}"
        ) from error
