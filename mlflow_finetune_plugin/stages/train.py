"""The second stage: train the adapter, from the start or from a checkpoint, and write it to the job's folder."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel

from mlflow_finetune_plugin.base_models import loading
from mlflow_finetune_plugin.base_models.weights_digest import base_digest
from mlflow_finetune_plugin.data.preparation import PreparedData
from mlflow_finetune_plugin.jobs.report import Report
from mlflow_finetune_plugin.logged_models.adapter import (
    Reference,
    check_adapter_file,
    check_adapter_moved,
    check_weights_changed,
    make_reference,
    probe_log_probs,
    trainable_digests,
)
from mlflow_finetune_plugin.logged_models.precisions import served_as
from mlflow_finetune_plugin.logged_models.probes import probe_rows
from mlflow_finetune_plugin.logged_models.reference_answers import Decoding
from mlflow_finetune_plugin.logged_models.reward_models import make_reward_reference
from mlflow_finetune_plugin.logged_models.start_version import load_start
from mlflow_finetune_plugin.planning.memory import mib
from mlflow_finetune_plugin.planning.plan import Plan
from mlflow_finetune_plugin.stages import followers
from mlflow_finetune_plugin.stages.checkpoint_models import keeps_models
from mlflow_finetune_plugin.stages.context import RunContext
from mlflow_finetune_plugin.stages.plan import PlannedRun
from mlflow_finetune_plugin.stages.resume import (
    FOLDER,
    check_not_past,
    check_same,
    find_checkpoint,
    fingerprint,
    uploads,
)
from mlflow_finetune_plugin.store.names import LOSS_PICTURE, TRAIN_PEAK_MEMORY, TRAIN_SECONDS, TRAIN_TOTAL_TOKENS
from mlflow_finetune_plugin.training import trainer
from mlflow_finetune_plugin.training.checkpoints import Checkpoint
from mlflow_finetune_plugin.training.memory import PeakMemory
from mlflow_finetune_plugin.training.processes import joined
from mlflow_finetune_plugin.training.saving import Saves
from mlflow_finetune_plugin.training.trainer import TrainingResult


@dataclass(frozen=True)
class TrainedAdapter:
    """An adapter on disk.

    Args:
        folder: The adapter's files.
        result: Steps, losses and time of the training.
        reference: What base and adapter answered in training precision; every later load is compared with it.
    """

    folder: Path
    result: TrainingResult
    reference: Reference


@dataclass(frozen=True)
class TrainedRun:
    """The trained adapter, and the digest of the base that it belongs to (SHA-256, hex)."""

    adapter: TrainedAdapter
    base_digest: str

    @property
    def kept_step(self) -> int:
        """The step that the adapter's weights are of: the best one where the run keeps it, else the last."""
        return self.adapter.result.best_step or self.adapter.result.steps


def train(planned: PlannedRun, context: RunContext, report: Report) -> TrainedRun:
    """Train, saving checkpoints, and record what it took. A resumed run continues from its last whole checkpoint."""
    plan, data = planned.plan, planned.data
    with ThreadPoolExecutor(1) as executor:
        # The digest reads every byte of the base, so it is computed while the training prepares.
        digest = executor.submit(base_digest, plan.base.folder)
        saves, checkpoint = checkpoints(plan, data, digest.result, context, report)
        with PeakMemory() as peak:
            adapter = train_adapter(plan, data, context.folder, report, saves=saves, checkpoint=checkpoint)
    record_training(adapter.result, peak.bytes, context.folder, report)
    return TrainedRun(adapter, digest.result())


def checkpoints(
    plan: Plan, data: PreparedData, base_digest: Callable[[], str], context: RunContext, report: Report
) -> tuple[Saves | None, Checkpoint | None]:
    """Return how this attempt saves, and the checkpoint it continues from.

    Raises:
        ConfigError: The base, the data or an option that a checkpoint depends on has changed.
    """

    def now() -> dict[str, Any]:
        return fingerprint(plan, data, base_digest())

    checkpoint = None
    if plan.config.resume is not None:
        checkpoint = find_checkpoint(context.run_id, context.tracking_uri, context.folder, report)
        if checkpoint is not None:
            check_same(checkpoint, now())
            check_not_past(checkpoint, plan.steps(len(data.train)))
    training = plan.config.training
    if training.save_steps is None:
        return None, checkpoint
    upload = uploads(report, training.save_total_limit)
    keep = keeps_models(plan.method.adaptation, plan.adaptation_options, context.folder, report)
    return Saves(context.folder / FOLDER, training.save_total_limit, now, upload, keep), checkpoint


