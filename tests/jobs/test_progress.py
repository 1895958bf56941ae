"""What a person sees: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import io
import os
import pty
import select

import pytest

from mlflow_finetune_plugin.jobs.folder import JobFolder
from mlflow_finetune_plugin.jobs.progress import ProgressDisplay
from mlflow_finetune_plugin.jobs.report import Report


def reported(folder: JobFolder) -> None:
    report = Report(folder.report)
    report.stage("data", "12 kept")
    for done in range(5):
        report.progress(done, 4, "steps", stage="train", loss=2.0 / (done + 1), tokens_per_s=4531.0, seconds_left=61.0)
    report.note("beware")
    report.stage("train", "4 steps in 1.0 s")
    folder.write("outcome", {"status": "FINISHED"})


def test_terminal_shows_one_bar_with_loss_speed_and_time_left(tmp_path, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    folder = JobFolder(tmp_path)
    reported(folder)
    reader, writer = pty.openpty()
    with os.fdopen(writer, "w") as terminal:
        outcome = ProgressDisplay(folder, terminal).until_outcome()
        output = b""
        while select.select([reader], [], [], 0.3)[0]:
            output += os.read(reader, 1 << 16)
    os.close(reader)
    shown = output.decode()
    assert outcome == {"status": "FINISHED"}
    assert "data     12 kept" in shown
    assert "4/4" in shown
    assert "loss 0.4" in shown
    assert "4,531 tokens/s" in shown
    assert "1 min 1 s left" in shown
    assert "note     beware" in shown
    bars = [line for line in shown.split("\n") if "|" in line]
    assert len(bars) == 1  # redrawn in place, never a second one


@pytest.mark.parametrize(
    ("no_color", "line"), [("", "proof    \x1b[32mbetter\x1b[0m: 0 -> 1"), ("1", "proof    better: 0 -> 1")]
)
def test_a_verdict_is_coloured_on_a_terminal_unless_no_color_is_set(tmp_path, monkeypatch, no_color, line):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", no_color)
    folder = JobFolder(tmp_path)
    Report(folder.report).stage("proof", "better: 0 -> 1", colour="green")
    folder.write("outcome", {"status": "FINISHED"})
    reader, writer = pty.openpty()
    with os.fdopen(writer, "w") as terminal:
        ProgressDisplay(folder, terminal).until_outcome()
        output = os.read(reader, 1 << 16).decode()
    os.close(reader)
    assert line in output


def test_log_gets_the_first_and_the_last_line_of_progress(tmp_path):
    folder = JobFolder(tmp_path)
    reported(folder)
    out = io.StringIO()
    ProgressDisplay(folder, out).until_outcome()
    lines = [line.strip() for line in out.getvalue().splitlines() if "of 4 steps" in line]
    assert lines[0].startswith("train    0 of 4 steps")
    assert lines[-1].startswith("train    4 of 4 steps, loss 0.4")


def test_half_a_line_waits_for_its_end(tmp_path):
    folder = JobFolder(tmp_path)
    out = io.StringIO()
    watcher = ProgressDisplay(folder, out)
    folder.report.write_text('{"event": "note", "text": "first"}\n{"event": "note", "te')
    watcher._show_new()
    with folder.report.open("a") as stream:
        stream.write('xt": "second"}\n')
    watcher._show_new()
    assert [line.split()[-1] for line in out.getvalue().splitlines()] == ["first", "second"]
