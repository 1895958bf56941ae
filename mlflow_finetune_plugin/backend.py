"""MLflow's project backend ``finetune``. The only module that knows MLflow Projects.

``mlflow run`` does not wait for a plugin and returns 0 whatever happens. So on the command line ``run`` itself waits,
shows progress and fails. From Python it returns at once, and ``wait()`` waits.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from types import FrameType
from typing import Any

from mlflow.exceptions import ExecutionException
from mlflow.projects.backend.abstract_backend import AbstractBackend
from mlflow.projects.submitted_run import SubmittedRun

from mlflow_finetune_plugin.errors import FinetuneError
from mlflow_finetune_plugin.jobs.folder import JobFolder
from mlflow_finetune_plugin.jobs.progress import ProgressDisplay
from mlflow_finetune_plugin.submission.experiment import chosen_experiment
from mlflow_finetune_plugin.submission.mlflow_run import Submission
from mlflow_finetune_plugin.submission.submitted_job import submit

CANCEL_PATIENCE_S = 60.0


class FinetuneRun(SubmittedRun):
    """The handle of a submitted run. The supervisor decides the run's status; the handle only reads it."""

    def __init__(self, run_id: str, folder: JobFolder, tracking_uri: str) -> None:
        self._run_id = run_id
        self.folder = folder
        self._tracking_uri = tracking_uri

    @property
    def run_id(self) -> str:
        return self._run_id

    def wait(self) -> bool:
        """Print progress to stderr until the run has ended. Returns whether it is FINISHED."""
        ProgressDisplay(self.folder, sys.stderr).until_outcome()
        return self.get_status() == "FINISHED"

    @property
    def tracking_uri(self) -> str:
        return self._tracking_uri

    def get_status(self) -> str:
        """Return RUNNING, FINISHED, FAILED or KILLED."""
        outcome = self.folder.read("outcome")
        if outcome is not None:
            return str(outcome["status"])
        from mlflow import MlflowClient

        return str(MlflowClient(self._tracking_uri).get_run(self._run_id).info.status)

    def reason(self) -> str:
        """Return why the run has its status; empty while it runs."""
        outcome = self.folder.read("outcome")
        return str(outcome["reason"]) if outcome else ""

    def cancel(self) -> None:
        """Cancel the run and wait until it has ended, at most a minute."""
        self.request_cancel("cancel() was called")
        deadline = time.monotonic() + CANCEL_PATIENCE_S
        while self.folder.read("outcome") is None and time.monotonic() < deadline:
            time.sleep(0.1)

    def request_cancel(self, by: str) -> None:
        """Request the end of the run without waiting. The supervisor checks for requests ten times a second."""
        if self.folder.read("outcome") is None and self.folder.cancel_requested_by() is None:
            self.folder.request_cancel(by)


class FinetuneBackend(AbstractBackend):
    """``mlflow run PROJECT -b finetune -e lora -P ...``"""

    def run(
        self,
        project_uri: str,
        entry_point: str,
        params: Mapping[str, Any] | None,
        version: str | None,
        backend_config: Mapping[str, Any] | None,
        tracking_uri: str,
        experiment_id: str,
    ) -> FinetuneRun:
        """Check the request, start it and, on the command line, wait. Raises ExecutionException with one clear message."""
        cli = _command_line()
        submission = Submission(
            project_uri=project_uri,
            entry_point=entry_point,
            parameters={str(name): parameter_text(value) for name, value in (params or {}).items()},
            version=version,
            backend_config=dict(backend_config or {}),
            tracking_uri=tracking_uri,
            experiment_id=chosen_experiment(str(experiment_id), is_explicit=_names_experiment(cli)),
            run_name=(cli or {}).get("run_name"),
            run_id=(cli or {}).get("run_id"),
        )
        held: list[int] = []
        try:
            with interruptions_held(held) if cli is not None else nullcontext():
                job = submit(submission)
        except FinetuneError as error:
            raise ExecutionException(str(error)) from None
        run = FinetuneRun(job.run_id, job.folder, job.tracking_uri)
        if cli is None:
            return run
        print(f"  run      {run.run_id}", file=sys.stderr, flush=True)
        if job.detach:
            print(f"  detached; follow it in MLflow or with: tail -f {job.folder.report}", file=sys.stderr)
            return run
        wait_in_foreground(run, held)
        return run


@contextmanager
def interruptions_held(held: list[int]) -> Iterator[None]:
    """Hold the first Ctrl-C or SIGTERM back until the run that is being created can be cancelled. A second one acts at
    once.
    """

    def hold(number: int, frame: FrameType | None) -> None:
        if held:
            raise KeyboardInterrupt
        held.append(number)

    before = {number: signal.signal(number, hold) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def wait_in_foreground(run: FinetuneRun, held: Sequence[int] = ()) -> None:
    """Wait as a shell command does: Ctrl-C and SIGTERM (also those in ``held``) cancel the run, and a failure is an
    error.
    """

    def on_terminate(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    previous = signal.signal(signal.SIGTERM, on_terminate)
    try:
        if signal.SIGINT in held:
            raise KeyboardInterrupt
        if held:
            on_terminate(held[0], None)
        finished = run.wait()
    except (KeyboardInterrupt, SystemExit) as interruption:
        by = "Ctrl-C" if isinstance(interruption, KeyboardInterrupt) else "mlflow run received SIGTERM"
        print(f"\n  stopping the run ({by}) ...", file=sys.stderr, flush=True)
        run.request_cancel(by)
        run.cancel()
        print(f"  {run.get_status()}: {run.reason()}", file=sys.stderr, flush=True)
        raise
    finally:
        signal.signal(signal.SIGTERM, previous)
    outcome = run.folder.read("outcome") or {}
    if outcome and not outcome["recorded"]:
        print(
            "  note     the tracking server is away; the supervisor keeps trying until it has written the status",
            file=sys.stderr,
        )
    if not finished:
        raise ExecutionException(
            f"Run (ID '{run.run_id}') {run.get_status()}: {run.reason() or 'no supervisor is left; see mlflow-finetune doctor'}"
        )


def parameter_text(value: Any) -> str:
    """Return a parameter as ``-P`` would take it; from Python it may be a number, a list or None."""
    return json.dumps(value) if value is None or isinstance(value, (list, dict)) else str(value)


def _names_experiment(cli: Mapping[str, Any] | None) -> bool:
    return cli is not None and (cli.get("experiment_name") is not None or cli.get("experiment_id") is not None)


def _command_line() -> dict[str, Any] | None:
    """Return the parameters of ``mlflow run``; None for a call from Python, also from another click command."""
    import click

    from mlflow_finetune_plugin.internals.mlflow import run_command

    context = click.get_current_context(silent=True)
    if context is None or context.command is not run_command():
        return None
    return dict(context.params)
