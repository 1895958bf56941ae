"""Promote and rollback, as the commands do them.

The gate loads models and may take minutes, so it runs as the command itself, in a process of its own: a fault of it is
told, and the page stays quick. The process belongs to this app and not to the page that asked: a page that is closed
changes nothing, and whoever opens the next one finds the promotion under way, or its verdict. When the app ends, the
process is ended with it; a move is written ahead, so it is then whole, not begun, or finished by the next command.
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
from typing import IO, TYPE_CHECKING, Any, Literal

from gradio_app.version_cards import find_version
from mlflow_finetune_plugin.errors import MoveError, without_secrets
from mlflow_finetune_plugin.promotion.canary_moves import stop_canary
from mlflow_finetune_plugin.promotion.canary_state import read_state
from mlflow_finetune_plugin.promotion.holder import ON_BEHALF_OF, on_behalf_of
from mlflow_finetune_plugin.promotion.intent import CHAMPION, PREVIOUS
from mlflow_finetune_plugin.promotion.model_state import named, read_model, registry_faults
from mlflow_finetune_plugin.promotion.move import roll_back
from mlflow_finetune_plugin.tracking import absolute_store

if TYPE_CHECKING:
    from mlflow import MlflowClient

LONGEST_S = 3600.0
"""Of a promotion without a canary; what takes longer is ended."""
_LONGEST_LINE = 2000
_LINES_KEPT = 200
_LONGEST_DECISION = 8 * 2**20
_GRACE_S = 3.0

Outcome = Literal["promoted", "held", "rejected", "fault"]
_OUTCOMES: dict[int, Outcome] = {0: "promoted", 3: "held", 4: "rejected"}


@dataclass(frozen=True)
class Found:
    """One criterion of the policy: ``outcome`` is pass, hold or reject."""

    name: str
    outcome: str
    reason: str


@dataclass(frozen=True)
class PromotionEnd:
    """``reason`` in one sentence or more; ``findings`` are those of the verdict, none for a fault. A fault moved nothing that
    the next command would not settle. ``when`` is UTC.
    """

    outcome: Outcome
    reason: str
    findings: tuple[Found, ...] = ()
    notes: tuple[str, ...] = ()
    when: datetime = field(default_factory=lambda: datetime.now(UTC))


class Promotion:
    """One run of the gate. ``lines`` are what it says meanwhile; ``end`` is None until it has ended."""

    def __init__(self, model: str, version: str, person: str, limit_s: float = LONGEST_S) -> None:
        self.model, self.version, self.person = model, version, person
        self.begun = datetime.now(UTC)
        self._lines: deque[str] = deque(maxlen=_LINES_KEPT)
        self._end: PromotionEnd | None = None
        command = ["-m", "mlflow_finetune_plugin.cli", "promote", f"--version={version}", "--json", "--", model]
        self._process = subprocess.Popen(
            [sys.executable, *command],
            env=_environment(person),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the app, which ends it
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
        """What has no end is cut into pieces, so that nothing the process says can fill the memory."""
        while line := stream.readline(_LONGEST_LINE):
            text = line.decode("utf-8", "replace").strip()
            if text:
                self._lines.append(without_secrets(text))

    def _read_decision(self, stream: IO[bytes]) -> None:
        self._decision = stream.read(_LONGEST_DECISION).decode("utf-8", "replace")
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
    """Those that this app has begun: one at a time for each model, and the last one's end stays to be told."""

    def __init__(self, *, limit_s: float = LONGEST_S) -> None:
        self._limit_s = limit_s
        self._last: dict[str, Promotion] = {}
        self._lock = threading.Lock()
        atexit.register(self.stop)

    def begin(self, model: str, version: str, person: str) -> Promotion:
        """Raises MoveError while another one of the same model is under way."""
        with self._lock:
            last = self._last.get(model)
            if last is not None and last.end is None:
                raise MoveError(
                    f"{model}: the gate judges version {last.version}, asked by {last.person or 'somebody'}, since "
                    f"{last.begun:%H:%M:%S} UTC; fix: wait for its verdict"
                )
            begun = self._last[model] = Promotion(model, version, person, self._limit_s)
            return begun

    def last(self, model: str) -> Promotion | None:
        """Under way or ended."""
        with self._lock:
            return self._last.get(model)

    def stop(self) -> None:
        """At the end of the app."""
        with self._lock:
            left = [one for one in self._last.values() if one.end is None]
        for one in left:
            one.stop()


@dataclass(frozen=True)
class PlannedPromotion:
    """What promoting a version would do now, if the gate lets it pass."""

    model: str
    version: str
    champion: str | None

    @property
    def text(self) -> str:
        over = (
            "its base, for there is no champion yet" if self.champion is None else f"{CHAMPION} version {self.champion}"
        )
        after = "" if self.champion is None else f"; {PREVIOUS} becomes version {self.champion}, for a rollback"
        return (
            f"The gate judges version {self.version} against {over}, by the policy that its training wrote down. If it passes, "
            f"{CHAMPION} becomes version {self.version} and is served from then on{after}. If it is held or rejected, nothing is "
            "moved. Either way the decision is recorded under your name. It takes seconds to minutes."
        )


