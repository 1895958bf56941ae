"""Run ``mlflow-finetune promote`` for the page, in a separate process.

The gate loads models and may take minutes. In its own process a failure becomes a message, and the page stays quick.
The process belongs to the app, not to the page that started it: closing the page changes nothing, and the next page
shows the progress or the verdict. The process ends with the app. The move is written ahead, so it is then complete, not
begun, or the next command finishes it.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Literal

from mlflow_finetune_plugin.errors import MoveError, without_secrets
from mlflow_finetune_plugin.promotion.decision import EXIT_CODES
from mlflow_finetune_plugin.store.clients import absolute_store
from mlflow_finetune_plugin.store.people import ON_BEHALF_OF

LONGEST_S = 3600.0
"""Longest promotion without a canary; a longer one is stopped."""
_LONGEST_LINE = 2000
_MOST_LINES = 200
_MOST_DECISION_CHARS = 8 * 2**20
_GRACE_S = 3.0

Outcome = Literal["promoted", "held", "rejected", "fault"]
_OUTCOMES: dict[int, Outcome] = {
    EXIT_CODES["promote"]: "promoted",
    EXIT_CODES["hold"]: "held",
    EXIT_CODES["reject"]: "rejected",
}


@dataclass(frozen=True)
class JudgedCriterion:
    """One criterion of the policy. ``outcome`` is pass, hold or reject."""

    name: str
    outcome: str
    reason: str


@dataclass(frozen=True)
class PromotionEnd:
    """The end of a promotion.

    ``reason`` is one or more sentences. ``findings`` are the verdict's criteria, none after a failure. A failure leaves
    no move that the next command would not settle. ``when`` is UTC.
    """

    outcome: Outcome
    reason: str
    findings: tuple[JudgedCriterion, ...] = ()
    notes: tuple[str, ...] = ()
    when: datetime = field(default_factory=lambda: datetime.now(UTC))


class Promotion:
    """One run of the gate. ``lines`` are its output so far; ``end`` is None while it runs."""

    def __init__(self, model: str, version: str, person: str, limit_s: float = LONGEST_S) -> None:
        self.model, self.version, self.person = model, version, person
        self.begun = datetime.now(UTC)
        self._lines: deque[str] = deque(maxlen=_MOST_LINES)
        self._end: PromotionEnd | None = None
        command = ["-m", "mlflow_finetune_plugin.cli", "promote", f"--version={version}", "--json", "--", model]
        self._process = subprocess.Popen(
            [sys.executable, *command],
            env=environment_for(person),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C ends the app, which then ends the process.
        )
        self._is_late = False
        self._decision = ""
        self._readers = [
            threading.Thread(target=self._read_lines, args=(self._process.stderr,), daemon=True),
            threading.Thread(target=self._read_decision, args=(self._process.stdout,), daemon=True),
        ]
        for reader in self._readers:
            reader.start()
        self._watch = threading.Thread(target=self._until_ended, args=(limit_s,), daemon=True)
        self._watch.start()

    @property
    def lines(self) -> tuple[str, ...]:
        return tuple(self._lines)

    @property
    def end(self) -> PromotionEnd | None:
        return self._end

    def wait(self, timeout_s: float | None = None) -> PromotionEnd | None:
        self._watch.join(timeout_s)
        return self._end

    def stop(self) -> None:
        """Asks the process to end, and makes it after a while. The command puts in order what it has begun."""
        _end_process(self._process, signal.SIGTERM)
        try:
            self._process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            _end_process(self._process, signal.SIGKILL)

    def _read_lines(self, stream: IO[bytes]) -> None:
        """Collect the output. Endless lines are cut, so that the process cannot fill the memory."""
        while line := stream.readline(_LONGEST_LINE):
            text = line.decode("utf-8", "replace").strip()
            if text:
                self._lines.append(without_secrets(text))

    def _read_decision(self, stream: IO[bytes]) -> None:
        self._decision = stream.read(_MOST_DECISION_CHARS).decode("utf-8", "replace")
        while stream.read(2**16):
            pass

    def _until_ended(self, limit_s: float) -> None:
        try:
            self._process.wait(limit_s)
        except subprocess.TimeoutExpired:
            self._is_late = True
            self.stop()
        code = self._process.wait()
        for reader in self._readers:
            reader.join(_GRACE_S)
        self._end = _ended(code, self._decision, self.lines, limit_s if self._is_late else None)


class Promotions:
    """The promotions of this app, one at a time for each model. The last one's end stays readable."""

    def __init__(self, *, limit_s: float = LONGEST_S) -> None:
        self._limit_s = limit_s
        self._last: dict[str, Promotion] = {}
        self._lock = threading.Lock()
        atexit.register(self.stop)

    def begin(self, model: str, version: str, person: str) -> Promotion:
        """Start a promotion. Raises MoveError while another one of the same model runs."""
        with self._lock:
            last = self._last.get(model)
            if last is not None and last.end is None:
                raise MoveError(
                    f"{model}: the gate judges version {last.version}, started by {last.person or 'this page'} at "
                    f"{last.begun:%H:%M:%S} UTC; fix: wait for its verdict"
                )
            begun = self._last[model] = Promotion(model, version, person, self._limit_s)
            return begun

    def last(self, model: str) -> Promotion | None:
        """Return the model's last promotion, running or ended."""
        with self._lock:
            return self._last.get(model)

    def stop(self) -> None:
        """At the end of the app."""
        with self._lock:
            left = [running for running in self._last.values() if running.end is None]
        for running in left:
            running.stop()


