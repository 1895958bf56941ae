"""Write for a person: colour, durations and progress. Uses only the standard library until a bar is drawn."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, TextIO

if TYPE_CHECKING:
    from tqdm import tqdm

Colour = Literal["red", "green", "yellow"]

_CODES: dict[str, int] = {"red": 31, "green": 32, "yellow": 33}
_FIRST_INTERVAL_S = 10.0
_LONGEST_INTERVAL_S = 60.0
_BAR_COLUMNS = 110


def is_terminal(stream: TextIO) -> bool:
    """Return whether a person sees the stream on a terminal that can redraw a line."""
    try:
        return stream.isatty() and os.environ.get("TERM") != "dumb"
    except ValueError:  # the stream is closed
        return False


def coloured(text: str, colour: Colour, stream: TextIO) -> str:
    """Return ``text`` in a colour where the stream is a terminal and NO_COLOR is not set; else unchanged."""
    if os.environ.get("NO_COLOR") or not is_terminal(stream):
        return text
    return f"\x1b[{_CODES[colour]}m{text}\x1b[0m"


def duration(seconds: float) -> str:
    """Return a duration in words: ``25 s``, ``3 min 20 s``, ``2 h 5 min``."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s" if whole < 600 else f"{round(whole / 60)} min"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


class ProgressLine:
    """Shows how far a piece of work is: a bar on a terminal, elsewhere a line every 10 s, later every minute."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._work: tuple[str, str] | None = None
        self._first = (0.0, 0)  # when this work began to be shown, and how much was done then
        self._next_line_s = 0.0
        self._bar: tqdm[Any] | None = None

    def show(self, title: str, done: int, total: int, unit: str, figures: Mapping[str, float] | None = None) -> None:
        """Show that ``done`` of ``total`` are done.

        Args:
            title: What works, for example ``train``.
            done: How much is done, in ``unit``.
            total: How much there is to do.
            unit: What is counted, in the plural: ``steps``.
            figures: Numbers to show beside it, for example ``loss``, ``tokens_per_s`` and ``seconds_left``.
        """
        if self._work != (title, unit):
            self.close()
            self._work, self._first, self._next_line_s = (title, unit), (time.monotonic(), done), 0.0
        notes = self._notes(done, total, unit, dict(figures or {}))
        if is_terminal(self._stream):
            self._draw(title, done, total, unit, notes)
        else:
            self._write_line(title, done, total, unit, notes)
        if done >= total:
            self.close()

    def print(self, text: str) -> None:
        """Print a line above the bar."""
        if self._bar is not None:
            self._bar.clear()
        print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """End the bar. The next ``show`` begins another."""
        if self._bar is not None:
            self._bar.close()
        self._bar, self._work = None, None

    def _notes(self, done: int, total: int, unit: str, figures: dict[str, float]) -> str:
        began_s, done_before = self._first
        elapsed_s = time.monotonic() - began_s
        left_s = figures.pop("seconds_left", None)
        if left_s is None and done > done_before and elapsed_s > 1:
            left_s = (total - done) * elapsed_s / (done - done_before)
        notes = [_figure(key, value) for key, value in figures.items()]
        if not any(key.endswith("_per_s") for key in figures) and done > done_before and elapsed_s > 1:
            notes.append(f"{_number((done - done_before) / elapsed_s)} {unit.partition(' ')[0]}/s")
        if left_s is not None and 0 < done < total:
            notes.append(f"{duration(left_s)} left")
        return "".join(f", {note}" for note in notes)

    def _draw(self, title: str, done: int, total: int, unit: str, notes: str) -> None:
        from tqdm import tqdm

        if self._bar is None:
            size = shutil.get_terminal_size()
            self._bar = tqdm(
                total=total,
                desc=f"  {title:<8} ",
                file=self._stream,
                ncols=min(_BAR_COLUMNS, size.columns),
                nrows=size.lines,  # tqdm hides its bar on a terminal that does not report its height
                bar_format="{desc}{percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt}{postfix}",
            )
        self._bar.set_postfix_str(f"{unit}{notes}", refresh=False)
        self._bar.n = done
        self._bar.refresh()

    def _write_line(self, title: str, done: int, total: int, unit: str, notes: str) -> None:
        now_s = time.monotonic()
        if now_s < self._next_line_s and done < total:
            return
        self._next_line_s = now_s + min(_LONGEST_INTERVAL_S, max(_FIRST_INTERVAL_S, (now_s - self._first[0]) / 10))
        self.print(f"  {title:<8} {done:,} of {total:,} {unit}{notes}")


def _figure(key: str, value: float) -> str:
    """Return a number with its unit where the key names one (``tokens_per_s``), else after its name."""
    unit = key.removesuffix("_per_s")
    if unit != key:
        return f"{_number(value)} {unit.replace('_', ' ')}/s"
    return f"{key.replace('_', ' ')} {_number(value)}"


def _number(value: float | str) -> str:
    if isinstance(value, str):  # the report writes a number that JSON does not have as text
        return value
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
