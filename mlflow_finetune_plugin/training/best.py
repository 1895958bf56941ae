"""Keep the best weights by the loss or accuracy on the validation rows, and stop a training that no longer improves."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mlflow_finetune_plugin.jobs.report import Report
from mlflow_finetune_plugin.store.names import EARLY_STOPPING_TAG
from mlflow_finetune_plugin.training.weights import WEIGHTS, trained_weights

BEST = "best"
_SCORE = "score.json"


class BestWeights(TrainerCallback):  # type: ignore[misc]
    """The callback that keeps ``folder/best`` up to date after every evaluation. Every checkpoint holds a copy.

    Args:
        folder: where ``best`` is written.
        metric: the evaluation metric that is compared; ``eval_loss`` is better when lower, any other when higher.
        patience: evaluations without improvement before training stops; None never stops.
        report: receives the note about early stopping.
        writes: whether this process writes the weights; only one of several does.
    """

    def __init__(self, folder: Path, *, metric: str, patience: int | None, report: Report, writes: bool) -> None:
        self.folder = folder / BEST
        self.metric = metric
        self.patience = patience
        self.report = report
        self.writes = writes
        self.score: float | None = None
        self.step = 0
        self.worse = 0
        """Evaluations since the best one."""

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        model: Any = None,
        **kwargs: Any,
    ) -> None:
        score = (metrics or {})[self.metric]
        if self.score is None or (score < self.score if self.metric == "eval_loss" else score > self.score):
            self.score, self.step, self.worse = score, state.global_step, 0
            if self.writes:
                self._write(model)
        else:
            self.worse += 1
        if self.patience is not None and self.worse >= self.patience and not control.should_training_stop:
            control.should_training_stop = True
            self.report.note(
                f"early stopping at step {state.global_step}: {self.metric} was best at step {self.step} ({self.score:.4g}), "
                f"{self.worse} evaluations ago"
            )
            self.report.tags({EARLY_STOPPING_TAG: f"step {state.global_step}, best step {self.step}"})

    def _write(self, model: Any) -> None:
        draft = self.folder.with_name("best.draft")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        save_file(trained_weights(model), draft / WEIGHTS)
        (draft / _SCORE).write_text(json.dumps({"score": self.score, "step": self.step}), encoding="utf-8")
        shutil.rmtree(self.folder, ignore_errors=True)
        os.rename(draft, self.folder)

    def state(self) -> dict[str, Any]:
        return {"score": self.score, "step": self.step, "worse": self.worse}

    def restore(self, values: dict[str, Any], checkpoint: Path) -> None:
        """Return to the state in which the checkpoint was saved."""
        self.score, self.step, self.worse = values["score"], int(values["step"]), int(values["worse"])
        if self.writes and (checkpoint / BEST).is_dir():
            shutil.copytree(checkpoint / BEST, self.folder, dirs_exist_ok=True)
