"""Nothing of an engine outlives the router, however it ends: here with a stubborn command instead of an engine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
from serving_process import marked, wait_until

pytestmark = pytest.mark.process

# deaf to SIGTERM, as vLLM is while it starts, with a process of its own that is deaf too
STUBBORN = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
os.fork()
os.write(1, b"up\\n")
time.sleep(600)
"""
PARENT = """
import os, subprocess, sys
read_end, write_end = os.pipe()
subprocess.Popen([sys.executable, "-m", "mlflow_finetune_plugin.serving.engines.leash", *sys.argv[1:]], stdin=read_end,
                 start_new_session=True)
os.close(read_end)
print("started", flush=True)
sys.stdin.read()
"""


def started(code, **more):
    """(the process, the end of its leash)"""
    read_end, write_end = os.pipe()
    command = [sys.executable, "-m", "mlflow_finetune_plugin.serving.engines.leash", sys.executable, "-c", code]
    process = subprocess.Popen(command, stdin=read_end, stdout=subprocess.PIPE, start_new_session=True, **more)
    os.close(read_end)
    return process, write_end


@pytest.fixture
def family(tmp_path, monkeypatch):
    monkeypatch.setenv("FINETUNE_TEST", str(tmp_path))
    yield lambda: marked(str(tmp_path))
    for process in marked(str(tmp_path)):
        process.kill()


def test_it_becomes_the_command_and_gives_its_exit_code(family):
    process, leash = started("import os; print(os.getpid(), os.getpgid(0)); raise SystemExit(7)")
    assert process.communicate()[0].split() == [str(process.pid).encode()] * 2
    assert process.returncode == 7
    os.close(leash)
    wait_until(lambda: not family(), seconds=30)


def test_sigterm_reaches_the_command(family):
    code = (
        "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(3)); print('up', flush=True); time.sleep(600)"
    )
    process, leash = started(code)
    process.stdout.readline()
    process.terminate()
    assert process.wait(10) == 3
    os.close(leash)
    wait_until(lambda: not family(), seconds=30)


def test_what_is_deaf_is_killed_with_its_own_processes(family):
    process, leash = started(STUBBORN)
    assert [process.stdout.readline() for _ in range(2)] == [b"up\n"] * 2
    assert len(family()) == 3
    os.close(leash)
    assert process.wait(10) == -signal.SIGKILL
    wait_until(lambda: not family(), seconds=30)


def test_what_a_dead_leader_left_is_killed(family):
    process, leash = started(STUBBORN)
    assert [process.stdout.readline() for _ in range(2)] == [b"up\n"] * 2
    process.kill()
    process.wait(10)
    assert len(family()) == 2
    os.close(leash)
    wait_until(lambda: not family(), seconds=30)


def test_a_leash_that_is_let_go_at_once_leaves_nothing(family):
    """The router is killed in the first moments, at each of them another time."""
    for pause in (0.0, 0.005, 0.02, 0.05):
        parent = subprocess.Popen(
            [sys.executable, "-c", PARENT, sys.executable, "-c", STUBBORN],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert parent.stdout.readline() == b"started\n"
        time.sleep(pause)
        parent.kill()
        parent.wait()
    wait_until(lambda: not family(), seconds=30)


@pytest.mark.fault
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel's own leash is Linux's")
def test_with_the_watcher_killed_too_the_command_ends_with_the_router(family):
    sleeps = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, sys.executable, "-c", sleeps], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert {parent.stdout.readline(), parent.stdout.readline()} == {b"started\n", b"up\n"}
    (watcher,) = [p for p in family() if "mlflow_finetune_plugin.serving.engines.leash" in p.cmdline()]
    watcher.kill()
    parent.kill()
    parent.wait()
    wait_until(lambda: not family(), seconds=30)
