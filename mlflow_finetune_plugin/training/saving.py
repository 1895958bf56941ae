"""Saving a TRL trainer whole, and starting one from what was saved: mixed into whatever trainer an objective names."""

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

from mlflow_finetune_plugin.training.best import BEST, BestWeights
from mlflow_finetune_plugin.training.checkpoints import PREFIX, Checkpoint, remove_old, seal
from mlflow_finetune_plugin.training.packing import MicroBatches
from mlflow_finetune_plugin.training.reporter import TrainerReporter
from mlflow_finetune_plugin.training.weights import WEIGHTS, restore_weights, trained_weights

PROGRESS = "progress.json"
_COUNTERS = ("tokens_seen", "loss_tokens_seen", "_total_train_tokens", "_globalstep_last_logged")


@dataclass(frozen=True)
class Saves:
    """Where checkpoints go, how many stay, what they are bound to, and who hears of a new one."""

    root: Path
    save_total_limit: int
    fingerprint: Callable[[], Mapping[str, Any]]
    """Asked for when something is saved: it takes reading the whole base."""
    on_saved: Callable[[Checkpoint], None]
    before_saved: Callable[[Checkpoint, torch.nn.Module], None] = lambda draft, model: None
    """What belongs to a checkpoint and lies elsewhere: written before the checkpoint counts, so that no kill can part them."""


class SavingTrainer(Trainer):  # type: ignore[misc]
    """Saves whole checkpoints and goes on from one, bit for bit as if it had not stopped (on a CPU)."""

    saves: Saves | None = None
    reporter: TrainerReporter
    best: BestWeights | None = None
    micro_batches: MicroBatches

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """What is trained, under its own names and in its own precision: PEFT's format may round or rename."""
        if self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            save_file(trained_weights(self.model), folder / WEIGHTS)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        restore_weights(self.model, Path(resume_from_checkpoint))

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        if self.saves is None:
            return
        Trainer._save_checkpoint(self, model, trial)  # TRL's own would also write a model card each time
        draft = Path(self.args.output_dir) / f"{PREFIX}{self.state.global_step}"
        if self.is_world_process_zero():
            progress = {"watcher": self.reporter.state(), "trainer": self._progress()}
            if self.best is not None:
                progress["best"] = self.best.state()
                if self.best.folder.is_dir():
                    shutil.copytree(self.best.folder, draft / BEST)
            (draft / PROGRESS).write_text(json.dumps(progress), encoding="utf-8")
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
        """What a Trainer forgets when it stops: sums since the last log, and what was counted."""
        values: dict[str, Any] = {name: getattr(self, name) for name in _COUNTERS if hasattr(self, name)}
        values["tr_loss"] = float(self._tr_loss)
        values["learning_rate"] = self.args.learning_rate
        values["processes"] = self.reporter.processes.count
        if hasattr(self, "_metrics"):
            values["metrics"] = {mode: dict(lists) for mode, lists in self._metrics.items()}
        if hasattr(self, "_counts"):
            values["counts"] = asdict(self._counts["train"])
        if isinstance(getattr(self, "micro_batches", None), MicroBatches):
            values["micro_batches"] = asdict(self.micro_batches)
        return values

    def restore_progress(self, values: Mapping[str, Any]) -> None:
        """Undoes Trainer's forgetting; called when training begins."""
        for name in _COUNTERS:
            if name in values:
                setattr(self, name, values[name])
        self._tr_loss = torch.tensor(values["tr_loss"], device=self.args.device)
        for mode, lists in values.get("metrics", {}).items():
            self._metrics[mode].update(lists)
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
    """Gives the trainer and its watcher back what a checkpoint holds of them, once the trainer has reset itself."""

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
        self._say_processes(self.values["trainer"].get("processes", 1), self.trainer.reporter.processes.count)
        if self.trainer.best is not None and "best" in self.values:
            self.trainer.best.restore(self.values["best"], self.folder)

    def _say_processes(self, before: int, now: int) -> None:
        if before != now:
            self.trainer.reporter.report.note(
                f"processes: went on with {now} instead of {before}; the rows of each step are the same, what dropout draws is not"
            )


def _rescale(parts: Mapping[str, Any], ratio: float) -> None:
    """A learning rate that was changed between attempts takes effect, where the saved optimiser and schedule hold the old one."""
    optimizer, schedule = parts.get("optimizer"), parts.get("lr_scheduler")
    if ratio == 1.0 or optimizer is None or schedule is None:
        return
    for group in optimizer.param_groups:
        group["lr"] *= ratio
        if "initial_lr" in group:
            group["initial_lr"] *= ratio
    schedule.base_lrs = [rate * ratio for rate in schedule.base_lrs]


def saving(trainer_class: type) -> type:
    """The trainer with whole checkpoints."""
    return type(f"Saving{trainer_class.__name__}", (SavingTrainer, trainer_class), {})
