"""Alarms of a training: figures of its log that show a failure which the reward or the loss hides.

Each alarm is a number computed from the log so far, which is recorded as the metric ``alarms/NAME``, and a threshold. Crossing
it is noted once. Figures are noisy, so windows of several logs are compared: the first ones and the latest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mlflow_finetune_plugin.jobs.report import Report
from mlflow_finetune_plugin.store.names import ALARMS
from mlflow_finetune_plugin.training.alarms.settings import AlarmSettings

WINDOW = 5
"""Logs of a window. An alarm needs two windows, so a training with fewer than ten logs has none."""
_EVALUATIONS = 3
_LONGER_BY = 8.0  # tokens; below it a doubled length is noise

Logs = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Alarm:
    """One alarm.

    Attributes:
        name: The threshold's name in ``AlarmSettings``, and the metric's.
        value: Computes the figure from the log; None while there is too little of it.
        says: What is wrong, with ``{value}`` and ``{limit}``.
        is_lower_limit: Whether the alarm is raised below the threshold.
    """

    name: str
    value: Callable[[Logs], float | None]
    says: str
    is_lower_limit: bool = False

    def is_raised(self, value: float | None, limit: float | None) -> bool:
        """Return whether the figure has crossed the threshold."""
        if value is None or limit is None or math.isnan(value):
            return False
        return value < limit if self.is_lower_limit else value > limit


def _series(logs: Logs, name: str) -> list[float]:
    return [float(log[name]) for log in logs if isinstance(log.get(name), int | float) and math.isfinite(log[name])]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _windows(logs: Logs, name: str) -> tuple[float, float] | None:
    """Return the means of the first and of the latest window; None while they would overlap."""
    values = _series(logs, name)
    return (_mean(values[:WINDOW]), _mean(values[-WINDOW:])) if len(values) >= 2 * WINDOW else None


def _reward_gap(logs: Logs) -> float | None:
    """Return by how much the training reward rose more than that of validation between the first and the latest evaluations."""
    spread = _series(logs, "reward_std")[:WINDOW]
    before, held_out = _at_evaluations(logs)
    if len(held_out) < _EVALUATIONS or not spread or _mean(spread) == 0:
        return None
    risen = _mean(before[-2:]) - before[0]
    return (risen - (_mean(held_out[-2:]) - held_out[0])) / _mean(spread)


def _at_evaluations(logs: Logs) -> tuple[list[float], list[float]]:
    """Return the training reward before each evaluation, a mean over a window, and the reward of the evaluation."""
    before, held_out = [], []
    for index in range(len(logs)):
        evaluated, rewards = _series(logs[index : index + 1], "eval_reward"), _series(logs[:index], "reward")
        if evaluated and rewards:
            before.append(_mean(rewards[-WINDOW:]))
            held_out.append(evaluated[0])
    return before, held_out


def _length_ratio(logs: Logs) -> float | None:
    windows = _windows(logs, "completions/mean_length")
    if windows is None or windows[0] == 0:
        return None
    return windows[1] / windows[0] if windows[1] - windows[0] >= _LONGER_BY else min(1.0, windows[1] / windows[0])


def _latest(name: str) -> Callable[[Logs], float | None]:
    """Return the figure's latest window: the median, which a single peak does not move."""

    def value(logs: Logs) -> float | None:
        values = _series(logs, name)
        return median(values[-WINDOW:]) if len(values) >= 2 * WINDOW else None

    return value


def _entropy_ratio(logs: Logs) -> float | None:
    windows = _windows(logs, "entropy")
    return None if windows is None or windows[0] <= 0 else windows[1] / windows[0]


def _chosen_fall(logs: Logs) -> float | None:
    windows = _windows(logs, "logps/chosen")
    return None if windows is None or windows[0] == 0 else (windows[0] - windows[1]) / abs(windows[0])


def _repeated_text(logs: Logs) -> float | None:
    """Return the latest share; 0 where it has not doubled, because some tasks repeat from the start."""
    windows = _windows(logs, "repeated_text")
    if windows is None:
        return None
    return windows[1] if windows[1] >= 2 * windows[0] else 0.0


ALARM_LIST = (
    Alarm(
        "reward_gap",
        _reward_gap,
        "probably reward hacking: the reward rose by {value:.1f} standard deviations more on the training prompts than on the "
        "validation prompts (limit {limit:g}); read the table of completions",
    ),
    Alarm(
        "length_ratio",
        _length_ratio,
        "probably reward hacking: completions are {value:.1f} times as long as at the start (limit {limit:g}); the reward may "
        "pay for length",
    ),
    Alarm(
        "kl",
        _latest("kl"),
        "the model is far from its start: KL {value:.2f} nats per token (limit {limit:g}); fix: a higher beta or a lower "
        "learning rate, if the answers got worse",
    ),
    Alarm(
        "entropy_ratio",
        _entropy_ratio,
        "the entropy collapsed to {value:.0%} of that at the start (limit {limit:.0%}): nearly every completion of a prompt is "
        "the same, so nothing new can be learned; fix: a lower learning rate, a higher beta, or scale_rewards: none",
        is_lower_limit=True,
    ),
    Alarm(
        "flat_groups",
        _latest("frac_reward_zero_std"),
        "{value:.0%} of the groups have one reward for all completions (limit {limit:.0%}): they teach nothing; fix: prompts of "
        "another difficulty, or end the training here",
    ),
    Alarm(
        "repeated_text",
        _repeated_text,
        "probably reward hacking: {value:.0%} of the three-word sequences in a completion repeat earlier ones (limit {limit:.0%})",
    ),
    Alarm(
        "chosen_fall",
        _chosen_fall,
        "the better answers have become less likely: their log-probability fell by {value:.0%} (limit {limit:.0%}); fix: a lower "
        "learning rate, or for dpo sft in loss_type",
    ),
)

PREFERENCE_ALARMS = ("chosen_fall",)
"""The alarms of objectives that learn from preferences. The alarm ``kl`` is not one of them, because the ``kl`` of kto has
another unit: nats of whole answers, which belong to other prompts."""


class AlarmWatch(TrainerCallback):  # type: ignore[misc]
    """The callback that records the figures of the alarms and notes each alarm once.

    Args:
        settings: The thresholds.
        report: Receives metrics and notes.
        names: The alarms that apply to the objective; None means all.
    """

    def __init__(self, settings: AlarmSettings, report: Report, names: Collection[str] | None = None) -> None:
        self.settings, self.report = settings, report
        self.alarms = [alarm for alarm in ALARM_LIST if names is None or alarm.name in names]
        self.raised: set[str] = set()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Find the alarms that an interrupted attempt noted: the log of a checkpoint has all that they were computed from."""
        for end in range(len(state.log_history)):
            self.raised |= self._crossed(state.log_history[: end + 1]).keys()

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Record the figures, and note what has crossed its threshold."""
        values = {alarm.name: alarm.value(state.log_history) for alarm in self.alarms}
        known = {f"{ALARMS}{name}": value for name, value in values.items() if value is not None}
        if known:
            self.report.metrics(known, step=state.global_step)
        for name, text in self._crossed(state.log_history).items():
            if name not in self.raised:
                self.raised.add(name)
                self.report.note(f"step {state.global_step}: {text}")

    def _crossed(self, logs: Logs) -> dict[str, str]:
        crossed = {}
        for alarm in self.alarms:
            value, limit = alarm.value(logs), getattr(self.settings, alarm.name)
            if alarm.is_raised(value, limit):
                crossed[alarm.name] = alarm.says.format(value=value, limit=limit)
        return crossed
