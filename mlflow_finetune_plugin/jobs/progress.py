"""Show a run to the person who waits for it: one line for each stage, a bar for training and proof."""

from __future__ import annotations

import time
from typing import Any, TextIO

from mlflow_finetune_plugin.jobs.console import Colour, ProgressLine, coloured
from mlflow_finetune_plugin.jobs.folder import JobFolder, supervisor_alive
from mlflow_finetune_plugin.jobs.report import ReportReader

POLL_S = 0.1
NO_SUPERVISOR_PATIENCE_S = 20.0

_NOT_FIGURES = ("event", "time_ms", "done", "total", "unit", "stage")


class ProgressDisplay:
    """Prints a job's report as it grows."""

    def __init__(self, folder: JobFolder, out: TextIO) -> None:
        self._folder = folder
        self._reader = ReportReader(folder.report)
        self._out = out
        self._progress = ProgressLine(out)

    def until_outcome(self) -> dict[str, Any] | None:
        """Follow the job until its outcome is written. Return None when no supervisor has lived for 20 seconds."""
        supervisor_alive_at = time.monotonic()
        while True:
            outcome = self._folder.read("outcome")  # before the report is read, whose last lines come first
            self._show_new()
            if outcome is not None:
                self._progress.close()
                return outcome
            if supervisor_alive(self._folder):
                supervisor_alive_at = time.monotonic()
            elif time.monotonic() - supervisor_alive_at > NO_SUPERVISOR_PATIENCE_S:
                self._progress.close()
                return None
            time.sleep(POLL_S)

    def _with_colour(self, text: str, colour: Colour | None) -> str:
        verdict, colon, rest = text.partition(":")
        return f"{coloured(verdict, colour, self._out)}{colon}{rest}" if colour else text

    def _show_new(self) -> None:
        for event in self._reader.new_events():
            if event["event"] == "progress":
                figures = {key: value for key, value in event.items() if key not in _NOT_FIGURES}
                self._progress.show(event["stage"], event["done"], event["total"], event["unit"], figures)
            elif event["event"] == "stage" and event["text"]:
                self._progress.print(f"  {event['name']:<8} {self._with_colour(event['text'], event.get('colour'))}")
            elif event["event"] == "note":
                self._progress.print(f"  note     {event['text']}")
