"""A user's code that fails, hangs, ends its process or leaves something behind."""

import logging
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from conftest import is_alive, wait_for
from reward_files import completion, completions, loaded, values, write

from mlflow_finetune_plugin.errors import RewardError
from mlflow_finetune_plugin.rewards.process import ScoringError, ScoringProcess, ScoringTarget

pytestmark = pytest.mark.process

BAD = {
    "exception": ("int('x')", r"ValueError: invalid literal for int\(\) with base 10: 'x'; at reward.py:4 in score: int\('x'\)"),
    "system exit": ("import sys; sys.exit(1)", r"SystemExit: 1; at reward.py:4"),
    "keyboard interrupt": ("raise KeyboardInterrupt", r"KeyboardInterrupt; at reward.py:4"),
    "recursion": ("return score(completion)", r"RecursionError: maximum recursion depth exceeded"),
    "infinite loop": ("while True: pass", r"no result within 1 s \(timeout_s\); its process was ended"),
    "sleep": ("import time; time.sleep(60)", r"no result within 1 s \(timeout_s\); its process was ended"),
    "ignores signals": (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)",
        r"no result within 1 s",
    ),
    "exit": ("import os; os._exit(7)", r"its process ended by itself with exit code 7"),
    "kills itself": ("import os; os.kill(os.getpid(), 9)", r"its process was ended by SIGKILL"),
    "segfault": ("import ctypes; ctypes.string_at(0)", r"its process was ended by SIGSEGV"),
    "kills its guard": ("import os, time; os.kill(os.getppid(), 9); time.sleep(60)", r"its process was ended by SIGKILL"),
    "closes everything": ("import os; os.closerange(0, 65536); return 1", r"its process ended by itself with exit code"),
    "nan": ("return float('nan')", r"returned nan; fix: return a finite number"),
    "infinite": ("return float('inf')", r"returned inf; fix: return a finite number"),
    "huge integer": ("return 10 ** 400", r"returned a int that is not a number \(OverflowError\)"),
    "text": ("return '1.0'", r"returned '1.0' of type str; fix: return a finite number"),
    "list": ("return [1, 2, 3]", r"returned a list of 3 values"),
    "dict": ("return {'reward': 1}", r"returned a dict without 'score'"),
    "complex": ("return 1j", r"returned 1j of type complex"),
    "unprintable exception": (
        "E = type('E', (Exception,), {'__str__': lambda self: 1 / 0}); raise E()",
        r"E: an exception whose text cannot be made",
    ),
    "lying float": (
        "return type('F', (), {'__float__': lambda self: 1 / 0})()",
        r"returned a F that is not a number \(ZeroDivisionError\)",
    ),
    "broken reply": (
        "import os\n        for fd in range(3, 65536):\n            try: os.write(fd, b'nonsense\\n')\n            except OSError: pass\n        return 1",
        r"sent something that is not a score",
    ),
}  # fmt: skip

SOURCE = """
def score(completion):
    if completion == "bad":
        {line}
    return len(completion)
"""


@pytest.mark.fault
@pytest.mark.parametrize("name", BAD)
def test_a_row_that_breaks_the_function_is_skipped_alone(tmp_path, name):
    line, message = BAD[name]
    rows = completions("a", "bb", "ccc", "bad", "eeeee")
    scores = values(tmp_path, SOURCE.format(line=line), rows, timeout_s=1, on_error="skip")
    assert scores.parts["score"] == [1.0, 2.0, 3.0, None, 5.0]
    assert scores.total == [1.0, 2.0, 3.0, None, 5.0]
    assert scores.skipped == 1
    assert re.search(message, scores.reasons["score"][3])


