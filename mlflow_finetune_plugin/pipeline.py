"""The story of a run: plan -> data -> train -> model -> proof -> registry."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from mlflow_finetune_plugin.base_models import loading
from mlflow_finetune_plugin.config.data_files import data_files
from mlflow_finetune_plugin.config.run_config import RunConfig
from mlflow_finetune_plugin.data.preparation import PreparedData, prepare
from mlflow_finetune_plugin.data.report.contents import UnusableDataError
from mlflow_finetune_plugin.errors import DataError
from mlflow_finetune_plugin.evaluation.forgetting import DEFAULT_TEXT, read_texts
from mlflow_finetune_plugin.evaluation.results import EvalReport, EvalRow
from mlflow_finetune_plugin.jobs.report import Report
from mlflow_finetune_plugin.logged_models.adapter import (
    PROBES,
    LoggedAdapter,
    Reference,
    check_adapter_file,
    check_adapter_moved,
    check_reload,
    check_weights_changed,
    log_adapter,
    make_reference,
    probe_log_probs,
    reload_adapter,
    trainable_weights,
)
from mlflow_finetune_plugin.logged_models.precisions import served_as
from mlflow_finetune_plugin.planning.forecast import check_fits, forecast_run
from mlflow_finetune_plugin.planning.micro_batch_shapes import steps_of
from mlflow_finetune_plugin.planning.plan import Plan, data_request, make_plan, mix_tasks, settle_on
from mlflow_finetune_plugin.stages import followers, single_task_references
from mlflow_finetune_plugin.stages.checkpoint_models import keeps_models, log_checkpoint_models
from mlflow_finetune_plugin.stages.gate_records import record_held_out, record_policy, written_policy
from mlflow_finetune_plugin.stages.outages import with_patience
from mlflow_finetune_plugin.stages.place import Place
from mlflow_finetune_plugin.stages.records import (
    Identity,
    model_card,
    plan_params,
    record_data,
    record_forecast,
    record_interference,
    record_mixture,
    record_model,
    record_plan,
    record_proof,
    record_training,
    summary,
    version_description,
)
from mlflow_finetune_plugin.stages.resume import (
    FOLDER,
    check_not_past,
    check_same,
    find_checkpoint,
    fingerprint,
    record_drift,
    uploads,
)
from mlflow_finetune_plugin.stages.trained_rows import record_trained_rows
from mlflow_finetune_plugin.store.names import CHALLENGER
from mlflow_finetune_plugin.store.registry import register_adapter
from mlflow_finetune_plugin.training.checkpoints import Checkpoint
from mlflow_finetune_plugin.training.memory import PeakMemory
from mlflow_finetune_plugin.training.processes import joined
from mlflow_finetune_plugin.training.saving import Saves
from mlflow_finetune_plugin.training.trainer import TrainingResult, train
from mlflow_finetune_plugin.weights_digest import base_digest


@dataclass(frozen=True)
class Trained:
    """An adapter on disk, what it took, and what it said in training precision."""

    adapter: Path
    result: TrainingResult
    reference: Reference


def run(config: RunConfig, place: Place, report: Report) -> dict[str, Any]:
    """Turns a base model and data into a proven, registered adapter. Returns the run's last word."""
    plan = make_plan(config, processes=place.processes)
    torch.set_num_threads(plan.threads.count)
    data = prepare_data(plan, place.folder, report)
    mixture, data = mix_tasks(plan, data)
    plan, forecast, why_not = forecast_run(settle_on(plan, data), data)
    if config.resume is not None:
        record_drift(plan_params(plan), place.tracking_uri, place.run_id, place.folder, report)
    record_plan(plan, data, place.folder, report)
    earlier = None if config.resume is None else written_policy(place.tracking_uri, place.run_id, report)
    record_policy(plan.policy, regression_rows(plan, place.folder), place.folder, report, earlier=earlier)
    settings = plan.config.eval
    record_held_out(data.eval_rows, list(settings.metrics), int(settings.max_new_tokens), place.folder, report)
    record_trained_rows(data.trained_rows, plan.config.training.seed, place.folder, report)
    record_forecast(forecast, why_not, place.folder, report)
    record_mixture(mixture, plan.config.data.mixing, place.folder, report)
    check_fits(forecast)
    with ThreadPoolExecutor(1) as aside:
        digest = aside.submit(base_digest, plan.base.folder)  # reads every byte of the base: beside the rest
        saves, checkpoint = checkpoints(plan, data, digest.result, place, report)
        with PeakMemory() as peak:
            trained = train_adapter(plan, data, place.folder, report, saves=saves, checkpoint=checkpoint)
    record_training(trained.result, peak.bytes, place.folder, report)
    identity = Identity.of(plan, data, digest.result(), trained.adapter)
    logged, model = log_and_reload(plan, data, trained, identity, place, report)
    kept_step = trained.result.best_step or trained.result.steps
    log_checkpoint_models(plan, data, digest.result(), place.run_id, place.folder, kept_step, report)
    proof = prove_adapter(plan, data, model, report)
    record_proof(proof, logged.model_id, trained.result.steps, place.folder, report)
    del model
    if plan.config.eval.single_task_references and proof.tasks:
        costs = single_task_references.costs_of_mixing(plan, data, proof, place.folder, report, train=_train_aside)
        record_interference(costs, place.folder, report)
    return conclude(plan, identity, logged, proof, place, report)


