"""The job folder: files through which the command, the supervisor and the workers of one run communicate.

``job.json``      what to do; written once by the command
``run.json``      the MLflow run, once it exists; written by the command
``starting.json`` the process that is responsible for the job until its supervisor reports that it is alive
``state.json``    the live processes: supervisor, worker, and worker-1 and so on if several processes train
``done-1.json``   written by such a process when its share is done
``supervisor.lock`` held by the one supervisor while it lives
``report.jsonl``  the worker's report, one event per line (report.py)
``worker.log``    the worker's output
``cancel``        exists once a stop was requested
``outcome.json``  the final status and reason, and whether the tracking server has them

Every file is written whole and renamed into place, so a reader never sees half of one.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from mlflow_finetune_plugin.durable_files import write_whole


def jobs_home() -> Path:
    """Return the folder of job folders: $MLFLOW_FINETUNE_HOME, else the XDG state folder."""
    if home := os.environ.get("MLFLOW_FINETUNE_HOME"):
        return Path(home).expanduser().absolute()
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state).absolute() / "mlflow-finetune"


@dataclass(frozen=True)
class JobFolder:
    """Paths and atomic reads and writes of one job."""

    path: Path

    @classmethod
    def create(cls) -> JobFolder:
        """Create an empty job folder that only this user can read."""
        path = jobs_home() / "jobs" / f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:8]}"
        path.mkdir(parents=True, mode=0o700)
        return cls(path)

    @classmethod
    def all(cls) -> list[JobFolder]:
        """Return every job folder of this user, oldest first."""
        root = jobs_home() / "jobs"
        return [cls(path) for path in sorted(root.iterdir()) if path.is_dir()] if root.is_dir() else []

    @property
    def id(self) -> str:
        return self.path.name

    @property
    def report(self) -> Path:
        return self.path / "report.jsonl"

    @property
    def worker_log(self) -> Path:
        return self.path / "worker.log"

    @property
    def supervisor_log(self) -> Path:
        return self.path / "supervisor.log"

    @property
    def work(self) -> Path:
        """The worker's scratch folder."""
        return self.path / "work"

    def read(self, name: str) -> dict[str, Any] | None:
        """Return the contents of one of the JSON files; None while it does not exist."""
        try:
            value: dict[str, Any] = json.loads((self.path / f"{name}.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return value

    def write(self, name: str, value: dict[str, Any]) -> None:
        """Write one of the JSON files whole."""
        write_whole(self.path / f"{name}.json", json.dumps(value, indent=1).encode())

    def answer_for(self, pid: int) -> None:
        """Record the process that is responsible for the job before its supervisor can record itself."""
        self.write("starting", {"supervisor": ProcessId.of(pid).to_json()})

    def claim(self) -> int | None:
        """Take the lock of the one supervisor, as an open file; None if another process holds it. The kernel releases
        it at death.
        """
        lock = os.open(self.path / "supervisor.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return None
        return lock

    def request_cancel(self, by: str) -> None:
        (self.path / "cancel").write_text(by, encoding="utf-8")

    def cancel_requested_by(self) -> str | None:
        """Return who requested the stop; None without a request."""
        try:
            return (self.path / "cancel").read_text(encoding="utf-8")
        except FileNotFoundError:
            return None


@dataclass(frozen=True)
class ProcessId:
    """A process, distinguishable from a later one with the same number."""

    pid: int
    started: float
    host: str

    @classmethod
    def of(cls, pid: int) -> ProcessId:
        return cls(pid, psutil.Process(pid).create_time(), socket.gethostname())

    @classmethod
    def from_json(cls, value: dict[str, Any] | None) -> ProcessId | None:
        return cls(int(value["pid"]), float(value["started"]), str(value["host"])) if value else None

    def to_json(self) -> dict[str, Any]:
        return {"pid": self.pid, "started": self.started, "host": self.host}

    def is_alive(self) -> bool:
        """Return whether this same process runs on this host. A zombie is dead."""
        if self.host != socket.gethostname():
            return False
        try:
            process = psutil.Process(self.pid)
            return abs(process.create_time() - self.started) < 0.5 and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False


def supervisor_alive(folder: JobFolder) -> bool:
    """Return whether a supervisor of this job runs on this host, or is being started."""
    owners = [ProcessId.from_json((folder.read(name) or {}).get("supervisor")) for name in ("state", "starting")]
    return any(owner is not None and owner.is_alive() for owner in owners)
