"""The processes of one job, started or adopted by its supervisor. If one fails, the others are ended.

The first is the worker, whose end is the job's end. The others train with it and end before it.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlflow_finetune_plugin.jobs import launcher
from mlflow_finetune_plugin.jobs.folder import JobFolder, ProcessId

logger = logging.getLogger(__name__)

TERMINATION_GRACE_S = 15.0
PEER_LOST_EXIT = 75  # sysexits.h EX_TEMPFAIL: another process of the training is gone, and knows why
_EXPLANATION_S = 5.0
"""Time for the process that broke a training to end, after another process has noticed."""


@dataclass(frozen=True)
class Ending:
    """The end of a job's processes: the exit code of the one that decided it; None if it is unknown."""

    code: int | None
    who: str = "the worker"


@dataclass
class _Process:
    rank: int
    id: ProcessId
    started: subprocess.Popen[bytes] | None = None
    has_ended: bool = False
    code: int | None = None
    ended_at: float = field(default=0.0)

    def poll(self) -> None:
        if self.has_ended:
            return
        if self.started is not None:
            self.code = self.started.poll()
            self.has_ended = self.code is not None
        else:
            self.has_ended = not self.id.is_alive()
        if self.has_ended:
            self.ended_at = time.monotonic()
            self._signal_group(signal.SIGKILL)  # data loaders that outlived it hold memory

    def signal(self, number: int) -> None:
        """To the process and all that it started. Once it has ended, its number may be another's."""
        if not self.has_ended:
            self._signal_group(number)

    def _signal_group(self, number: int) -> None:
        try:
            os.killpg(self.id.pid, number)
        except ProcessLookupError:
            logger.debug("process group %s is already gone", self.id.pid)


class Workers:
    """The processes of ``folder``, by rank."""

    def __init__(self, folder: JobFolder) -> None:
        self._folder = folder
        self._processes: list[_Process] = []
        self._culprit: _Process | None = None
        self._ending_since: float | None = None

    def start(self, job: dict[str, Any]) -> None:
        """Start one process for each entry of ``job["processes"]``, which is its environment."""
        for rank, environment in enumerate(job.get("processes") or [{}]):
            started = launcher.start(
                [*job["command"], *([str(rank)] if rank else [])],
                cwd=Path(job["cwd"]),
                environment={**job["environment"], **environment},
                log=self._folder.worker_log,
            )
            self._processes.append(_Process(rank, ProcessId.of(started.pid), started))

    def adopt(self, state: dict[str, Any]) -> None:
        """Adopt the processes that an earlier supervisor started."""
        rank = 0
        while (process := ProcessId.from_json(state.get(_name(rank)))) is not None:
            self._processes.append(_Process(rank, process))
            rank += 1

    def to_json(self) -> dict[str, Any]:
        """Return ``worker``, ``worker-1`` and so on, as in ``state.json``."""
        return {_name(process.rank): process.id.to_json() for process in self._processes}

    def signal(self, number: int) -> None:
        for process in self._processes:
            process.signal(number)

    def ending(self, *, is_stopping: bool) -> Ending | None:
        """Return the end of the processes; None while they work. ``is_stopping``: all were asked to end, so an end
        is not a failure.
        """
        for process in self._processes:
            process.poll()
        if not self._processes:
            return Ending(None)
        first, *others = self._processes
        if self._culprit is None:
            self._culprit = next((p for p in self._processes if self._has_failed(p)), None)
        if first.has_ended and not self._waits_for_the_reason(first, others):
            return self._ending_of(self._culprit or first)
        if not is_stopping and not first.has_ended and self._culprit is not None:
            self._end_the_others()
        return None

    def _has_failed(self, process: _Process) -> bool:
        """Return whether a process failed. Without an exit code it failed unless it reported that its share was done."""
        if not process.has_ended or process.code in (0, PEER_LOST_EXIT):
            return False
        return process.code is not None or not self._is_done(process)

    def _is_done(self, process: _Process) -> bool:
        return process.rank > 0 and self._folder.read(done_name(process.rank)) is not None

    def _waits_for_the_reason(self, first: _Process, others: list[_Process]) -> bool:
        if self._culprit is not None or first.code != PEER_LOST_EXIT or all(p.has_ended for p in others):
            return False
        return time.monotonic() - first.ended_at < _EXPLANATION_S

    def _end_the_others(self) -> None:
        """End the other processes. The first gets a request before it is forced to end, because it may save its state."""
        if self._ending_since is None:
            self._ending_since = time.monotonic()
            logger.info("process %s has failed; ending the others", self._culprit and self._culprit.rank)
            self.signal(signal.SIGTERM)
        elif time.monotonic() - self._ending_since > TERMINATION_GRACE_S:
            self.signal(signal.SIGKILL)

    def _ending_of(self, process: _Process) -> Ending:
        count = len(self._processes)
        return Ending(process.code, "the worker" if count == 1 else f"process {process.rank} of {count} of the worker")


def done_name(rank: int) -> str:
    """Return the file of a job folder in which a process reports that its share is done."""
    return f"done-{rank}"


def _name(rank: int) -> str:
    return f"worker-{rank}" if rank else "worker"


def oom_kills() -> int:
    """Return how often the kernel killed a process for memory in this control group; 0 if that is unknown."""
    try:
        text = Path("/sys/fs/cgroup/memory.events").read_text(encoding="ascii")
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in text.splitlines() if line.startswith("oom_kill ")), 0)