@pytest.mark.fault
@pytest.mark.parametrize("name", ["exception", "infinite loop", "exit", "nan"])
def test_a_row_that_breaks_the_function_ends_the_run_with_its_place(tmp_path, name):
    line, message = BAD[name]
    rows = [completion(text, row=row, asks="What\nis it?") for text, row in (("a", 10), ("bad", 13), ("bad", 14))]
    with pytest.raises(RewardError) as caught:
        values(tmp_path, SOURCE.format(line=line), rows, timeout_s=1)
    text = str(caught.value)
    assert text.startswith("reward 'score' (reward.py) failed at row 13 ('What is it?'): ")
    assert re.search(message, text)
    assert text.count("fix: ") == 1
    assert (caught.value.part, caught.value.row) == ("score", 13)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ("[1.0]", "returned 1 values for 2 completions; fix: one for each"),
        ("3.0", "returned float, not a list"),
        ("None", "returned NoneType, not a list"),
        ("[1.0, float('nan')]", "row 1 .*returned nan"),
        ("['a', 1]", "row 0 .*of type str"),
        ("1 / 0", r"ZeroDivisionError: division by zero; at reward.py:1 in f: .*1 / 0"),
    ],
)
def test_results_of_a_batch_are_checked_one_by_one(tmp_path, result, message):
    with pytest.raises(RewardError, match=message):
        values(tmp_path, f"def f(completions): return {result}", completions("a", "b"))


def test_prints_and_huge_output_change_no_score(tmp_path):
    source = """
    import os, sys
    def score(completion):
        print("x" * 5_000_000)
        print("y" * 5_000_000, file=sys.stderr, flush=True)
        os.system("echo from a shell")
        return 1, "r" * 100_000
    """
    scores = values(tmp_path, source, completions("a", "b"))
    assert scores.parts["score"] == [1.0, 1.0]
    assert len(scores.reasons["score"][0]) == 2000


def test_what_was_printed_before_an_end_is_in_the_message(tmp_path):
    source = "import os\ndef score(completion):\n    print('the last words')\n    os._exit(5)"
    with pytest.raises(RewardError, match=r"exit code 5 \(it printed last: the last words\)"):
        values(tmp_path, source, completions("a"))


def test_standard_input_is_empty(tmp_path):
    with pytest.raises(RewardError, match="EOFError"):
        values(tmp_path, "def score(completion): return float(input())", completions("a"))


def test_a_copy_that_the_function_forks_sends_nothing(tmp_path):
    scores = values(
        tmp_path,
        "import os\ndef score(completion):\n    os.fork()\n    return len(completion)",
        completions("a", "bb", "ccc"),
    )
    assert scores.parts["score"] == [1.0, 2.0, 3.0]


LEAVES_BEHIND = """
import os, subprocess, threading, time
def score(completion):
    threading.Thread(target=time.sleep, args=(600,)).start()
    if completion == "fork":
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                open("pids", "a").write(f"{os.getpid()} ")
                time.sleep(600)
            os._exit(0)
        while not os.path.exists("pids"): time.sleep(0.01)
    if completion == "session":
        child = subprocess.Popen(["sleep", "600"], start_new_session=True)
        open("pids", "a").write(f"{child.pid} ")
    if completion == "hang":
        time.sleep(600)
    return 1
"""


@pytest.mark.fault
@pytest.mark.parametrize("end", ["leave", "hang"])
def test_what_the_function_started_ends_with_its_process(tmp_path, end):
    write(tmp_path, LEAVES_BEHIND)
    with loaded(tmp_path, {"python": "reward.py", "timeout_s": 2, "on_error": "skip"}) as rewards:
        rewards.score(completions("fork", "session"))
        pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
        assert len(pids) == 2
        assert all(map(is_alive, pids))
        if end == "hang":
            assert rewards.score(completions("hang")).skipped == 1
            assert not any(map(is_alive, pids))
    assert not any(map(is_alive, pids))


TRAINER = """
import sys, time
from pathlib import Path
sys.path.insert(0, {support!r})
from reward_files import completions, loaded
with loaded(Path({folder!r}), "reward.py") as rewards:
    rewards.score(completions("fork", "session"))
    print("ready", flush=True)
    time.sleep(600)
"""


@pytest.mark.fault
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_no_process_outlives_a_trainer_that_is_killed(tmp_path, number):
    write(
        tmp_path, LEAVES_BEHIND.replace("return 1", "open('own', 'w').write(f'{os.getpid()} {os.getppid()}'); return 1")
    )
    code = TRAINER.format(support=os.path.dirname(sys.modules["reward_files"].__file__), folder=str(tmp_path))
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as trainer:
        assert trainer.stdout.readline() == "ready\n"
        pids = [int(pid) for name in ("pids", "own") for pid in (tmp_path / name).read_text().split()]
        assert len(pids) == 4
        assert all(map(is_alive, pids))
        trainer.send_signal(number)
    wait_for(lambda: not any(map(is_alive, pids)), 10, "end of all processes")


