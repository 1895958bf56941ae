"""A run's status is true whatever dies. Real processes, real signals, real MLflow; the worker is a plain command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
from conftest import Workplace, free_port, is_alive, make_workplace, pids, stop_jobs, wait_for
from forked import FORKS

from mlflow_finetune_plugin.jobs import supervisor, workers
from mlflow_finetune_plugin.jobs.folder import JobFolder, ProcessId

REASON = "finetune.status_reason"
OWN_PROCESSES = {FORKS: "no"}  # where a test looks for command lines
UNTIL_TOLD = "until [ -e told ]; do sleep 0.1; done"


def tell_to_end(workplace: Workplace) -> None:
    """What UNTIL_TOLD waits for."""
    (workplace.path / "own" / "told").touch()


@pytest.mark.process
def test_command_that_succeeds_finishes_the_run(workplace, own_project):
    result = workplace.mlflow_run(str(own_project("echo hello from the project")))
    assert result.returncode == 0, result.stdout
    run = workplace.only_run()
    assert run.info.status == "FINISHED"
    log = workplace.client().download_artifacts(run.info.run_id, "logs/worker.log", str(workplace.path))
    assert "hello from the project" in Path(log).read_text()


@pytest.mark.process
def test_command_that_fails_fails_the_run_and_the_shell(workplace, own_project):
    result = workplace.mlflow_run(str(own_project("echo last words; exit 7")))
    assert result.returncode == 1
    run = workplace.only_run()
    assert run.info.status == "FAILED"
    assert "exit code 7" in run.data.tags[REASON]
    assert "last words" in run.data.tags[REASON]
    assert run.data.tags[REASON] in result.stdout


@pytest.mark.fault
@pytest.mark.process
def test_ctrl_c_kills_the_run_and_its_children(workplace, own_project):
    process = workplace.start_mlflow_run(str(own_project("sleep 300 & echo $! > child.pid; wait")))
    job = workplace.job()
    child = int(wait_for(lambda: _text(workplace.path / "own" / "child.pid"), 20, "child"))
    os.kill(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    run = workplace.only_run()
    assert run.info.status == "KILLED", output
    assert "Ctrl-C" in run.data.tags[REASON]
    assert not is_alive(child)
    assert not is_alive(pids(job)["worker"])


@pytest.mark.fault
@pytest.mark.process
def test_sigterm_to_mlflow_run_kills_the_run(workplace, own_project):
    process = workplace.start_mlflow_run(str(own_project("sleep 300")))
    job = workplace.job()
    _until_waiting(process, job)
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 143
    assert workplace.only_run().info.status == "KILLED"


@pytest.mark.fault
@pytest.mark.process
@pytest.mark.parametrize(
    ("victim", "number", "status", "reason"),
    [
        ("worker", signal.SIGTERM, "KILLED", "SIGTERM"),
        ("worker", signal.SIGKILL, "FAILED", "killed"),
        ("worker", signal.SIGSEGV, "FAILED", "SIGSEGV"),
        ("supervisor", signal.SIGTERM, "KILLED", "supervisor received SIGTERM"),
    ],
)
def test_signal_ends_the_run_with_its_true_status(workplace, own_project, victim, number, status, reason):
    process = workplace.start_finetune_run(str(own_project("exec sleep 300")))
    job = workplace.job()
    os.kill(pids(job)[victim], number)
    process.communicate(timeout=60)
    assert process.returncode == 1
    run = workplace.ended_run()
    assert run.info.status == status
    assert reason in run.data.tags[REASON]


@pytest.mark.fault
@pytest.mark.process
def test_kill_9_of_the_supervisor_lets_the_worker_finish(workplace, own_project):
    process = workplace.start_finetune_run(str(own_project(UNTIL_TOLD)))
    job = workplace.job()
    before = pids(job)
    os.kill(before["supervisor"], signal.SIGKILL)
    after = wait_for(lambda: pids(job) if pids(job)["supervisor"] != before["supervisor"] else None, 20, "successor")
    assert after["worker"] == before["worker"]
    tell_to_end(workplace)
    output, _ = process.communicate(timeout=60)
    run = workplace.ended_run()
    # a command says nothing but its exit code, and only its own parent hears that: the status is the honest FAILED
    assert run.info.status == "FAILED"
    assert "its supervisor died together" in run.data.tags[REASON]
    assert run.data.tags[REASON].endswith("; fix: run the same command again"), "there is nothing to resume"
    assert process.returncode == 1, output


@pytest.mark.fault
@pytest.mark.process
def test_kill_9_of_mlflow_run_lets_the_run_finish(workplace, own_project):
    process = workplace.start_mlflow_run(str(own_project(UNTIL_TOLD)))
    workplace.job()
    process.kill()
    process.communicate(timeout=20)
    tell_to_end(workplace)
    assert workplace.ended_run().info.status == "FINISHED"


@pytest.mark.fault
@pytest.mark.process
def test_everything_dead_is_found_by_doctor(workplace, own_project):
    process = workplace.start_finetune_run(str(own_project("exec sleep 300")), **OWN_PROCESSES)
    job = workplace.job()
    _kill_sentinel_and_all(job, process)
    assert workplace.only_run().info.status == "RUNNING"
    report = workplace.cli("doctor")
    assert report.returncode == 1
    assert "its supervisor died" in report.stdout
    reaped = workplace.cli("doctor", "--reap")
    run = workplace.ended_run()
    assert run.info.status == "FAILED"
    assert "its supervisor died together" in run.data.tags[REASON]
    assert run.info.run_id in reaped.stdout


@pytest.mark.fault
@pytest.mark.process
def test_next_run_ends_the_dead_one(workplace, own_project):
    process = workplace.start_finetune_run(str(own_project("exec sleep 300")), **OWN_PROCESSES)
    job = workplace.job()
    dead = json.loads((job / "run.json").read_text())["run_id"]
    _kill_sentinel_and_all(job, process)
    assert workplace.finetune_run(str(own_project("true"))).returncode == 0
    wait_for(lambda: workplace.client().get_run(dead).info.status == "FAILED", 30, "the dead run's end")


@pytest.mark.process
def test_detached_run_returns_at_once_and_finishes(workplace, own_project):
    result = workplace.finetune_run(str(own_project(UNTIL_TOLD)), "-c", '{"detach": true}')
    assert result.returncode == 0
    assert workplace.only_run().info.status == "RUNNING"
    assert workplace.only_run().info.run_id in result.stdout
    tell_to_end(workplace)
    assert workplace.ended_run().info.status == "FINISHED"


@pytest.mark.fault
def test_server_gone_and_back_gets_the_last_word(tmp_path, server, own_project):
    workplace = make_workplace(tmp_path, server.uri)
    process = workplace.start_finetune_run(str(own_project(f"{UNTIL_TOLD}; echo through the outage; exit 3")))
    workplace.job()
    server.stop()
    tell_to_end(workplace)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "exit code 3" in output
    assert "tracking server is away" in output
    server.start()
    run = workplace.ended_run(timeout_s=150)
    assert run.info.status == "FAILED"
    assert "exit code 3" in run.data.tags[REASON]
    stop_jobs(workplace)


def job_of_this_process(desk, command: str) -> JobFolder:
    """A job as ``submit`` writes it, before its run exists."""
    folder = JobFolder.create()
    job = {
        "kind": "train",
        "command": ["bash", "-c", command],
        "cwd": str(desk.path),
        "environment": {},
        "tracking_uri": desk.tracking_uri,
        "experiment_id": "0",
        "attempt": 1,
        "started_by": ProcessId.of(os.getpid()).to_json(),
    }
    folder.write("job", job)
    return folder


@pytest.mark.fault
@pytest.mark.process
def test_worker_that_dies_before_its_run_exists_fails_the_run(desk):
    folder = job_of_this_process(desk, "echo too early; exit 3")
    supervisor.start_supervisor(folder)
    state = wait_for(lambda: folder.read("state"), 20, "worker")
    wait_for(lambda: not is_alive(state["worker"]["pid"]), 20, "the worker's death")
    time.sleep(1.0)
    run_id = desk.client().create_run("0").info.run_id
    folder.write("run", {"run_id": run_id})
    run = desk.ended_run()
    assert run.info.status == "FAILED"
    assert "too early" in run.data.tags[REASON]


@pytest.mark.fault
@pytest.mark.process
def test_a_training_that_died_with_its_supervisor_says_how_to_continue(desk, monkeypatch):
    folder = job_of_this_process(desk, "exit 0")
    run_id = desk.client().create_run("0").info.run_id
    folder.write("run", {"run_id": run_id})
    dead = subprocess.Popen(["sleep", "300"])
    identity = ProcessId.of(dead.pid).to_json()
    dead.kill()
    dead.wait()
    folder.write("state", {"supervisor": identity, "worker": identity})
    monkeypatch.setattr(supervisor.signal, "signal", lambda *_: None)
    supervisor.Supervisor(folder).supervise(adopt=True)
    run = desk.only_run()
    assert run.info.status == "FAILED"
    assert run.data.tags[REASON] == (
        "the worker and its supervisor died together (the host was restarted, or both were killed); its last line: (no log); "
        f"fix: continue it, the same command as before with -P resume={run_id}"
    )


@pytest.mark.fault
@pytest.mark.process
def test_worker_that_ignores_sigterm_is_killed(desk, monkeypatch):
    folder = job_of_this_process(desk, "trap '' TERM; touch deaf; while true; do sleep 1; done")
    folder.write("run", {"run_id": desk.client().create_run("0").info.run_id})
    for module in (supervisor, workers):
        monkeypatch.setattr(module, "TERMINATION_GRACE_S", 1.0)
    monkeypatch.setattr(supervisor.signal, "signal", lambda *_: None)

    def stop() -> None:
        wait_for((desk.path / "deaf").exists, 20, "deaf worker")
        folder.request_cancel("Ctrl-C")

    stopping = threading.Thread(target=stop)
    stopping.start()
    started = time.monotonic()
    supervisor.Supervisor(folder).supervise(adopt=False)
    stopping.join()
    assert time.monotonic() - started > 1
    assert desk.only_run().info.status == "KILLED"
    assert not is_alive(pids(folder.path)["worker"])


@pytest.mark.fault
@pytest.mark.process
def test_event_that_can_never_be_carried_over_does_not_hold_the_status(desk, monkeypatch):
    folder = job_of_this_process(desk, "exit 3")
    folder.write("run", {"run_id": desk.client().create_run("0").info.run_id})
    folder.report.write_text(json.dumps({"event": "metrics", "time": 0, "values": "not a table"}) + "\n")
    monkeypatch.setattr(supervisor, "REST_PATIENCE_S", 0.0)
    monkeypatch.setattr(supervisor.signal, "signal", lambda *_: None)
    supervisor.Supervisor(folder).supervise(adopt=False)
    assert desk.only_run().info.status == "FAILED"
    assert folder.read("outcome")["recorded"] is True


@pytest.mark.fault
@pytest.mark.process
def test_unreachable_server_is_one_clear_error_and_leaves_nothing(workplace, own_project):
    unreachable = make_workplace(workplace.path, f"http://127.0.0.1:{free_port()}")
    result = unreachable.mlflow_run(
        str(own_project("true")),
        "--experiment-id",
        "0",
        MLFLOW_HTTP_REQUEST_MAX_RETRIES="1",
        MLFLOW_HTTP_REQUEST_TIMEOUT="2",
    )
    assert result.returncode == 1
    assert "tracking server" in result.stdout
    assert "Traceback" not in result.stdout
    assert not any((unreachable.home / "jobs").iterdir())


def _text(path: Path) -> str | None:
    return path.read_text().strip() or None if path.exists() else None


def _until_waiting(process: subprocess.Popen[str], job: Path) -> None:
    """A moment for ``mlflow run`` to get from the run's creation into its wait."""
    wait_for((job / "run.json").exists, 20, "run")
    time.sleep(1.0)
    assert process.poll() is None


def _kill_sentinel_and_all(job: Path, process: subprocess.Popen[str]) -> None:
    """What a power cut does: command, sentinel, supervisor and worker at once."""
    import psutil

    victims = pids(job)
    sentinels = [p.pid for p in psutil.process_iter(["cmdline"]) if str(job) in " ".join(p.info["cmdline"] or [])]
    for pid in [
        process.pid,
        *[p for p in sentinels if p != victims["supervisor"]],
        victims["supervisor"],
        victims["worker"],
    ]:
        os.kill(pid, signal.SIGKILL)
    process.communicate(timeout=20)
    wait_for(lambda: not any(is_alive(pid) for pid in victims.values()), 10, "death")
