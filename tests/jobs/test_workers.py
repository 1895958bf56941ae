"""The processes of a job, real ones: whichever breaks, all end, and the one that broke gives the reason."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest
from conftest import is_alive, wait_for

from mlflow_finetune_plugin.jobs.folder import JobFolder
from mlflow_finetune_plugin.jobs.workers import PEER_LOST_EXIT, Ending, Workers, done_name

pytestmark = pytest.mark.process

WAITS = "time.sleep(60)"


@pytest.fixture
def folder(tmp_path: Path) -> JobFolder:
    return JobFolder(tmp_path)


def job(folder: JobFolder, *behaviours: str) -> dict[str, object]:
    """One process for each: Python to run."""
    code = "import os, sys, time, signal; exec(os.environ['SHARE'])"
    return {
        "command": [sys.executable, "-c", code],
        "cwd": str(folder.path),
        "environment": {},
        "processes": [{"SHARE": behaviour} for behaviour in behaviours],
    }


def started(folder: JobFolder, *behaviours: str) -> Workers:
    workers = Workers(folder)
    workers.start(job(folder, *behaviours))
    return workers


def pids(workers: Workers) -> list[int]:
    return [value["pid"] for value in workers.to_json().values()]


def ended(workers: Workers, *, is_stopping: bool = False) -> Ending:
    ending: Ending = wait_for(lambda: workers.ending(is_stopping=is_stopping), 15, "end")
    workers.signal(signal.SIGKILL)  # as the supervisor does
    wait_for(lambda: not any(map(is_alive, pids(workers))), 5, "end of all")
    return ending


def test_one_process_is_the_worker(folder):
    assert ended(started(folder, "sys.exit(3)")) == Ending(3, "the worker")


@pytest.mark.fault
def test_a_process_that_fails_ends_the_others_and_is_named(folder):
    workers = started(folder, WAITS, "time.sleep(0.3); sys.exit(3)", WAITS)
    assert ended(workers) == Ending(3, "process 1 of 3 of the worker")


def test_whoever_only_noticed_waits_for_the_one_that_broke(folder):
    notices = f"time.sleep(0.2); sys.exit({PEER_LOST_EXIT})"
    workers = started(folder, notices, "time.sleep(1); os.kill(os.getpid(), signal.SIGKILL)")
    assert ended(workers) == Ending(-signal.SIGKILL, "process 1 of 2 of the worker")


def test_a_share_that_is_done_ends_nothing(folder):
    assert ended(started(folder, "time.sleep(1)", "pass")) == Ending(0, "process 0 of 2 of the worker")


@pytest.mark.fault
def test_a_process_that_ignores_sigterm_is_killed(folder, monkeypatch):
    monkeypatch.setattr("mlflow_finetune_plugin.jobs.workers.TERMINATION_GRACE_S", 1.0)
    deaf = f"signal.signal(signal.SIGTERM, signal.SIG_IGN); {WAITS}"
    assert ended(started(folder, deaf, "time.sleep(1); sys.exit(1)")).code == 1


def test_processes_that_were_asked_to_end_have_not_failed(folder):
    workers = started(folder, "time.sleep(1)", "sys.exit(-signal.SIGTERM)")
    assert ended(workers, is_stopping=True).code is not None


@pytest.mark.parametrize("is_done", [True, False])
def test_adopted_processes_are_judged_by_what_they_said(folder, is_done):
    first = started(folder, "time.sleep(3)", "time.sleep(0.3)")
    if is_done:
        folder.write(done_name(1), {})
    os.waitpid(pids(first)[1], 0)
    workers = Workers(folder)
    workers.adopt(first.to_json())
    before = time.monotonic()
    wait_for(lambda: workers.ending(is_stopping=False) or not is_alive(pids(first)[0]), 15, "end")
    assert (time.monotonic() - before > 1.5) == is_done
    assert workers.ending(is_stopping=False).who == f"process {0 if is_done else 1} of 2 of the worker"


def test_later_numbers_are_never_signalled(folder):
    """A process that ended is left alone: its number may be another's by now."""
    workers = started(folder, "time.sleep(1)", "pass")
    wait_for(lambda: workers.ending(is_stopping=False) or not is_alive(pids(workers)[1]), 5, "end of the second")
    workers.ending(is_stopping=False)
    signalled: list[tuple[int, int]] = []
    real = os.killpg
    try:
        os.killpg = lambda pid, number: signalled.append((pid, number))  # type: ignore[assignment]
        workers.signal(signal.SIGTERM)
    finally:
        os.killpg = real
    assert signalled == [(pids(workers)[0], signal.SIGTERM)]
    ended(workers)