def test_a_fork_of_the_trainer_does_not_keep_the_process_alive(tmp_path):
    """Data loaders are such forks, and hold all pipes open."""
    write(tmp_path, "import os\ndef score(completion): return os.getpid()")
    with loaded(tmp_path, "reward.py:score") as rewards:
        (pid,) = rewards.score(completions("a")).total
        fork = os.fork()
        if fork == 0:
            time.sleep(600)
            os._exit(0)
        started = time.monotonic()
    try:
        assert time.monotonic() - started < 5
        assert not is_alive(int(pid))
    finally:
        os.kill(fork, signal.SIGKILL)
        os.waitpid(fork, 0)


def test_a_hang_costs_its_limit_and_the_process_is_started_again(tmp_path):
    source = """
    import os, time
    def score(completion):
        if completion == "bad": time.sleep(600)
        return os.getpid()
    """
    write(tmp_path, source)
    with loaded(tmp_path, {"python": "reward.py", "name": "score", "timeout_s": 1, "on_error": "skip"}) as rewards:
        started = time.monotonic()
        before, _, after = rewards.score(completions("a", "bad", "b")).parts["score"]
        assert before != after
        assert 1 <= time.monotonic() - started < 6
        assert rewards.score(completions("c")).parts["score"] == [after]


def test_the_limit_is_for_each_call(tmp_path):
    source = "import time\ndef score(completion):\n    time.sleep(0.4)\n    return 1"
    assert values(tmp_path, source, completions(*"abcde"), timeout_s=1).parts["score"] == [1.0] * 5


def test_a_file_that_breaks_later_is_a_fault_and_no_endless_restart(tmp_path):
    path = write(tmp_path, "import os\ndef score(completion): os._exit(1)")
    with loaded(tmp_path, {"python": "reward.py:score", "on_error": "skip"}) as rewards:
        path.write_text("1 / 0")
        scores = rewards.score(completions("a", "b", "c"))
    assert scores.skipped == 3
    assert "cannot be loaded again: ZeroDivisionError: division by zero; at reward.py:1" in scores.reasons["score"][2]


def test_a_row_that_cannot_be_sent_is_that_row(tmp_path):
    rows = [completion("a"), completion("b", row=1, lock=open), completion("c", row=2)]
    rows[1].fields["lock"] = lambda: None
    scores = values(tmp_path, "def score(completion): return 1", rows, on_error="skip")
    assert scores.parts["score"] == [1.0, None, 1.0]
    assert "the row cannot be sent to the process" in scores.reasons["score"][1]


def test_skipped_rows_are_logged(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        values(tmp_path, SOURCE.format(line="int('x')"), completions("bad", "a"), on_error="skip")
    assert "failed at row 0 ('What is 2 + 2?'): ValueError" in caplog.text
    assert "skipped, with 1 of 2 rows of this call" in caplog.text


def test_secrets_stay_with_the_trainer(tmp_path, monkeypatch):
    for name in (
        "MLFLOW_TRACKING_PASSWORD",
        "MLFLOW_TRACKING_TOKEN",
        "HF_TOKEN",
        "AWS_SECRET_ACCESS_KEY",
        "MY_API_KEY",
    ):
        monkeypatch.setenv(name, "s3cret")
    monkeypatch.setenv("DATABASE", "postgresql://ann:s3cret@db/x")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    source = "import os\ndef score(completion): return 0, ','.join(sorted(k for k, v in os.environ.items() if 's3cret' in v or k.startswith('TOKENIZERS')))"
    assert values(tmp_path, source, completions("a")).reasons["score"] == ["TOKENIZERS_PARALLELISM"]
    allowed = values(tmp_path, source, completions("a"), env=["MY_API_KEY"])
    assert allowed.reasons["score"] == ["MY_API_KEY,TOKENIZERS_PARALLELISM"]


@pytest.mark.fault
def test_an_import_that_hangs_is_ended(tmp_path):
    path = write(tmp_path, "import time\ntime.sleep(600)\ndef score(completion): return 1")
    process = ScoringProcess(ScoringTarget("function", str(path), "score"), folder=tmp_path, loads_s=1)
    with pytest.raises(ScoringError, match="it was not loaded within 1 s"):
        process.start()
