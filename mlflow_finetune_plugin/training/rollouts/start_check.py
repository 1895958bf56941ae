"""Sample the start before the first step: a training whose rewards do not differ within a prompt learns nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import TrainerControl, TrainerState, TrainingArguments

from mlflow_finetune_plugin.errors import TrainingError
from mlflow_finetune_plugin.jobs.report import Report
from mlflow_finetune_plugin.rewards import RewardScores
from mlflow_finetune_plugin.store.names import COMPLETIONS_FOLDER, START, START_COMPLETIONS
from mlflow_finetune_plugin.training.rollouts.completion_table import completion_table
from mlflow_finetune_plugin.training.rollouts.trainer import Watcher

FLAT = 0.95
"""At this share of groups without a signal a training is refused."""
_SHOWN_PROMPTS = 8


@dataclass(frozen=True)
class StartFigures:
    """What the rewards say of completions of the start.

    Attributes:
        prompts: Sampled prompts.
        pass_at_1: Share of the completions that are solved.
        pass_at_k: Share of the prompts with at least one solved completion.
        reward: Mean reward.
        reward_std: Standard deviation of the reward, over all completions.
        flat_groups: Share of prompts whose completions all have one reward.
        part_means: Mean of each part; NaN where it never applied.
        part_flat_groups: Share of prompts whose completions all have one value, for each part.
    """

    prompts: int
    pass_at_1: float
    pass_at_k: float
    reward: float
    reward_std: float
    flat_groups: float
    part_means: dict[str, float]
    part_flat_groups: dict[str, float]

    @classmethod
    def of(cls, scores: RewardScores, num_generations: int, pass_reward: float) -> StartFigures:
        """Compute the figures. A completion is solved if the first part of its reward is at least ``pass_reward``."""
        totals = _groups(scores.total, num_generations)  # (prompts, completions)
        solved = _groups(next(iter(scores.parts.values())), num_generations) >= pass_reward  # NaN is not solved
        parts = {name: _groups(values, num_generations) for name, values in scores.parts.items()}
        return cls(
            prompts=len(totals),
            pass_at_1=float(solved.mean()),
            pass_at_k=float(solved.any(axis=1).mean()),
            reward=_nan_mean(totals),
            reward_std=float(np.nanstd(totals)) if not np.isnan(totals).all() else math.nan,
            flat_groups=_flat(totals),
            part_means={name: _nan_mean(values) for name, values in parts.items()},
            part_flat_groups={name: _flat(values) for name, values in parts.items()},
        )

    def metrics(self, num_generations: int) -> dict[str, float]:
        """Return the figures by the names under which the run records them."""
        values = {
            "pass_at_1": self.pass_at_1,
            f"pass_at_{num_generations}": self.pass_at_k,
            "reward": self.reward,
            "reward_std": self.reward_std,
            "flat_groups": self.flat_groups,
        }
        values |= {f"rewards/{name}": value for name, value in self.part_means.items()}
        values |= {f"flat_groups/{name}": value for name, value in self.part_flat_groups.items()}
        return {f"{START}{name}": value for name, value in values.items()}

    def line(self, num_generations: int) -> str:
        """Return the figures in one line."""
        return (
            f"start: {self.prompts} prompts x {num_generations} completions, reward {self.reward:.3g}, pass@1 {self.pass_at_1:.1%}, "
            f"pass@{num_generations} {self.pass_at_k:.1%}, {self.flat_groups:.0%} of the groups without a signal"
        )

    def why_refused(self) -> str | None:
        """Return why training cannot learn from these rewards, with the fix; None if it can."""
        if self.flat_groups < FLAT:
            return None
        what, fix = (
            (
                "the completions of each have the same reward",
                "easier prompts, or imitate some answers first (-e lora) and train from that version (-P start_from=models:/NAME/1)",
            )
            if self.pass_at_k < 1
            else ("nearly every completion is solved already", "harder prompts")
        )
        return (
            f"{self.flat_groups:.0%} of {self.prompts} sampled prompts give no signal: {what} (mean reward {self.reward:.3g}); "
            f"fix: {fix}, or a reward that differs between completions; see them in {COMPLETIONS_FOLDER}/{START_COMPLETIONS} of the run; start_check: false trains anyway"
        )

    def notes(self) -> list[str]:
        """Return what is odd about the parts: a signal that comes from some parts alone."""
        flat = [name for name, share in self.part_flat_groups.items() if share >= FLAT]
        if not flat or len(flat) == len(self.part_flat_groups):
            return []
        rest = [name for name in self.part_flat_groups if name not in flat]
        return [
            f"at the start, the reward {', '.join(flat)} is the same for all completions of a prompt; only {', '.join(rest)} differs, so "
            "that is what training follows"
        ]


class StartCheck(Watcher):
    """The callback that samples the start and refuses a training without a signal.

    Args:
        folder: Scratch folder.
        report: Receives metrics, notes and the table.
        prompts: How many prompts are sampled.
        pass_reward: Value of the first part of the reward from which a completion is solved.
        refuses: Whether a training without a signal is refused; else it is noted.
    """

    def __init__(self, folder: Path, report: Report, *, prompts: int, pass_reward: float, refuses: bool) -> None:
        self.folder, self.report = folder, report
        self.prompts, self.pass_reward, self.refuses = prompts, pass_reward, refuses

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Sample the start, unless the training is resumed."""
        if state.global_step:
            return
        trainer = self.trainer
        order = np.random.default_rng(args.seed).permutation(len(trainer.train_dataset))[: self.prompts]
        completions = trainer.sample(list(trainer.train_dataset.select(order)))
        scores = trainer.rewards.score(completions)
        figures = StartFigures.of(scores, trainer.num_generations, self.pass_reward)
        self.report.metrics(figures.metrics(trainer.num_generations))
        self.report.stage("train", figures.line(trainer.num_generations))
        shown = range(min(len(completions), _SHOWN_PROMPTS * trainer.num_generations))
        table = completion_table([("start", completions, scores, shown)])
        text = json.dumps(table, ensure_ascii=False, default=str)
        self.report.text(self.folder / START_COMPLETIONS, text, COMPLETIONS_FOLDER)
        self._judge(figures)

    def _judge(self, figures: StartFigures) -> None:
        for note in figures.notes():
            self.report.note(note)
        if (reason := figures.why_refused()) is None:
            return
        if self.refuses:
            raise TrainingError(reason)
        self.report.note(reason)


def _groups(values: Sequence[float | None], num_generations: int) -> np.ndarray:
    flat = np.array([math.nan if value is None else value for value in values], dtype=np.float64)
    return flat.reshape(-1, num_generations)


def _flat(groups: np.ndarray) -> float:
    """Return the share of groups without a difference; values that are missing make none."""
    spreads = [np.ptp(group[~np.isnan(group)]) if (~np.isnan(group)).any() else 0.0 for group in groups]
    return float(np.mean([math.isclose(spread, 0.0, abs_tol=1e-8) for spread in spreads]))


def _nan_mean(groups: np.ndarray) -> float:
    return math.nan if np.isnan(groups).all() else float(np.nanmean(groups))
