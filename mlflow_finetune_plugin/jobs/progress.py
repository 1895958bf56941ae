"""Shows a run to the person who waits for it: chapters as lines, training and proof as a bar."""

from __future__ import annotations

import shutil
import time
from typing import TYPE_CHECKING, Any, TextIO

from mlflow_finetune_plugin.jobs.folder import JobFolder, supervisor_alive
from mlflow_finetune_plugin.jobs.report import ReportReader

if TYPE_CHECKING:
    from tqdm import tqdm

POLL_S = 0.1
LINE_EVERY_S = 10.0
NO_SUPERVISOR_PATIENCE_S = 20.0


class Watcher:
    """Prints a job's report as it grows. On a terminal progress is a bar, elsewhere a line every ten seconds."""

    def __init__(self, folder: JobFolder, out: TextIO) -> None:
        self._folder = folder
        self._out = out
        self._reader = ReportReader(folder.report)
        self._bar: tqdm[Any] | None = None
        self._bar_title = ""
        self._next_line = 0.0

    def until_outcome(self) -> dict[str, Any] | None:
        """Follows the job until its outcome is written. None when no supervisor has lived for 20 seconds."""
        last_seen = time.monotonic()
        while True:
            outcome = self._folder.read("outcome")
            self._show_new()
            if outcome is not None:
                self._close_bar()
                return outcome
            if supervisor_alive(self._folder):
                last_seen = time.monotonic()
            elif time.monotonic() - last_seen > NO_SUPERVISOR_PATIENCE_S:
                self._close_bar()
                return None
            time.sleep(POLL_S)

    def _show_new(self) -> None:
        for event in self._reader.new_events():
            if event["event"] == "progress":
                self._show_progress(event)
            elif event["event"] == "stage" and event["text"]:
                self._line(f"  {event['name']:<8} {event['text']}")
            elif event["event"] == "note":
                self._line(f"  note     {event['text']}")

    def _show_progress(self, event: dict[str, Any]) -> None:
        figures = {
            key: value
            for key, value in event.items()
            if key not in ("event", "time_ms", "done", "total", "unit", "stage")
        }
        if self._out.isatty():
            self._show_bar(event, figures)
        elif time.monotonic() >= self._next_line or event["done"] == event["total"]:
            self._next_line = time.monotonic() + LINE_EVERY_S
            text = ", ".join(f"{key} {_number(value)}" for key, value in figures.items())
            self._line(
                f"  {event['stage']:<8} {event['done']}/{event['total']} {event['unit']}"
                + (f", {text}" if text else "")
            )

    def _show_bar(self, event: dict[str, Any], figures: dict[str, float]) -> None:
        from tqdm import tqdm

        title = f"{event['stage']} {event['unit']}"
        if self._bar is not None and self._bar_title != title:
            self._close_bar()
        if self._bar is None:
            self._bar_title = title
            self._bar = tqdm(
                total=event["total"],
                desc=f"  {event['stage']:<8} ",
                file=self._out,
                ncols=min(100, shutil.get_terminal_size().columns),
                nrows=shutil.get_terminal_size().lines,  # tqdm hides its bar on a terminal that does not tell its height
                bar_format="{desc}{percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt}{postfix}",
            )
        left = figures.pop("seconds_left", None)
        shown = [f"{key} {_number(value)}" for key, value in figures.items()]
        shown += [f"{tqdm.format_interval(left)} left"] if left is not None else []
        self._bar.set_postfix_str(", ".join([event["unit"], *shown]) if shown else event["unit"], refresh=False)
        self._bar.n = event["done"]
        self._bar.refresh()
        if event["done"] >= event["total"]:
            self._close_bar()

    def _close_bar(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _line(self, text: str) -> None:
        if self._bar is not None:
            self._bar.clear()
        print(text, file=self._out, flush=True)


def _number(value: float) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
