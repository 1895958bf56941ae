"""The supervisor, which owns a run's status: it starts the worker, copies its report to MLflow and writes the final
status.

It runs in a separate session, so it outlives the shell, and imports no torch. A forked sentinel notices its death and
starts a new supervisor, which adopts the running worker. So whatever dies, a process remains that knows how the run
ended. If everything died because the host restarted, the next command finds the job folder and ends the job
(``doctor``).

    python -m mlflow_finetune_plugin.jobs.supervisor JOB_FOLDER [--adopt N]      N: supervisors that this job has used
        up
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from mlflow_finetune_plugin.jobs.folder import JobFolder, ProcessId
from mlflow_finetune_plugin.jobs.report import ReportReader
from mlflow_finetune_plugin.jobs.run_record import HEARTBEAT_EVERY_S, RunRecord, experiment_of, reap_neighbours
from mlflow_finetune_plugin.jobs.workers import TERMINATION_GRACE_S, Ending, Workers, oom_kills
from mlflow_finetune_plugin.store.clients import client_for, is_refusal
from mlflow_finetune_plugin.store.names import JOB_TAG, LOGS_FOLDER

logger = logging.getLogger(__name__)

POLL_S = 0.1
LAST_WORD_PATIENCE_S = 7 * 24 * 3600.0
REST_PATIENCE_S = 600.0
MOST_SUPERVISORS = 20  # a job whose supervisors keep dying is left to `doctor`
DISK_FULL_EXIT = 74  # sysexits.h EX_IOERR: the worker could not even write its report


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    status: str
    reason: str


class Supervisor:
    """One job, from the start of the worker to the final status of the run."""

    def __init__(self, folder: JobFolder) -> None:
        self.folder = folder
        self.job = folder.read("job") or {}
        self._workers = Workers(folder)
        self._reader = ReportReader(folder.report)
        self._record: RunRecord | None = None
        self._error: dict[str, Any] | None = None
        self._result: dict[str, Any] | None = None
        self._stop_requested_by: str | None = None
        self._stop_since: float | None = None
        self._oom_kills = oom_kills()
        self._next_heartbeat = 0.0
        self._retry_at = 0.0
        self._retry_wait_s = 1.0
        self._run_is_unknown = False
        self._is_superseded = False

    def supervise(self, *, adopt: bool) -> None:
        """Supervise the job. Returns when MLflow has the final status, or when the run was never created."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        self._start_or_adopt(adopt)
        _import_mlflow()
        ending = self._follow_workers()
        self._workers.signal(signal.SIGKILL)
        if not self._run_was_created():
            logger.info("no run was created; nothing to record")
            return
        outcome = self._judge(ending)
        self._conclude(outcome)
        if outcome.status == "FINISHED":
            self._remove_obsolete_artifacts()
            shutil.rmtree(self.folder.work, ignore_errors=True)  # MLflow has all of it; of other runs it may be wanted

    def _start_or_adopt(self, adopt: bool) -> None:
        if adopt:
            self._workers.adopt(self.folder.read("state") or {})
        else:
            self.folder.work.mkdir(exist_ok=True)
            self._workers.start(self.job)
        self.folder.write(
            "state", {"supervisor": ProcessId.of(os.getpid()).to_json(), "worker": None, **self._workers.to_json()}
        )

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._request_stop(f"the supervisor received {signal.Signals(number).name}")

    def _request_stop(self, by: str) -> None:
        if self._stop_requested_by is None:
            self._stop_requested_by = by
            self._stop_since = time.monotonic()
            self._workers.signal(signal.SIGTERM)

    def _follow_workers(self) -> Ending:
        """Copy events to MLflow until the workers end."""
        while True:
            self._check_stop()
            ending = self._workers.ending(is_stopping=self._stop_requested_by is not None)
            self._relay()
            if ending is not None:
                return ending
            time.sleep(POLL_S)

    def _check_stop(self) -> None:
        if self._stop_requested_by is None:
            reason = self.folder.cancel_requested_by()
            if reason is None and not self._has_run() and self._command_is_gone():
                reason = "the command that started it died before the run was created"
            if reason is not None:
                self._request_stop(reason)
        elif self._stop_since is not None and time.monotonic() - self._stop_since > TERMINATION_GRACE_S:
            self._workers.signal(signal.SIGKILL)

    def _command_is_gone(self) -> bool:
        command = ProcessId.from_json(self.job.get("started_by"))
        return command is not None and not command.is_alive()

    def _has_run(self) -> bool:
        if self._record is None:
            run = self.folder.read("run")
            run_id = run.get("run_id") if run else self._find_run_by_job()
            if run_id:
                self._record = RunRecord(client_for(self.job["tracking_uri"]), run_id, int(self.job["attempt"]))
        return self._record is not None

    def _run_was_created(self) -> bool:
        """Return whether the run exists. A worker can end before it does; the command then reports it, or is dead."""
        deadline = time.monotonic() + LAST_WORD_PATIENCE_S
        while not self._has_run():
            if self._command_is_gone() and not self._has_run() and not self._run_is_unknown:
                return False
            if time.monotonic() > deadline:
                return False
            time.sleep(1.0 if self._run_is_unknown else POLL_S)
        return True

    def _find_run_by_job(self) -> str | None:
        """Find the run by the job's name in it, if the command died between creating the run and reporting it."""
        if not self._command_is_gone():
            return None
        client = client_for(self.job["tracking_uri"])
        self._run_is_unknown = True
        try:
            experiment_id = experiment_of(self.folder, client)
            condition = f"tags.`{JOB_TAG}` = '{self.folder.id}'"
            runs = client.search_runs([experiment_id], condition, max_results=1) if experiment_id else []
        except Exception as error:
            logger.warning("cannot look for this job's run: %s: %s", type(error).__name__, error)
            return None
        self._run_is_unknown = False
        return runs[0].info.run_id if runs else None

    def _relay(self) -> None:
        """Copy new events and the heartbeat to MLflow. While the server is away, wait longer each time."""
        if time.monotonic() < self._retry_at or not self._has_run():
            return
        try:
            self._carry_over()
            self._retry_wait_s = 1.0
        except Exception as error:
            logger.warning(
                "tracking server: %s: %s; next try in %.0f s", type(error).__name__, error, self._retry_wait_s
            )
            self._retry_at = time.monotonic() + self._retry_wait_s
            self._retry_wait_s = min(60.0, 2 * self._retry_wait_s)

    def _carry_over(self) -> None:
        assert self._record is not None
        if time.monotonic() >= self._next_heartbeat:
            if not self._record.is_mine():
                self._is_superseded = True
                self._request_stop("a later attempt has taken over the run")
            if self._is_superseded:
                return
            self._record.heartbeat()
            self._next_heartbeat = time.monotonic() + HEARTBEAT_EVERY_S
        done = self._reader.offset
        try:
            for event in self._reader.new_events():
                self._keep_last_words(event)
                try:
                    self._record.apply(event)
                except Exception as error:
                    if not is_refusal(error) and not (event["event"] == "artifact" and isinstance(error, OSError)):
                        raise
                    logger.error("refused and left out: %s: %s", event["event"], error)
                done = self._reader.offset
        finally:
            self._reader.offset = done

    def _keep_last_words(self, event: dict[str, Any]) -> None:
        if event["event"] == "error":
            self._error = self._error or event  # of several processes the first knows the reason
        elif event["event"] == "result":
            self._result = event

    def _judge(self, ending: Ending) -> Outcome:
        for event in ReportReader(self.folder.report).new_events():
            self._keep_last_words(event)
        if self._result is not None:
            return Outcome("FINISHED", self._result.get("summary", "finished"))
        if self._stop_requested_by is not None:
            return Outcome("KILLED", f"cancelled: {self._stop_requested_by}")
        if self._error is not None:
            return Outcome("FAILED", self._error["reason"])
        if self.job["kind"] == "command" and ending.code == 0:
            return Outcome("FINISHED", "the project's own command ended with exit code 0")
        return self._judge_exit(ending.code, ending.who)

    def _judge_exit(self, code: int | None, who: str) -> Outcome:
        if code in (-signal.SIGTERM, -signal.SIGINT):
            return Outcome("KILLED", f"{who} received {signal.Signals(-code).name}")
        if code == -signal.SIGKILL:
            by = (
                "the kernel, out of memory"
                if oom_kills() > self._oom_kills
                else "SIGKILL (by hand, or by the kernel's out-of-memory killer)"
            )
            return Outcome("FAILED", f"{who} was killed by {by}")
        if code is not None and code < 0:
            return Outcome("FAILED", f"{who} crashed with {signal.Signals(-code).name}")
        if code == DISK_FULL_EXIT:
            return Outcome("FAILED", f"disk full: {who} could not write to {self.folder.path}")
        last = _last_line(self.folder.worker_log)
        if code is None:
            reason = f"{who} and its supervisor died together (the host was restarted, or both were killed)"
            if self.job["kind"] != "train":
                return Outcome("FAILED", f"{reason}; its last line: {last}; fix: run the same command again")
            assert self._record is not None
            fix = f"fix: continue it, the same command as before with -P resume={self._record.run_id}"
            return Outcome("FAILED", f"{reason}; its last line: {last}; {fix}")
        if code == 0:
            return Outcome("FAILED", f"{who} ended without a result; its last line: {last}")
        return Outcome("FAILED", f"{who} ended with exit code {code}; its last line: {last}")

    def _conclude(self, outcome: Outcome) -> None:
        """Write the outcome for the watching processes and then to MLflow, for as long as it takes.

        After ten minutes the status is written without an event or a log file that cannot be copied for an unforeseen
        reason.
        """
        started = time.monotonic()
        first_failure = True
        wait_s = 1.0
        while True:
            is_patient = time.monotonic() - started < REST_PATIENCE_S
            try:
                self._carry_over_rest(must=is_patient)
                assert self._record is not None
                self._record.finish(outcome.status, outcome.reason, self._log_files(), must_upload=is_patient)
                self._write_outcome(outcome, recorded=True)
                return
            except Exception as error:
                logger.warning("the last word is not recorded yet: %s: %s", type(error).__name__, error)
                if first_failure:
                    self._write_outcome(outcome, recorded=False)
                    first_failure = False
                if time.monotonic() - started > LAST_WORD_PATIENCE_S:
                    return
                time.sleep(wait_s)
                wait_s = min(60.0, 2 * wait_s)

    def _remove_obsolete_artifacts(self) -> None:
        if self._record is not None and self._result is not None and not self._is_superseded:
            self._record.remove_artifacts(self._result.get("obsolete_artifacts", ()))

    def _carry_over_rest(self, *, must: bool) -> None:
        try:
            self._carry_over()
        except Exception as error:
            if must:
                raise
            logger.error("the rest of the report is left out: %s: %s", type(error).__name__, error)

    def _write_outcome(self, outcome: Outcome, *, recorded: bool) -> None:
        try:
            self.folder.write(
                "outcome",
                {"status": outcome.status, "reason": outcome.reason, "recorded": recorded, "result": self._result},
            )
        except OSError as error:
            logger.error("outcome.json cannot be written: %s", error)

    def _log_files(self) -> list[tuple[Path, str]]:
        files = [(self.folder.worker_log, LOGS_FOLDER)] if self.folder.worker_log.exists() else []
        if self._error and self._error.get("traceback"):
            path = self.folder.path / "traceback.txt"
            try:
                path.write_text(self._error["traceback"], encoding="utf-8")
                files.append((path, LOGS_FOLDER))
            except OSError as error:
                logger.error("traceback.txt cannot be written: %s", error)
        return files