def plan_promotion(client: MlflowClient, model: str, version: str) -> PlannedPromotion:
    """Raises MoveError for a version that there is not, or that is champion; TrackingError. Reads only."""
    with registry_faults(model):
        aliases, _ = read_model(client, model)
        number = str(find_version(client, model, version).version)
    if aliases.get(CHAMPION) == number:
        raise MoveError(f"{model}: version {number} is {CHAMPION} already; fix: nothing, or pick another one")
    return PlannedPromotion(model, number, aliases.get(CHAMPION))


@dataclass(frozen=True)
class PlannedRollback:
    """What a rollback would do now. ``canary``: its candidate, where one is under way and would be ended instead."""

    model: str
    champion: str | None
    previous: str | None
    canary: str | None

    @property
    def text(self) -> str:
        if self.canary is not None:
            return (
                f"The canary of version {self.canary} ends, and its requests go back to where they went before. {CHAMPION} stays "
                f"{named(self.champion)}."
            )
        return (
            f"{CHAMPION} goes from {named(self.champion)} back to {named(self.previous)}, which is served from then on; {PREVIOUS} "
            f"becomes {named(self.champion)}, so that another rollback undoes this one. No gate is asked."
        )


def plan_rollback(client: MlflowClient, model: str) -> PlannedRollback:
    """Raises MoveError where there is nothing to go back to, TrackingError. Reads only."""
    with registry_faults(model):
        aliases, tags = read_model(client, model)
    champion, previous, canary = aliases.get(CHAMPION), aliases.get(PREVIOUS), read_state(tags)
    if canary is not None and champion != canary.candidate:
        return PlannedRollback(model, champion, previous, canary.candidate)
    if previous is None or previous == champion:
        raise MoveError(
            f"{model}: no version has the alias {PREVIOUS!r} that could become {CHAMPION} again; fix: promote a second one first"
        )
    return PlannedRollback(model, champion, previous, None)


def carry_out_rollback(client: MlflowClient, plan: PlannedRollback, *, reason: str, person: str) -> str:
    """What was done, in words. Raises MoveError when the aliases are no longer as planned, LeaseError, TrackingError."""
    if plan_rollback(client, plan.model) != plan:
        raise MoveError(f"{plan.model}: its aliases have moved since you looked; nothing was moved; fix: look again")
    with on_behalf_of(person):
        if plan.canary is not None:
            ended = stop_canary(client, plan.model, reason=reason or None)
            return ended or f"{plan.model}: the canary had ended meanwhile; nothing was moved"
        if plan.champion is None or plan.previous is None:
            move = roll_back(client, plan.model, reason=reason or None)
        else:
            move = roll_back(client, plan.model, reason=reason or None, judged=(plan.champion, plan.previous))
    told = f"{move.settled.text}; {move.text}" if move.settled is not None else move.text
    if move.unrecorded is not None:
        told += f"; the move stands, but its record could not be written yet: {move.unrecorded}"
    return told


def _environment(person: str) -> dict[str, str]:
    """The stores of this process, wherever they were set."""
    import mlflow

    tracking, registry = mlflow.get_tracking_uri(), mlflow.get_registry_uri()
    found = {**os.environ, "MLFLOW_TRACKING_URI": absolute_store(tracking, Path.cwd()), "PYTHONUNBUFFERED": "1"}
    if registry != tracking:
        found["MLFLOW_REGISTRY_URI"] = absolute_store(registry, Path.cwd())
    return {**found, ON_BEHALF_OF: person}


def _ended(code: int, decision: str, lines: tuple[str, ...], late_s: float | None) -> PromotionEnd:
    outcome = _OUTCOMES.get(code)
    if late_s is not None:
        return PromotionEnd(
            "fault", f"the gate had not ended after {late_s / 60:.0f} minutes and was stopped; fix: run it as a command"
        )
    if outcome is None:
        said = (
            "\n".join(line.removeprefix("mlflow-finetune: ") for line in lines[-3:]) if code != 2 else _message(lines)
        )
        how = f"the gate was ended by signal {-code}" if code < 0 else f"the gate failed with exit code {code}"
        return PromotionEnd("fault", said if code == 2 and said else f"{how}{f': {said}' if said else ''}")
    try:
        told: dict[str, Any] = json.loads(decision)
        verdict = told["verdict"]
        findings = tuple(Found(str(f["name"]), str(f["outcome"]), str(f["reason"])) for f in verdict["findings"])
        return PromotionEnd(outcome, str(verdict["reason"]), findings, tuple(map(str, told["notes"])))
    except (ValueError, KeyError, TypeError) as error:
        return PromotionEnd(
            outcome, f"the command gave no verdict that can be shown ({error}); fix: see the history of moves"
        )


def _message(lines: tuple[str, ...]) -> str:
    """The last message of the command, which may have several lines."""
    begins = [i for i, line in enumerate(lines) if line.startswith("mlflow-finetune: ")]
    return "\n".join(lines[begins[-1] :]).removeprefix("mlflow-finetune: ") if begins else "\n".join(lines[-3:])


def _end_process(process: subprocess.Popen[bytes], number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)
