"""The callback that writes a training's progress and metrics to the run's report."""

from __future__ import annotations

import logging
import math
import threading
import time
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mlflow_finetune_plugin.errors import TrainingError
from mlflow_finetune_plugin.jobs.report import Report
from mlflow_finetune_plugin.store.names import (
    EVAL_ACCURACY,
    EVAL_LOSS,
    MICRO_BATCH_TAG,
    TRAIN,
    TRAIN_HALVINGS,
    TRAIN_TOKEN_RATE,
    TRAIN_TOKENS,
    VALIDATION,
)
from mlflow_finetune_plugin.training.packing import MicroBatches
from mlflow_finetune_plugin.training.processes import ALONE, Processes

logger = logging.getLogger(__name__)

_FIGURES = ("loss", "grad_norm", "learning_rate", "mean_token_accuracy", "epoch")
_SLOW_FACTOR = 10.0
_SLOW_INTERVALS = 2  # in a row: the first steps also pay for what is prepared only once


@dataclass
class TrainerReporter(TrainerCallback):  # type: ignore[misc]
    """The callback that reports progress and metrics, and stops a training whose loss is not finite."""

    report: Report
    processes: Processes = ALONE
    expected_tokens_per_s: float | None = None
    """What the plan expects of this machine; a tenth of it is worth a warning."""
    further: tuple[str, ...] = ()
    """Figures of the objective, which are recorded beside the trainer's own; ``*`` stands for any part of a name."""
    losses: list[tuple[int, float]] = field(default_factory=list)
    eval_losses: list[tuple[int, float]] = field(default_factory=list)
    tokens: int = 0
    halvings: int = 0
    stop: threading.Event = field(default_factory=threading.Event)
    """Set by SIGTERM: the running step is finished and saved, then training stops."""
    _events: list[dict[str, Any]] = field(default_factory=list)
    _started: float = 0.0
    _seconds_before: float = 0.0
    _slow_intervals: int = 0
    _mark: tuple[float, int, int] = (0.0, 0, 0)  # time, tokens, step at the last log

    def on_smaller_micro_batches(self, smaller: MicroBatches) -> None:
        """Report that memory ran out and that the step is repeated in smaller parts."""
        size = f"{smaller.rows} rows" if smaller.batching == "padded" else f"{smaller.tokens} tokens"
        message = f"out of memory: the step is repeated with micro-batches of {size}; the rows per step stay the same"
        logger.warning("process %s of %s: %s", self.processes.rank, self.processes.count, message)
        self.report.note(message)
        self.report.tags({MICRO_BATCH_TAG: size})
        self.halvings += 1

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._mark = (time.monotonic(), 0, 0)
        self._started = time.monotonic()
        self.report.progress(0, state.max_steps, "steps", stage="train")

    def state(self) -> dict[str, Any]:
        """Return the state that a resumed attempt needs to continue the report."""
        return {
            "losses": self.losses,
            "eval_losses": self.eval_losses,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "halvings": self.halvings,
            "events": self._events,
        }

    def restore(self, values: dict[str, Any], state: TrainerState) -> None:
        """Return to the state of a saved checkpoint and report its metrics again, with their original times.

        The supervisor skips metrics that MLflow already has, so repeating them is safe and fills gaps of a crash.
        """
        self.losses = [(int(step), float(loss)) for step, loss in values["losses"]]
        self.eval_losses = [(int(step), float(loss)) for step, loss in values["eval_losses"]]
        self.tokens, self.halvings = int(values["tokens"]), int(values["halvings"])
        self._seconds_before = float(values["seconds"])
        self._events = list(values["events"])
        self._mark = (time.monotonic(), self.tokens, state.global_step)
        for event in self._events:
            self.report.event("metrics", **event)
        self.report.progress(state.global_step, state.max_steps, "steps", stage="train")

    @property
    def seconds(self) -> float:
        """Seconds of training over all attempts, as far as they were saved."""
        return self._seconds_before + time.monotonic() - self._started

    def _metrics(self, values: dict[str, float], step: int) -> None:
        safe = {key: value if math.isfinite(value) else repr(value) for key, value in values.items()}
        event = {"time_ms": int(time.time() * 1000), "values": safe, "step": step, "model_id": None}
        self._events.append(event)
        self.report.event("metrics", **event)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step == 1:
            self.report.event("first_step")
        if state.global_step == state.max_steps:
            control.should_log = True  # Otherwise the last steps are missing from curve and token count.
        if self.processes.any(self.stop.is_set()):
            self.stop.set()
            control.should_save = control.should_training_stop = True

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        figures = {key: float(value) for key, value in (logs or {}).items() if isinstance(value, (int, float))}
        if "loss" in figures:
            self._on_train_log(state, figures)
        elif EVAL_LOSS in figures:
            self.eval_losses.append((state.global_step, figures[EVAL_LOSS]))
            then, tokens, step = self._mark
            self._mark = (
                then + figures.get("eval_runtime", 0.0),
                tokens,
                step,
            )  # Evaluation does not count as training time.
            keys = {EVAL_LOSS: EVAL_LOSS, EVAL_ACCURACY: EVAL_ACCURACY}
            names = [key.removeprefix("eval_") for key in figures if key.startswith("eval_")]
            keys |= {f"eval_{name}": f"{VALIDATION}{name}" for name in names if self._is_further(name)}
            self._metrics({keys[key]: value for key, value in figures.items() if key in keys}, state.global_step)

    def _on_train_log(self, state: TrainerState, figures: dict[str, float]) -> None:
        step, loss = state.global_step, figures["loss"]
        self.tokens = int(figures.get("num_tokens", self.tokens))
        now = time.monotonic()
        then, tokens_then, step_then = self._mark
        self._mark = (now, self.tokens, step)
        seconds = max(now - then, 1e-9)
        rate = (self.tokens - tokens_then) / seconds
        metrics = {f"{TRAIN}{key}": figures[key] for key in figures if key in _FIGURES or self._is_further(key)}
        metrics |= {TRAIN_TOKEN_RATE: rate, TRAIN_TOKENS: float(self.tokens)}
        self._metrics(metrics | ({TRAIN_HALVINGS: float(self.halvings)} if self.halvings else {}), step)
        if not math.isfinite(loss) or not math.isfinite(figures.get("grad_norm", 0.0)):
            raise TrainingError(
                f"the loss is {loss} and the gradient norm {figures.get('grad_norm')} {_span(step_then, step)}; "
                "fix: lower training.learning_rate, or train in float32"
            )
        self.losses.append((step, loss))
        self._warn_when_slow(rate)
        left = (state.max_steps - step) * seconds / max(1, step - step_then)
        self.report.progress(
            step, state.max_steps, "steps", stage="train", loss=loss, tokens_per_s=rate, seconds_left=left
        )

    def _is_further(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self.further)

    def _warn_when_slow(self, rate: float) -> None:
        """Warn once when training stays below a tenth of the speed that the plan expects of this machine."""
        if self.expected_tokens_per_s is None or self._slow_intervals >= _SLOW_INTERVALS:
            return
        is_slow = rate * _SLOW_FACTOR < self.expected_tokens_per_s
        self._slow_intervals = self._slow_intervals + 1 if is_slow else 0
        if self._slow_intervals == _SLOW_INTERVALS:
            threads = torch.get_num_threads()
            fewer = "" if threads == 1 else f", or set OMP_NUM_THREADS=1 (now {threads} threads share each product)"
            self.report.note(
                f"training is slow: {rate:,.0f} tokens per second, the plan expects {self.expected_tokens_per_s:,.0f} of this "
                f"machine; fix: stop other work on it{fewer}"
            )


def _span(after: int, to: int) -> str:
    return f"at step {to}" if to - after == 1 else f"between steps {after + 1} and {to}"