def prepare_data(plan: Plan, folder: Path, report: Report) -> PreparedData:
    """The data as tokens; where it cannot be trained on, its report is logged before the error goes on."""
    try:
        return prepare(data_request(plan), plan.renderer, folder)
    except UnusableDataError as error:
        record_data(error.report, folder, report)
        raise


def regression_rows(plan: Plan, folder: Path) -> dict[str, list[EvalRow]]:
    """The rows of each regression file of the policy, read as the held-out rows are."""
    data = plan.config.data
    like = data.eval[0] if isinstance(data.eval, list) else data.train[0]
    found: dict[str, list[EvalRow]] = {}
    for path in dict.fromkeys(regression.data for regression in plan.policy.regressions):
        file = like.model_copy(update={"path": path, "task": None, "weight": 1.0})
        asked = replace(data_request(plan), train=(), eval=data_files([file]), max_eval_rows=None)
        prepared = prepare(asked, plan.renderer, folder / "regressions")
        lost = sum(skip.rows for file in prepared.report.files for skip in file.skipped)
        if lost or not prepared.eval_rows:
            raise DataError(
                f"{path}: {lost:,} of its rows cannot be asked, and every row of a regression file has to be; "
                f"fix: mlflow-finetune data {path} says which and why"
            )
        found[path] = prepared.eval_rows
    return found


def checkpoints(
    plan: Plan, data: PreparedData, base_digest: Callable[[], str], place: Place, report: Report
) -> tuple[Saves | None, Checkpoint | None]:
    """How this attempt saves, and where it goes on. Raises ConfigError when what must not change has changed."""

    def now() -> dict[str, Any]:
        return fingerprint(plan, data, base_digest())

    checkpoint = None
    if plan.config.resume is not None:
        checkpoint = find_checkpoint(place.run_id, place.tracking_uri, place.folder, report)
        if checkpoint is not None:
            check_same(checkpoint, now())
            check_not_past(checkpoint, steps_of(plan.config.training, len(data.train), plan.processes))
    training = plan.config.training
    if training.save_steps is None:
        return None, checkpoint
    upload = uploads(report, training.save_total_limit)
    keep = keeps_models(plan.method.adaptation, plan.adaptation_options, place.folder, report)
    return Saves(place.folder / FOLDER, training.save_total_limit, now, upload, keep), checkpoint


