"""The trainer's side of a scoring process: start it, send completions, wait with a limit, and end it."""

from __future__ import annotations

import contextlib
import math
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Collection, Sequence
from pathlib import Path

from mlflow_finetune_plugin.rewards.completion import Completion, PartScore
from mlflow_finetune_plugin.rewards.process.environment import without_secret_variables
from mlflow_finetune_plugin.rewards.process.target import Description, Replies, ScoringError, ScoringTarget

_LOADS_S = 300.0  # imports of the user's, or a model that is read from a slow disk
_ENDS_S = 10.0
_LOST_S = 2.0
_GRACE_S = 1.0  # for an async function, whose calls end by themselves at the limit
_PACKAGES = Path(__file__).resolve().parents[3]


class ScoringProcess:
    """A process that scores with one target, and is started again after it was lost. One call at a time."""

    def __init__(
        self, target: ScoringTarget, *, folder: Path, env: Collection[str] = (), loads_s: float = _LOADS_S
    ) -> None:
        self._target = target
        self._folder = folder
        self._env = env
        self._loads_s = loads_s
        self._lock = threading.Lock()
        self._guard: subprocess.Popen[bytes] | None = None
        self._replies: Replies | None = None
        self._description: Description | None = None

    def start(self) -> Description:
        """Start the process if it does not run, and return what it loaded. Raises ScoringError."""
        if self._guard is not None and self._description is not None:
            return self._description
        ours, theirs = socket.socketpair()
        with theirs:
            self._guard = subprocess.Popen(
                [
                    sys.executable,
                    "-P",
                    "-u",
                    "-m",
                    "mlflow_finetune_plugin.rewards.process.guard",
                    str(theirs.fileno()),
                ],
                stdin=subprocess.PIPE,  # it breaks when this process ends
                stdout=subprocess.PIPE,
                pass_fds=[theirs.fileno()],
                cwd=self._folder,
                env=self._environment(),
                start_new_session=True,  # a Ctrl-C in this terminal reaches the trainer alone
            )
        self._replies = Replies(ours)
        reply = self._exchange(self._replies)
        if "fault" in reply:
            self.close()
            raise ScoringError(str(reply["fault"]))
        self._description = Description.of_reply(reply["description"])
        return self._description

    def _exchange(self, replies: Replies) -> dict[str, object]:
        try:
            replies.send(self._target, self._loads_s)
            return replies.receive(self._loads_s)
        except TimeoutError:
            self.close()
            raise ScoringError(f"it was not loaded within {self._loads_s:g} s") from None
        except (EOFError, OSError, ValueError):
            raise ScoringError(f"its process {self._end(is_lost=True)} while it was loaded") from None

    def _environment(self) -> dict[str, str]:
        variables = without_secret_variables(os.environ, self._env)
        paths = [variables.get("PYTHONPATH", ""), str(_PACKAGES)]
        return {**variables, "PYTHONPATH": os.pathsep.join(filter(None, paths))}

    def close(self) -> None:
        """End the process and all that it started. Closing it again does nothing."""
        self._end()

    def _end(self, *, is_lost: bool = False) -> str:
        """End the process and return how it ended, with the end of what it printed."""
        guard, self._guard, self._description = self._guard, None, None
        if self._replies is not None:
            self._replies.close()
            self._replies = None
        if guard is None:
            return "had ended"
        if is_lost:  # its guard ends by itself with its exit code
            with contextlib.suppress(subprocess.TimeoutExpired):
                guard.wait(_LOST_S)
        guard.terminate()  # and not only by closing stdin, which a fork of the trainer may hold open
        printed = b""
        try:
            printed, _ = guard.communicate(timeout=_ENDS_S)  # the guard ends the others first
        except subprocess.TimeoutExpired:
            guard.kill()
            guard.communicate()
        text = " ".join(printed.decode(errors="replace").split())[-500:]
        return _how_it_ended(guard.returncode) + (f" (it printed last: {text})" if text else "")

    def score(self, completions: Sequence[Completion], *, until_fault: bool = False) -> list[PartScore]:
        """Score the completions. A call that takes too long, and a process that ends, are faults of their row.

        Args:
            completions: What to score.
            until_fault: Whether to stop at the first fault; completions after it have no value.
        """
        with self._lock:
            scores: dict[int, PartScore] = {}
            while len(scores) < len(completions):
                waiting = [position for position in range(len(completions)) if position not in scores]
                self._score_once(completions, waiting, scores, until_fault)
                if until_fault and any(score.fault for score in scores.values()):
                    break
            return [scores.get(position, PartScore()) for position in range(len(completions))]

    def _score_once(
        self, completions: Sequence[Completion], waiting: list[int], scores: dict[int, PartScore], until_fault: bool
    ) -> None:
        """Send the waiting completions and add their scores, until all are there or the process is lost."""
        try:
            description = self.start()
        except ScoringError as error:
            scores |= dict.fromkeys(waiting, PartScore(fault=f"cannot be loaded again: {error}"))
            return
        unsendable = {position: fault for position in waiting if (fault := _pickle_fault(completions[position]))}
        if unsendable:
            scores |= {position: PartScore(fault=fault) for position, fault in unsendable.items()}
            return
        limit = self._target.timeout_s + (_GRACE_S if description.is_async else 0)
        try:
            self._receive([completions[position] for position in waiting], waiting, scores, limit, until_fault)
        except TimeoutError:
            self._end()
            fault = f"no result within {self._target.timeout_s:g} s (timeout_s); its process was ended"
        except (EOFError, OSError):
            fault = f"its process {self._end(is_lost=True)}"
        except (ValueError, KeyError, TypeError, IndexError) as error:
            self._end()
            fault = f"its process sent something that is not a score ({type(error).__name__})"
        else:
            return
        missing = [position for position in waiting if position not in scores]
        lost = missing if description.form == "batch" else missing[:1]
        scores |= dict.fromkeys(lost, PartScore(fault=fault))

    def _receive(
        self,
        batch: list[Completion],
        waiting: list[int],
        scores: dict[int, PartScore],
        limit_s: float,
        until_fault: bool,
    ) -> None:
        replies = self._replies
        if replies is None:
            raise EOFError
        replies.send(batch, limit_s)
        while True:
            reply = replies.receive(limit_s)
            if reply.get("done"):
                missing = [position for position in waiting if position not in scores]
                scores |= dict.fromkeys(missing, PartScore(fault="its process gave no score"))
                return
            score = PartScore(_number(reply["value"]), _text(reply["reason"]), _text(reply["fault"]))
            at = reply["at"]
            places = [waiting[at]] if at is not None else [each for each in waiting if each not in scores]
            scores |= dict.fromkeys(places, score)
            if until_fault and score.fault:
                self._end()  # it is still at work on the others
                return


def _pickle_fault(completion: Completion) -> str | None:
    try:
        pickle.dumps(completion)
    except Exception as error:  # pickle raises what the values' classes raise
        return f"the row cannot be sent to the process: {type(error).__name__}: {str(error)[:200]}"
    return None


def _number(value: object) -> float | None:
    if value is None:
        return None
    number = float(value)  # type: ignore[arg-type]
    if not math.isfinite(number):
        raise ValueError(number)
    return number


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _how_it_ended(code: int) -> str:
    number = code - 128 if code > 128 else -code
    if number > 0 and number in set(signal.Signals):
        return f"was ended by {signal.Signals(number).name}"
    return f"ended by itself with exit code {code}"
