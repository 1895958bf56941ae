"""Train on a model's votes for the page: what a training would do, start it, follow it, stop it.

A training is started by ``mlflow-finetune run`` in a separate process, which ends when the job runs under its own supervisor. The
job does not belong to the app: it continues when the page is closed or the app ends. What is shown is read from the job folders
of this machine, so a page that is opened later shows it, too.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gradio_app.versions.cards import list_versions, read_card
from gradio_app.versions.promotion import environment_for
from mlflow_finetune_plugin.config.run_config import RECIPE_FILE
from mlflow_finetune_plugin.errors import MoveError, without_secrets
from mlflow_finetune_plugin.jobs.folder import JobFolder, jobs_home, supervisor_alive
from mlflow_finetune_plugin.jobs.report import ReportReader
from mlflow_finetune_plugin.methods import load_method
from mlflow_finetune_plugin.store.names import BASE, CHAMPION
from mlflow_finetune_plugin.store.registered_model import read_model, registry_faults
from mlflow_finetune_plugin.votes.training.files import VoteFile, write_vote_files

if TYPE_CHECKING:
    from mlflow import MlflowClient

OBJECTIVES = ("dpo", "kto")
STARTS = (CHAMPION, BASE)
SUBMISSION_LIMIT_S = 600.0
"""The longest time in which a training is checked and begins."""
_NO_SUPERVISOR_PATIENCE_S = 20.0

Phase = Literal["starting", "running", "finished", "failed", "killed"]
_PHASES: dict[str, Phase] = {"FINISHED": "finished", "FAILED": "failed", "KILLED": "killed"}
_WHAT = {"dpo": "pairs of a better and a worse answer", "kto": "answers that are good or bad"}


@dataclass(frozen=True)
class PlannedTraining:
    """A training on votes as it would begin now. ``votes`` are the rows of the votes that are there now."""

    model: str
    objective: str
    start: str
    project: Path
    parameters: Mapping[str, str]
    votes: VoteFile
    has_recipe: bool

    @property
    def text(self) -> str:
        begin = (
            "the base, with a new adapter"
            if self.start == BASE
            else f"version {self.start}, whose adapter is continued"
        )
        recipe = (
            f"the recipe of {self.project.name}"
            if self.has_recipe
            else "defaults, because the playground has no --project"
        )
        return (
            f"{self.objective} learns from {self.votes.rows:,} {_WHAT[self.objective]}. It starts from {begin}, and uses {recipe}. "
            f"One tenth of the rows is held out. The result is registered as a new version of {self.model}, and as challenger if it is "
            "better than its base on the held-out rows; the champion does not change. The training runs on the machine of this playground, also when "
            f"this page is closed. The votes: {self.votes.sentence}."
        )

    @property
    def command(self) -> list[str]:
        """The arguments of ``mlflow-finetune``, with which the same training is started in a terminal."""
        given = [word for name, value in self.parameters.items() for word in ("-P", f"{name}={value}")]
        return ["run", str(self.project), "-e", self.objective, *given]


def plan_training(
    client: MlflowClient, model: str, objective: str, start: str, project: Path | None
) -> PlannedTraining:
    """Return the plan. Reads votes and registry, and writes nothing that stays.

    Args:
        client: The client of the registry.
        model: The registered model.
        objective: One of ``OBJECTIVES``.
        start: ``champion``, where there is none the newest version; or ``base``.
        project: The project folder whose recipe is used; None means defaults.

    Raises:
        MoveError: The choice is not valid, or there is no version to start from.
        DataError: The votes give nothing to learn from.
        TrackingError: MLflow does not answer.
    """
    if objective not in OBJECTIVES or start not in STARTS:
        raise MoveError(
            f"{objective!r:.40} from {start!r:.40}: not a choice; fix: {' or '.join(OBJECTIVES)}, from {' or '.join(STARTS)}"
        )
    with registry_faults(model):
        number = _start_version(client, model)
        base = _base_of(client, model, number) if start == BASE and project is None else None
    parameters = {"data": f"votes:{model}", "data.eval": "0.1", "register": model}
    if start == CHAMPION:
        parameters["start_from"] = f"models:/{model}/{number}"
    elif base is not None:
        parameters["base_model"] = base
    with tempfile.TemporaryDirectory(prefix="mlflow-finetune-") as folder:
        form = load_method("objective", objective).ROWS
        (votes,) = write_vote_files([model], form, Path(folder), grouped=True)
    has_recipe = project is not None and (project / RECIPE_FILE).is_file()
    place = project if project is not None else jobs_home() / "votes-projects" / model
    return PlannedTraining(
        model, objective, number if start == CHAMPION else BASE, place, parameters, votes, has_recipe
    )


def _start_version(client: MlflowClient, model: str) -> str:
    """Return the champion's number, or the newest version's where there is no champion."""
    aliases, _ = read_model(client, model)
    if CHAMPION in aliases:
        return aliases[CHAMPION]
    newest = list_versions(client, model, limit=1).rows
    if not newest:
        raise MoveError(f"{model}: no version to start from; fix: train and register one first")
    return newest[0].number


def _base_of(client: MlflowClient, model: str, number: str) -> str:
    """Return the base model of a version, as its run recorded it."""
    base = read_card(client, model, number).version.base_model
    if base is None:
        raise MoveError(
            f"{model}: the run of version {number} does not say what its base is; fix: start from the version, or start the playground "
            "with --project FOLDER"
        )
    return base


# what runs -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainingState:
    """A training on votes, running or ended.

    ``lines`` are the stages that are done, as a terminal shows them. ``figures`` are those of the present stage, such as loss.
    ``reason`` says why it ended. ``version`` is the registered version of a finished one.
    """

    phase: Phase
    objective: str = ""
    run_id: str = ""
    experiment_id: str = ""
    stage: str = ""
    done: int = 0
    total: int = 0
    unit: str = ""
    figures: tuple[tuple[str, float], ...] = ()
    lines: tuple[str, ...] = ()
    reason: str = ""
    version: str | None = None

    @property
    def is_running(self) -> bool:
        return self.phase in ("starting", "running")


class _FollowedJob:
    """A job that trains on votes, with what its report has shown so far."""

    def __init__(self, folder: JobFolder, objective: str) -> None:
        self.folder, self._objective = folder, objective
        self._reader = ReportReader(folder.report)
        self._progress: dict[str, Any] = {}
        self._lines: list[str] = []
        self._supervised_at = time.monotonic()

    def state(self) -> TrainingState:
        outcome = self.folder.read("outcome")  # before the report, whose last lines come first
        for event in self._reader.new_events():
            if event["event"] == "progress":
                self._progress = event
            elif event["event"] == "stage" and event["text"]:
                self._lines.append(f"{event['name']}: {event['text']}")
        phase, reason, result = self._end(outcome)
        run, progress = self.folder.read("run") or {}, self._progress
        known = ("event", "time_ms", "done", "total", "unit", "stage")
        return TrainingState(
            phase=phase,
            objective=self._objective,
            run_id=str(run.get("run_id", "")),
            experiment_id=str(run.get("experiment_id", "")),
            stage=str(progress.get("stage", "")),
            done=int(progress.get("done", 0)),
            total=int(progress.get("total", 0)),
            unit=str(progress.get("unit", "")),
            figures=tuple((name, value) for name, value in progress.items() if name not in known),
            lines=tuple(self._lines[-12:]),
            reason=reason,
            version=str(result.get("model_uri") or "").rpartition("/")[2] or None,
        )

    def _end(self, outcome: dict[str, Any] | None) -> tuple[Phase, str, dict[str, Any]]:
        if outcome is not None:
            result = outcome.get("result") or {}
            return _PHASES[outcome["status"]], str(result.get("summary") or outcome["reason"]), result
        if supervisor_alive(self.folder):
            self._supervised_at = time.monotonic()
        elif time.monotonic() - self._supervised_at > _NO_SUPERVISOR_PATIENCE_S:
            return "failed", "nothing supervises the job; fix: mlflow-finetune doctor", {}
        return "running", "", {}


class VoteTrainings:
    """The trainings on votes of this machine, at most one at a time for each model. Can be used in any thread."""

    def __init__(self, *, limit_s: float = SUBMISSION_LIMIT_S) -> None:
        self._limit_s = limit_s
        self._lock = threading.Lock()
        self._starting: set[str] = set()
        self._jobs: dict[str, _FollowedJob | None] = {}
        self._refusals: dict[str, TrainingState] = {}

    def begin(self, plan: PlannedTraining, person: str) -> None:
        """Start a training in the background: its state is ``starting`` until its run exists.

        Raises:
            MoveError: Another training on the model's votes runs.
        """
        with self._lock:
            state = self._state(plan.model)
            if state is not None and state.is_running:
                run = f" (run {state.run_id})" if state.run_id else ""
                raise MoveError(
                    f"{plan.model}: a training on its votes runs already{run}; fix: wait for its end, or stop it first"
                )
            self._starting.add(plan.model)
            self._refusals.pop(plan.model, None)
        threading.Thread(target=self._submit, args=(plan, person), name="votes-training", daemon=True).start()

    def state(self, model: str) -> TrainingState | None:
        """Return the state of the model's newest training on votes; None where there is none."""
        with self._lock:
            return self._state(model)

    def stop(self, model: str, person: str) -> None:
        """Request the end of the model's training. Raises MoveError where none runs."""
        with self._lock:
            job = self._newest(model)
            if job is None or job.state().phase != "running":
                raise MoveError(
                    f"{model}: no training on its votes runs that could be stopped; fix: see its run in MLflow"
                )
            job.folder.request_cancel(person or "the playground")

    def _state(self, model: str) -> TrainingState | None:
        if model in self._starting:
            return TrainingState("starting")
        if model in self._refusals:
            return self._refusals[model]
        job = self._newest(model)
        return job.state() if job is not None else None

    def _newest(self, model: str) -> _FollowedJob | None:
        for folder in reversed(JobFolder.all()):
            if folder.id not in self._jobs and folder.read("run") is not None:
                self._jobs[folder.id] = _followed(folder)
            job = self._jobs.get(folder.id)
            if job is not None and _is_on_votes_of(model, job.folder.read("config") or {}):
                return job
        return None

    def _submit(self, plan: PlannedTraining, person: str) -> None:
        try:
            fault = self._submitted(plan, person)
        except Exception as error:  # the thread's end is the page's only news
            fault = f"{type(error).__name__}: {error}"
        with self._lock:
            self._starting.discard(plan.model)
            if fault:
                self._refusals[plan.model] = TrainingState("failed", plan.objective, reason=fault)

    def _submitted(self, plan: PlannedTraining, person: str) -> str:
        """Run the command until the job runs; return why it does not."""
        plan.project.mkdir(parents=True, exist_ok=True)
        command = ["-m", "mlflow_finetune_plugin.cli", *plan.command, "-c", json.dumps({"detach": True})]
        try:
            done = subprocess.run(
                [sys.executable, *command],
                env=environment_for(person),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=self._limit_s,
                start_new_session=True,  # Ctrl-C ends the app, not a submission
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"the training had not begun after {self._limit_s / 60:.0f} minutes; fix: start it in a terminal"
        if done.returncode == 0:
            return ""
        said = without_secrets(done.stderr.decode("utf-8", "replace")).strip()
        return said.rpartition("mlflow-finetune: ")[2][-2000:] or f"the command ended with code {done.returncode}"


def _followed(folder: JobFolder) -> _FollowedJob | None:
    """Return a job that trains on votes; None for any other."""
    config = folder.read("config") or {}
    return _FollowedJob(folder, str(config.get("objective", ""))) if _votes_in(config) else None


def _votes_in(config: Mapping[str, Any]) -> list[str]:
    """Return the sources of votes that a job trains on."""
    data = config.get("data")
    files = data.get("train") if isinstance(data, dict) else None
    return [str(file["path"]) for file in files or [] if str(file["path"]).startswith("votes:")]


def _is_on_votes_of(model: str, config: Mapping[str, Any]) -> bool:
    register = config.get("register") or {}
    return f"votes:{model}" in _votes_in(config) and register.get("name") == model
