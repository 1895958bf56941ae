"""The worker's report: JSON lines in one file, read by the supervisor and by everything that shows progress.

The worker never waits for the tracking server while it trains. It writes here, and the supervisor copies the events to
MLflow. Events: stage, note, progress, metrics, params, tags, artifact, checkpoint, datasets, error, result.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlflow_finetune_plugin.jobs.console import Colour


class Report:
    """The worker's side. Every call appends one line with one write."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def event(self, kind: str, **values: Any) -> None:
        line = json.dumps({"event": kind, "time_ms": int(time.time() * 1000), **values}, ensure_ascii=False)
        data = (line + "\n").encode()
        written = os.write(self._fd, data)
        if written != len(data):
            raise OSError(28, "disk full while writing the worker's report")

    def stage(self, name: str, text: str = "", *, colour: Colour | None = None) -> None:
        """Report a line of a stage (plan, data, train, proof, model).

        Args:
            colour: On a terminal, the colour of a verdict: the text up to its first colon.
        """
        self.event("stage", name=name, text=text, **({"colour": colour} if colour else {}))

    def text(self, path: Path, text: str, folder: str) -> None:
        """Write a text to ``path`` and add it as an artifact in ``folder``."""
        path.write_text(text, encoding="utf-8")
        self.artifact(path, folder)

    def note(self, text: str) -> None:
        """Add a warning for the person who watches the run."""
        self.event("note", text=text)

    def progress(self, done: int, total: int, unit: str, *, stage: str, **figures: float) -> None:
        """Report how far a stage is, in ``unit``. ``figures`` (loss, tokens_per_s, seconds_left) are shown beside it."""
        self.event("progress", done=done, total=total, unit=unit, stage=stage, **figures)

    def metrics(self, values: Mapping[str, float], *, step: int = 0, model_id: str | None = None) -> None:
        """Add metrics for the run (and the logged model). NaN and infinity are written as text, because JSON has
        neither.
        """
        safe = {key: (value if math.isfinite(value) else repr(float(value))) for key, value in values.items()}
        self.event("metrics", values=safe, step=step, model_id=model_id)

    def params(self, values: Mapping[str, Any]) -> None:
        self.event("params", values={key: str(value) for key, value in values.items()})

    def tags(self, values: Mapping[str, str]) -> None:
        self.event("tags", values=dict(values))

    def artifact(self, path: Path, folder: str = "") -> None:
        """Add a file to upload to the run under ``folder``. It must stay where it is until the run has ended."""
        self.event("artifact", path=str(path), folder=folder)

    def datasets(self, inputs: Sequence[Mapping[str, str]]) -> None:
        """Add dataset inputs: name, digest, source, context, profile."""
        self.event("datasets", inputs=[dict(entry) for entry in inputs])

    def error(self, reason: str, traceback: str = "") -> None:
        self.event("error", reason=reason, traceback=traceback)

    def result(self, **values: Any) -> None:
        """Add the result of a worker that succeeded. Without it the run counts as failed."""
        self.event("result", **values)


class ReportReader:
    """The reader's side: the complete lines since the last call."""

    def __init__(self, path: Path, offset: int = 0) -> None:
        self._path = path
        self.offset = offset

    def new_events(self) -> Iterator[dict[str, Any]]:
        """Yield the events since the last call. ``offset`` is behind each event when it is yielded. An incomplete line
        waits for its end.
        """
        try:
            stream = self._path.open("rb")
        except FileNotFoundError:
            return
        with stream:
            stream.seek(self.offset)
            for line in stream:
                if not line.endswith(b"\n"):
                    return
                self.offset += len(line)
                yield json.loads(line)
