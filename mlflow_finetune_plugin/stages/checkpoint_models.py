"""Log the checkpoints that were evaluated as models of the run, so that MLflow's charts compare them by eval_loss.

They are written beside the checkpoints while training runs and logged when it has ended, because training never waits for
the tracking server. A run that dies therefore shows none of them until it is resumed.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mlflow_finetune_plugin.data.preparation import PreparedData
from mlflow_finetune_plugin.jobs.folder import JobFolder
from mlflow_finetune_plugin.jobs.report import Report
from mlflow_finetune_plugin.logged_models.adapter import Reference, log_adapter
from mlflow_finetune_plugin.methods import Adaptation
from mlflow_finetune_plugin.planning.plan import Plan
from mlflow_finetune_plugin.stages.outages import with_patience
from mlflow_finetune_plugin.stages.records.identity import Identity, model_card
from mlflow_finetune_plugin.store.names import CHECKPOINT_EVAL_LOSS, EVAL_LOSS
from mlflow_finetune_plugin.training.checkpoints import Checkpoint
from mlflow_finetune_plugin.training.saving import PROGRESS

FOLDER = "checkpoint_models"
_SCORE = "score.json"


def keeps_models(
    adaptation: Adaptation, options: Any, folder: Path, report: Report
) -> Callable[[Checkpoint, torch.nn.Module], None]:
    """Return what writes the adapter of an evaluated checkpoint to ``folder/checkpoint_models/STEP``.

    It is called with the checkpoint's draft, and passes over a checkpoint that was not evaluated at its own step.
    """
    is_reported = False

    def keep(checkpoint: Checkpoint, model: torch.nn.Module) -> None:
        nonlocal is_reported
        progress = json.loads((checkpoint.folder / PROGRESS).read_text(encoding="utf-8"))
        losses = dict(progress["watcher"]["eval_losses"])
        if checkpoint.step not in losses:
            return
        # Saving an adapter that began with PiSSA or OLoRA subtracts its start, and takes the model apart for that.
        if (folder / "start").is_dir():
            if not is_reported:
                report.note("checkpoints are not logged as models: this initialisation changes the base until the end")
            is_reported = True
            return
        aside = folder / FOLDER / str(checkpoint.step)
        adaptation.save(model, options, aside / "adapter", start=aside)
        (aside / _SCORE).write_text(json.dumps({EVAL_LOSS: losses[checkpoint.step]}), encoding="utf-8")

    return keep


def log_checkpoint_models(
    plan: Plan, data: PreparedData, base_digest: str, run_id: str, folder: Path, kept_step: int, report: Report
) -> None:
    """Log the checkpoints of all attempts on this disk, each with its step and eval_loss.

    Args:
        kept_step: The step of the run's own model, which is logged already.
    """
    homes = {folder, *(job.work for job in JobFolder.all() if (job.read("run") or {}).get("run_id") == run_id)}
    adapters = {
        int(path.name): path for home in homes for path in (home / FOLDER).glob("*") if (path / _SCORE).exists()
    }
    for step, path in sorted(adapters.items()):
        if step == kept_step:
            continue
        identity = Identity.of(plan, data, base_digest, path / "adapter")
        logged = with_patience(partial(_log, plan, identity, path, step, run_id), report)
        score = json.loads((path / _SCORE).read_text(encoding="utf-8"))
        report.metrics({CHECKPOINT_EVAL_LOSS: score[EVAL_LOSS]}, step=step, model_id=logged.model_id)


def _log(plan: Plan, identity: Identity, path: Path, step: int, run_id: str) -> Any:
    return log_adapter(
        path / "adapter",
        plan.renderer.tokenizer,
        run_id=run_id,
        name="checkpoint",
        base=plan.base,
        card=model_card(plan, identity),
        reference=Reference(plan.base.precision, []),
        folder=path,
        step=step,
        tags=identity.tags(),
    )
