"""Tables of completions with their rewards, by part, which MLflow shows while a training runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from transformers import TrainerControl, TrainerState, TrainingArguments

from mlflow_finetune_plugin.rewards import Completion, RewardScores
from mlflow_finetune_plugin.store.names import COMPLETIONS_FOLDER
from mlflow_finetune_plugin.training.rollouts.trainer import Watcher

TABLES = 20
"""How many tables a training writes, about."""
_SAME_PROMPTS = 4
_BEST_AND_WORST = 4


def completion_table(groups: Sequence[tuple[str, Sequence[Completion], RewardScores, Sequence[int]]]) -> dict[str, Any]:
    """Return a table in MLflow's form.

    Args:
        groups: Why some completions are shown, the completions, their scores, and the positions of those that are shown.
    """
    names = list(groups[0][2].parts) if groups else []
    columns = ["shown as", "row", "prompt", "reference", "completion", "reward", *names, "reasons"]
    data = [
        [
            why,
            completions[at].row,
            completions[at].question,
            completions[at].fields.get("reference"),
            completions[at].text,
            scores.total[at],
            *(scores.parts[name][at] for name in names),
            "; ".join(f"{name}: {scores.reasons[name][at]}" for name in names if scores.reasons[name][at]),
        ]
        for why, completions, scores, positions in groups
        for at in positions
    ]
    return {"columns": columns, "data": data}


class CompletionTables(Watcher):
    """The callback that writes a table about twenty times: the same prompts each time, and the best and worst of the step."""

    def __init__(self, folder: Any, report: Any) -> None:
        self.folder, self.report = folder, report

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write the table of this step, if it is one of those with a table."""
        every = max(1, state.max_steps // TABLES)
        if state.global_step % every and state.global_step != state.max_steps:
            return
        text = json.dumps(
            completion_table([*self._same_prompts(), *self._best_and_worst()]), ensure_ascii=False, default=str
        )
        self.report.text(self.folder / f"completions-{state.global_step:06}.json", text, COMPLETIONS_FOLDER)

    def _same_prompts(self) -> list[Any]:
        rows = self.trainer.train_dataset.select(range(min(_SAME_PROMPTS, len(self.trainer.train_dataset))))
        completions = self.trainer.sample(list(rows), generations=1)
        scores = self.trainer.rewards.score(completions)
        return [("same prompts", completions, scores, range(len(completions)))]

    def _best_and_worst(self) -> list[Any]:
        batch = self.trainer.latest
        if batch is None:
            return []
        totals = batch.scores.total
        order = sorted((at for at, total in enumerate(totals) if total is not None), key=lambda at: totals[at] or 0.0)
        worst, best = order[:_BEST_AND_WORST], order[_BEST_AND_WORST:][-_BEST_AND_WORST:]
        return [
            ("best of the step", batch.completions, batch.scores, best[::-1]),
            ("worst of the step", batch.completions, batch.scores, worst),
        ]
