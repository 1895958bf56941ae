"""Commands that tests fork from the zygote behave as processes of their own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import forked
import pytest
from forked import run_module, start_module

CLI = "mlflow_finetune_plugin.cli"
PIPES = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}


def test_a_test_without_a_mark_cannot_fork_a_command():
    with pytest.raises(AssertionError, match=r"fix: mark it with pytest\.mark\.process"):
        start_module(CLI, ["--help"], env=os.environ)


@pytest.mark.process
def test_output_and_return_code_are_those_of_the_command(tmp_path):
    helped = run_module(CLI, ["--help"], env=os.environ, timeout=60, cwd=tmp_path, **PIPES)
    assert (helped.returncode, helped.stderr) == (0, "")
    assert "promote" in helped.stdout
    refused = run_module(CLI, ["no-such-command"], env=os.environ, timeout=60, cwd=tmp_path, **PIPES)
    assert refused.returncode == 2
    assert "no-such-command" in refused.stderr


@pytest.mark.process
def test_directory_environment_and_signals_reach_it(tmp_path):
    environment = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'given.db'}"}
    process = start_module(
        "mlflow", ["server", "--port", "0"], env=environment, cwd=tmp_path, start_new_session=True, **PIPES
    )
    assert process.is_fork
    assert os.readlink(f"/proc/{process.pid}/cwd") == str(tmp_path)
    assert os.getsid(process.pid) == os.getpgid(process.pid) == process.pid
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=30)
    assert process.returncode == -signal.SIGKILL


@pytest.mark.process
def test_what_python_reads_at_its_start_needs_a_python_of_its_own(tmp_path):
    other = {**os.environ, "PYTHONHASHSEED": "7"}
    with start_module(CLI, ["--help"], env=other, cwd=tmp_path, **PIPES) as process:
        assert not process.is_fork
        process.communicate(timeout=60)


@pytest.mark.process
def test_what_the_package_starts_from_a_test_is_a_fork(tmp_path):
    """As supervisors of runs and services that a test starts by a call of the Python API."""
    with subprocess.Popen([sys.executable, "-m", CLI, "--help"], cwd=tmp_path, **PIPES) as process:
        assert process.is_fork
        text, _ = process.communicate(timeout=60)
    assert (process.returncode, "promote" in text) == (0, True)


@pytest.mark.process
def test_zygotes_have_the_environment_from_before_the_test(tmp_path, monkeypatch):
    monkeypatch.setattr(forked, "_zygotes", {})
    monkeypatch.setattr(forked, "_address", lambda imports: f"\0finetune-tests-{os.getpid()}-of-this-test-{imports}")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setattr(forked, "IMPORTS", {CLI: "commands"})
    forked._start_zygotes()
    (zygote,) = forked._zygotes.values()
    try:
        environment = Path(f"/proc/{zygote.pid}/environ").read_bytes()
        assert f"HF_HOME={tmp_path}".encode() not in environment
    finally:
        zygote.kill()
        zygote.communicate()


@pytest.mark.process
@pytest.mark.parametrize("begun", [b"", b'{"program": "x"'])
def test_who_ends_before_the_request_is_whole_stops_no_zygote(tmp_path, begun):
    """A test process that was killed once left a zygote that read an ended connection for ever."""
    run_module(CLI, ["--help"], env=os.environ, timeout=60, cwd=tmp_path, **PIPES)
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(forked._address(forked.IMPORTS[CLI]))
        if begun:
            connection.sendall(begun)
    helped = run_module(CLI, ["--help"], env=os.environ, timeout=60, cwd=tmp_path, **PIPES)
    assert helped.returncode == 0
