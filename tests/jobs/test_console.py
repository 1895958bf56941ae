"""What people see of progress: a bar on a terminal, a line now and then elsewhere, colours only on a terminal."""

import io
import os
import pty
import select

import pytest

from mlflow_finetune_plugin.jobs.console import ProgressLine, coloured, duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0 s"), (0.4, "0 s"), (59.4, "59 s"), (93, "1 min 33 s"), (1408, "23 min"), (7500, "2 h 5 min")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_colour_is_for_terminals_that_want_it(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert coloured("promoted", "green", Terminal()) == "\x1b[32mpromoted\x1b[0m"
    assert coloured("promoted", "green", io.StringIO()) == "promoted"
    monkeypatch.setenv("TERM", "dumb")
    assert coloured("promoted", "green", Terminal()) == "promoted"
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    assert coloured("promoted", "green", Terminal()) == "promoted"


def test_log_has_numbers_with_units_and_no_internal_names():
    out = io.StringIO()
    progress = ProgressLine(out)
    for step in range(5):
        progress.show("train", step, 4, "steps", {"loss": 2.5, "tokens_per_s": 4531.0, "seconds_left": 93.0})
    assert out.getvalue().splitlines() == [
        "  train    0 of 4 steps, loss 2.5, 4,531 tokens/s",
        "  train    4 of 4 steps, loss 2.5, 4,531 tokens/s",
    ]


def test_time_left_is_computed_where_it_is_not_reported(monkeypatch):
    out, now = io.StringIO(), [1000.0]
    monkeypatch.setattr("mlflow_finetune_plugin.jobs.console.time.monotonic", lambda: now[0])
    progress = ProgressLine(out)
    for done in (0, 20, 40):
        progress.show("proof", done, 100, "answers of the base")
        now[0] += 11
    assert out.getvalue().splitlines()[-1] == ("  proof    40 of 100 answers of the base, 1.82 answers/s, 33 s left")


def test_lines_of_a_long_training_get_rarer(monkeypatch):
    out, now = io.StringIO(), [1000.0]
    monkeypatch.setattr("mlflow_finetune_plugin.jobs.console.time.monotonic", lambda: now[0])
    progress = ProgressLine(out)
    for step in range(7200):
        progress.show("train", step, 7200, "steps")
        now[0] += 1
    assert 100 < len(out.getvalue().splitlines()) < 150


def test_each_work_has_a_bar_of_its_own(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    reader, writer = pty.openpty()
    with os.fdopen(writer, "w") as terminal:
        progress = ProgressLine(terminal)
        for unit in ("answers of the base", "answers of the adapter"):
            for done in range(3):
                progress.show("proof", done, 2, unit)
        text = drained(reader)
    bars = [line for line in text.split("\n") if "|" in line]
    assert [bar.rpartition("2/2, ")[2].strip() for bar in bars] == ["answers of the base", "answers of the adapter"]


def drained(reader: int) -> str:
    """Everything that a terminal shows, read before it is closed."""
    parts = []
    while select.select([reader], [], [], 0.3)[0]:
        parts.append(os.read(reader, 1 << 16))
    os.close(reader)
    return b"".join(parts).decode()
