"""Save complete checkpoints of a trainer and resume from them. Mixed into the trainer class that the objective names."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mlflow_finetune_plugin.internals.transformers import (
    check_trainer,
    restore_trainer_sums,
    save_trainer_state,
    trainer_sums,
)
from mlflow_finetune_plugin.internals.trl import restore_token_sums, token_sums
from mlflow_finetune_plugin.training.best import BEST, BestWeights
from mlflow_finetune_plugin.training.checkpoints import PREFIX, Checkpoint, remove_old, seal
from mlflow_finetune_plugin.training.packing import MicroBatches
from mlflow_finetune_plugin.training.reporter import TrainerReporter
from mlflow_finetune_plugin.training.weights import WEIGHTS, restore_weights, trained_weights

PROGRESS = "progress.json"
_COUNTERS = ("tokens_seen", "loss_tokens_seen")

check_trainer()


@dataclass(frozen=True)
class Saves:
    """How a training saves.

    Attributes:
        root: the folder of the checkpoints.
        save_total_limit: how many checkpoints stay.
        on_saved: called with every new checkpoint.
    """

    root: Path
    save_total_limit: int
    fingerprint: Callable[[], Mapping[str, Any]]
    """Returns what must stay the same for a resume. A function, because it reads the whole base and is only needed at a save."""
    on_saved: Callable[[Checkpoint], None]
    before_saved: Callable[[Checkpoint, torch.nn.Module], None] = lambda draft, model: None
    """Writes what belongs to a checkpoint but is stored elsewhere, before the checkpoint counts: a kill cannot separate them."""


class SavingTrainer(Trainer):  # type: ignore[misc]
    """The mixin that saves complete checkpoints and resumes from one, on a CPU with bit-identical results."""

    saves: Saves | None = None
    reporter: TrainerReporter
    best: BestWeights | None = None
    micro_batches: MicroBatches

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the trainable weights under their own names and in their own precision."""
        if self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            save_file(trained_weights(self.model), folder / WEIGHTS)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        restore_weights(self.model, Path(resume_from_checkpoint))

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        if self.saves is None:
            return
        save_trainer_state(self, model, trial)  # Not super(): TRL's version writes a model card at every save.
        draft = Path(self.args.output_dir) / f"{PREFIX}{self.state.global_step}"
        if self.is_world_process_zero():
            progress = {"watcher": self.reporter.state(), "trainer": self._progress()}
            if self.best is not None:
                progress["best"] = self.best.state()
                if self.best.folder.is_dir():
                    shutil.copytree(self.best.folder, draft / BEST)
            (draft / PROGRESS).write_text(json.dumps(progress), encoding="utf-8")
            if hasattr(self, "reference"):
                self.save_reference(draft)
            if hasattr(self, "write_state"):
                self.write_state(draft)
        self.accelerator.wait_for_everyone()
        if self.is_world_process_zero():
            self._seal(draft)
        self.accelerator.wait_for_everyone()

    def _seal(self, draft: Path) -> None:
        assert self.saves is not None
        root = self.saves.root
        self.saves.before_saved(Checkpoint(draft, self.state.global_step, {}), self.model)
        saved = seal(draft, root / draft.name, step=self.state.global_step, fingerprint=self.saves.fingerprint())
        self.saves.on_saved(saved)
        remove_old(root, limit=self.saves.save_total_limit)

    def _progress(self) -> dict[str, Any]:
        """Return the state that Trainer does not save itself: sums since the last log, and token counts."""
        values: dict[str, Any] = {name: getattr(self, name) for name in _COUNTERS if hasattr(self, name)}
        values |= trainer_sums(self) | token_sums(self)
        values["learning_rate"] = self.args.learning_rate
        values["processes"] = self.reporter.processes.count
        if hasattr(self, "_counts"):
            values["counts"] = asdict(self._counts["train"])
        if isinstance(getattr(self, "micro_batches", None), MicroBatches):
            values["micro_batches"] = asdict(self.micro_batches)
        return values

    def restore_progress(self, values: Mapping[str, Any]) -> None:
        """Restore what ``_progress`` returned; called when training begins."""
        for name in _COUNTERS:
            if name in values:
                setattr(self, name, values[name])
        restore_trainer_sums(self, values)
        restore_token_sums(self, values)
        for name, value in values.get("counts", {}).items():
            setattr(self._counts["train"], name, value)
        division = values.get("micro_batches")
        if division and division["batching"] == self.micro_batches.batching:
            smallest = (
                min(division["rows"], self.micro_batches.rows),
                min(division["tokens"], self.micro_batches.tokens),
            )
            self.micro_batches = MicroBatches(division["batching"], *smallest)


class Restorer(TrainerCallback):  # type: ignore[misc]
    """The callback that restores trainer and reporter from a checkpoint. It runs after Trainer has reset its own state."""

    def __init__(self, trainer: SavingTrainer, checkpoint: Checkpoint) -> None:
        self.trainer = trainer
        self.folder = checkpoint.folder
        self.values = json.loads((checkpoint.folder / PROGRESS).read_text(encoding="utf-8"))

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trainer.restore_progress(self.values["trainer"])
        _rescale(kwargs, args.learning_rate / self.values["trainer"]["learning_rate"])
        self.trainer.reporter.restore(self.values["watcher"], state)
        self._report_processes(self.values["trainer"].get("processes", 1), self.trainer.reporter.processes.count)
        if hasattr(self.trainer, "read_state"):
            self.trainer.read_state(self.folder)
        if self.trainer.best is not None and "best" in self.values:
            self.trainer.best.restore(self.values["best"], self.folder)

    def _report_processes(self, before: int, now: int) -> None:
        if before != now:
            self.trainer.reporter.report.note(
                f"processes: resumed with {now} instead of {before}; the rows of each step are the same, but dropout differs"
            )


def _rescale(parts: Mapping[str, Any], ratio: float) -> None:
    """Apply a learning rate that changed between attempts: the saved optimizer and schedule hold the old one."""
    optimizer, schedule = parts.get("optimizer"), parts.get("lr_scheduler")
    if ratio == 1.0 or optimizer is None or schedule is None:
        return
    for group in optimizer.param_groups:
        group["lr"] *= ratio
        if "initial_lr" in group:
            group["initial_lr"] *= ratio
    schedule.base_lrs = [rate * ratio for rate in schedule.base_lrs]


def saving(trainer_class: type) -> type:
    """Return a subclass of the trainer that saves complete checkpoints."""
    return type(f"Saving{trainer_class.__name__}", (SavingTrainer, trainer_class), {})