def environment_for(person: str) -> dict[str, str]:
    """Return the environment of a command that acts for a person, with the stores of this process."""
    import mlflow

    tracking, registry = mlflow.get_tracking_uri(), mlflow.get_registry_uri()
    environment = {**os.environ, "MLFLOW_TRACKING_URI": absolute_store(tracking, Path.cwd()), "PYTHONUNBUFFERED": "1"}
    if registry != tracking:
        environment["MLFLOW_REGISTRY_URI"] = absolute_store(registry, Path.cwd())
    return {**environment, ON_BEHALF_OF: person}


def _ended(code: int, decision: str, lines: tuple[str, ...], late_s: float | None) -> PromotionEnd:
    outcome = _OUTCOMES.get(code)
    if late_s is not None:
        return PromotionEnd(
            "fault",
            f"the gate had not ended after {late_s / 60:.0f} minutes and was stopped; fix: run `mlflow-finetune promote` in a terminal",
        )
    if outcome is None:
        message = (
            "\n".join(line.removeprefix("mlflow-finetune: ") for line in lines[-3:]) if code != 2 else _message(lines)
        )
        how = f"the gate was ended by signal {-code}" if code < 0 else f"the gate failed with exit code {code}"
        return PromotionEnd("fault", message if code == 2 and message else f"{how}{f': {message}' if message else ''}")
    try:
        report: dict[str, Any] = json.loads(decision)
        verdict = report["verdict"]
        findings = tuple(
            JudgedCriterion(str(f["name"]), str(f["outcome"]), str(f["reason"])) for f in verdict["findings"]
        )
        return PromotionEnd(outcome, str(verdict["reason"]), findings, tuple(map(str, report["notes"])))
    except (ValueError, KeyError, TypeError) as error:
        return PromotionEnd(outcome, f"the command's verdict cannot be read ({error}); fix: see the history of moves")


def _message(lines: tuple[str, ...]) -> str:
    """Return the last message of the command, which may have several lines."""
    begins = [i for i, line in enumerate(lines) if line.startswith("mlflow-finetune: ")]
    return "\n".join(lines[begins[-1] :]).removeprefix("mlflow-finetune: ") if begins else "\n".join(lines[-3:])


def _end_process(process: subprocess.Popen[bytes], number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)