def train_adapter(
    plan: Plan,
    data: PreparedData,
    folder: Path,
    report: Report,
    *,
    saves: Saves | None = None,
    checkpoint: Checkpoint | None = None,
) -> TrainedAdapter:
    """Load the weights, train, and write the adapter to ``folder/adapter``; nothing returned holds the model."""
    config, tokenizer, method = plan.config, plan.renderer.tokenizer, plan.method
    adaptation = method.adaptation
    if plan.processes > 1:
        followers.hand_over(plan, data, checkpoint, folder)
    base = loading.load_model(plan.base, method.objective.MODEL, seed=config.training.seed)
    base_side = None if plan.is_reward_model else probe_log_probs(base, tokenizer, data.eval_rows)
    model = adaptation.apply(base, plan.adaptation_options, seed=config.training.seed, folder=folder)
    start_side = None
    if plan.start is not None:
        load_start(model, plan.start.adapter)
        start_side = probe_log_probs(model, tokenizer, data.eval_rows)
    start = trainable_digests(model)
    with joined(0, plan.processes, followers.meeting_place(folder)) as processes:
        result = trainer.train(
            model,
            tokenizer,
            train_rows=data.train,
            eval_rows=data.validation,
            settings=config.training,
            method=method,
            folder=folder,
            report=report,
            saves=saves,
            checkpoint=checkpoint,
            processes=processes,
            expected_tokens_per_s=plan.expected_tokens_per_s,
            renderer=plan.renderer,
            base=plan.base,
        )
    check_weights_changed(model, start)
    adapter_side = None if base_side is None else probe_log_probs(model, tokenizer, data.eval_rows)
    reference = None
    if base_side is None:  # before the adapter is saved, because that may take the model apart
        reference = make_reward_reference(model, tokenizer, data.eval_rows, precision=plan.base.precision)
    adaptation.save(model, plan.adaptation_options, folder / "adapter", start=folder)
    check_adapter_file(folder / "adapter", adaptation)
    if base_side is not None and adapter_side is not None:
        reference = _reference(plan, data, model, base_side, adapter_side)
        check_adapter_moved(reference, start_side)
    assert reference is not None
    return TrainedAdapter(folder / "adapter", result, reference)


def _reference(
    plan: Plan, data: PreparedData, model: PeftModel, base_side: list[np.ndarray], adapter_side: list[np.ndarray]
) -> Reference:
    """Return the log-probabilities of base and adapter, in the precisions of training and serving."""
    renderer, tokenizer = plan.renderer, plan.renderer.tokenizer
    longest = int(plan.config.eval.max_new_tokens)
    decoding = Decoding(tokenizer, renderer.stop_token_ids, renderer.answer_prefix, longest)
    served = {
        precision: served_as(
            model,
            probe_rows(data.eval_rows),
            precision,
            trained=adapter_side,
            pad_token_id=int(tokenizer.pad_token_id or 0),
            max_gap=plan.max_precision_gap,
            decoding=decoding,
        )
        for precision in plan.serving_precisions
    }
    return make_reference(
        tokenizer,
        data.eval_rows,
        precision=plan.base.precision,
        base=base_side,
        adapter=adapter_side,
        served_as=served,
    )


def train_aside(plan: Plan, data: PreparedData, folder: Path) -> Path:
    """Train another adapter with the run's settings, and return its folder. The run's report does not mention it."""
    folder.mkdir(parents=True, exist_ok=True)
    adapter = train_adapter(followers.alone(plan), data, folder, Report(Path(os.devnull))).folder
    free_memory()
    return adapter


def free_memory() -> None:
    """Give the memory of models that are out of scope back before the next copy is loaded."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def record_training(result: TrainingResult, peak_bytes: int, folder: Path, report: Report) -> None:
    """Record what the training took, and the loss curve as a picture."""
    took = {TRAIN_SECONDS: result.seconds, TRAIN_PEAK_MEMORY: mib(peak_bytes)}
    report.metrics({**took, TRAIN_TOTAL_TOKENS: float(result.tokens)}, step=result.steps)
    from mlflow_finetune_plugin.evaluation.plots import plot_loss  # imported only after the first step

    figure = plot_loss(result.losses, result.eval_losses)
    figure.savefig(folder / LOSS_PICTURE, dpi=120)
    report.artifact(folder / LOSS_PICTURE)
    report.stage(
        "train",
        f"{result.steps} steps in {result.seconds:.1f} s, {result.tokens / max(result.seconds, 1e-9):,.0f} tokens/s; loss {result.losses[0][1]:.3f} -> {result.losses[-1][1]:.3f}",
    )