def _import_mlflow() -> None:
    """Import MLflow, which takes seconds, while the worker does its imports."""
    import mlflow  # noqa: F401


def _last_line(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, path.stat().st_size - 4096))
            lines = [line.strip() for line in stream.read().decode(errors="replace").splitlines() if line.strip()]
    except OSError:
        return "(no log)"
    return lines[-1][:500] if lines else "(nothing)"


def _fork_sentinel(folder: JobFolder, generation: int, lock: int) -> int:
    """Fork a process that replaces this supervisor if it dies unannounced. Return the pipe on which it announces its end."""
    quiet, alive = os.pipe()
    if os.fork() == 0:
        os.setsid()
        os.close(alive)
        os.close(lock)  # the lock dies with the supervisor, not with its sentinel
        farewell = os.read(quiet, 1)
        if farewell:
            os._exit(0)
        if generation >= MOST_SUPERVISORS:
            os._exit(1)
        successor = ["-m", "mlflow_finetune_plugin.jobs.supervisor", str(folder.path), "--adopt", str(generation + 1)]
        os.execv(sys.executable, [sys.executable, *successor])
    os.close(quiet)
    return alive


def main(argv: list[str] | None = None) -> int:
    """Run the supervisor process."""
    parser = argparse.ArgumentParser(prog="supervisor")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--adopt", type=int, default=0, metavar="N")
    arguments = parser.parse_args(argv)
    folder = JobFolder(arguments.folder)
    lock = folder.claim()
    if lock is None:
        return 0  # two commands found the same orphan; the other's supervisor has it
    alive = _fork_sentinel(folder, arguments.adopt, lock)
    logging.basicConfig(
        filename=folder.supervisor_log, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s"
    )
    supervisor = Supervisor(folder)
    try:
        supervisor.supervise(adopt=arguments.adopt > 0)
    except Exception:
        logger.exception("the supervisor failed; its sentinel starts another")
        time.sleep(min(60, arguments.adopt))
        return 1
    os.write(alive, b".")
    reap_neighbours(folder)
    return 0


def start_supervisor(folder: JobFolder, *, adopt: bool = False) -> int:
    """Start a supervisor in a separate session and return its process id."""
    command = [
        sys.executable,
        "-m",
        "mlflow_finetune_plugin.jobs.supervisor",
        str(folder.path),
        *(["--adopt", "1"] if adopt else []),
    ]
    cwd = (folder.read("job") or {}).get("cwd", folder.path)
    with folder.supervisor_log.open("ab") as log:
        process = subprocess.Popen(
            command,
            cwd=cwd if os.path.isdir(cwd) else folder.path,  # an orphan's own folder may be gone
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            start_new_session=True,
        )
    try:
        folder.answer_for(process.pid)
    except OSError:
        process.kill()  # it has started no process yet
        raise
    return process.pid


if __name__ == "__main__":
    sys.exit(main())