def train_adapter(
    plan: Plan,
    data: PreparedData,
    folder: Path,
    report: Report,
    *,
    saves: Saves | None = None,
    checkpoint: Checkpoint | None = None,
) -> Trained:
    """Loads the weights, trains, and leaves the adapter in ``folder/adapter``; the model's memory is free afterwards."""
    config, tokenizer, method = plan.config, plan.renderer.tokenizer, plan.method
    adaptation = method.adaptation
    if plan.processes > 1:
        followers.hand_over(plan, data, checkpoint, folder)
    base = loading.load_base_model(plan.base)
    base_side = probe_log_probs(base, tokenizer, data.eval_rows)
    model = adaptation.apply(base, plan.adaptation_options, seed=config.training.seed, folder=folder)
    start = trainable_weights(model)
    with joined(0, plan.processes, followers.meeting_place(folder)) as processes:
        result = train(
            model,
            tokenizer,
            train_rows=data.train,
            eval_rows=data.eval_dataset,
            settings=config.training,
            method=method,
            folder=folder,
            report=report,
            saves=saves,
            checkpoint=checkpoint,
            processes=processes,
            expected_tokens_per_s=plan.expected_tokens_per_s,
        )
    check_weights_changed(model, start)
    adapter_side = probe_log_probs(model, tokenizer, data.eval_rows)
    adaptation.save(model, plan.adaptation_options, folder / "adapter", start=folder)
    check_adapter_file(folder / "adapter", adaptation)
    served = {
        precision: served_as(
            model,
            data.eval_rows[:PROBES],
            precision,
            trained=adapter_side,
            pad_token_id=int(tokenizer.pad_token_id or 0),
            max_gap=plan.max_precision_gap,
        )
        for precision in plan.serving_precisions
    }
    reference = make_reference(
        tokenizer,
        data.eval_rows,
        precision=plan.base.precision,
        base=base_side,
        adapter=adapter_side,
        served_as=served,
    )
    check_adapter_moved(reference)
    return Trained(folder / "adapter", result, reference)


def log_and_reload(
    plan: Plan, data: PreparedData, trained: Trained, identity: Identity, place: Place, report: Report
) -> tuple[LoggedAdapter, PeftModel]:
    """Logs the adapter, loads it back as anybody would, and compares it with what was trained."""
    import mlflow

    _free_memory()
    mlflow.set_tracking_uri(place.tracking_uri)
    plan.renderer.tokenizer.chat_template = plan.renderer.chat_template
    logged = with_patience(
        lambda: log_adapter(
            trained.adapter,
            plan.renderer.tokenizer,
            run_id=place.run_id,
            name=plan.config.register_as.name if plan.config.register_as else "adapter",
            base=plan.base,
            card=model_card(plan, identity),
            reference=trained.reference,
            folder=place.folder,
            step=trained.result.best_step or trained.result.steps,
            tags=identity.tags(),
        ),
        report,
    )
    model, tokenizer = with_patience(lambda: reload_adapter(logged.uri), report)
    error = check_reload(model, tokenizer, trained.reference, data.eval_rows)
    record_model(logged, error, trained.reference, trained.result.steps, report)
    return logged, model


def prove_adapter(plan: Plan, data: PreparedData, model: PeftModel, report: Report) -> EvalReport:
    """Base and adapter answer the held-out rows; both are measured on text that the adapter was not trained on."""
    from mlflow_finetune_plugin.evaluation.proof import prove  # scipy is not paid for before the first step

    settings = plan.config.eval
    texts = [] if settings.forgetting is False else read_texts(settings.forgetting or DEFAULT_TEXT)
    return prove(
        model,
        plan.renderer.tokenizer,
        data.eval_rows,
        metrics=list(settings.metrics),
        max_new_tokens=int(settings.max_new_tokens),
        stop_token_ids=plan.renderer.stop_token_ids,
        forgetting_texts=texts,
        answer_prefix=plan.renderer.answer_prefix,
        seed=plan.config.training.seed,
        on_progress=lambda side, done, total: report.progress(done, total, f"answers of the {side}", stage="proof"),
    )


def conclude(
    plan: Plan, identity: Identity, logged: LoggedAdapter, proof: EvalReport, place: Place, report: Report
) -> dict[str, Any]:
    """Registers the model when the config names one, and sums the run up in a line."""
    from mlflow import MlflowClient

    uri = logged.uri
    if plan.config.register_as is not None:
        name = plan.config.register_as.name
        version = with_patience(
            lambda: register_adapter(
                MlflowClient(), logged.uri, name, tags=identity.tags(), description=version_description(plan, proof)
            ),
            report,
        )
        uri = version.uri
        report.stage("model", f"{uri}, alias {CHALLENGER}")
    else:
        report.stage("model", f"{uri} (not registered: no register.name)")
    report.tags(identity.tags())
    return {"model_uri": uri, "model_id": logged.model_id, "summary": summary(proof, uri)}


def _train_aside(plan: Plan, data: PreparedData, folder: Path) -> Path:
    """Another adapter with the run's settings, of which the run's report says nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    adapter = train_adapter(followers.alone(plan), data, folder, Report(Path(os.devnull))).adapter
    _free_memory()
    return adapter


def _free_memory() -> None:
    """The trained model and its optimiser are out of scope; give their memory back before the next copy is loaded."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
