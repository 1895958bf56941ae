"""The third stage: log the adapter as an MLflow model, load it back and compare it with what was trained."""

from __future__ import annotations

from dataclasses import dataclass

from peft import PeftModel

from mlflow_finetune_plugin.jobs.report import Report
from mlflow_finetune_plugin.logged_models.adapter import (
    LoggedAdapter,
    Reference,
    check_reload,
    log_adapter,
    reload_adapter,
    reload_python_model,
)
from mlflow_finetune_plugin.logged_models.reward_models import check_reward_reload
from mlflow_finetune_plugin.stages.checkpoint_models import log_checkpoint_models
from mlflow_finetune_plugin.stages.context import RunContext
from mlflow_finetune_plugin.stages.outages import with_patience
from mlflow_finetune_plugin.stages.plan import PlannedRun
from mlflow_finetune_plugin.stages.records.identity import Identity, model_card
from mlflow_finetune_plugin.stages.train import TrainedRun, free_memory
from mlflow_finetune_plugin.store.names import PRECISION, RELOAD_NATS, RELOAD_REWARD


@dataclass
class LoggedRun:
    """The logged model with its identity, and the copy that was loaded back from MLflow.

    Not frozen: the proof takes the loaded copy out, so that its memory is free for what follows.
    """

    adapter: LoggedAdapter
    identity: Identity
    steps: int
    _model: PeftModel | None

    def take_model(self) -> PeftModel:
        """Return the loaded model and forget it; the caller alone keeps it alive. Works once."""
        model, self._model = self._model, None
        if model is None:
            raise RuntimeError("the loaded model was taken before")
        return model


def log(planned: PlannedRun, trained: TrainedRun, context: RunContext, report: Report) -> LoggedRun:
    """Log the adapter and the evaluated checkpoints, and check that the logged adapter loads as it was trained."""
    identity = Identity.of(planned.plan, planned.data, trained.base_digest, trained.adapter.folder)
    logged, model = log_and_reload(planned, trained, identity, context, report)
    log_checkpoint_models(
        planned.plan, planned.data, trained.base_digest, context.run_id, context.folder, trained.kept_step, report
    )
    return LoggedRun(logged, identity, trained.adapter.result.steps, model)


def log_and_reload(
    planned: PlannedRun, trained: TrainedRun, identity: Identity, context: RunContext, report: Report
) -> tuple[LoggedAdapter, PeftModel]:
    """Log the adapter, load it back as any user would, and compare it with what was trained."""
    import mlflow

    plan, reference = planned.plan, trained.adapter.reference
    free_memory()
    mlflow.set_tracking_uri(context.tracking_uri)
    plan.renderer.tokenizer.chat_template = plan.renderer.chat_template
    logged = with_patience(
        lambda: log_adapter(
            trained.adapter.folder,
            plan.renderer.tokenizer,
            run_id=context.run_id,
            name=plan.config.register_as.name if plan.config.register_as else "adapter",
            base=plan.base,
            card=model_card(plan, identity),
            reference=reference,
            folder=context.folder,
            step=trained.kept_step,
            tags=identity.tags(),
            pictures=plan.renderer.pictures,
        ),
        report,
    )
    rows, steps = planned.data.eval_rows, trained.adapter.result.steps
    if plan.is_reward_model:
        scorer = with_patience(lambda: reload_python_model(logged.uri), report)
        difference = check_reward_reload(scorer, reference, rows)
        report.metrics({RELOAD_REWARD: difference}, step=steps, model_id=logged.model_id)
        return logged, scorer.model
    model, tokenizer = with_patience(lambda: reload_adapter(logged.uri), report)
    record_model(logged, check_reload(model, tokenizer, reference, rows), reference, steps, report)
    return logged, model


def record_model(logged: LoggedAdapter, error: float, reference: Reference, step: int, report: Report) -> None:
    """Record the reload check, and for each serving precision its gap to the training precision."""
    figures = {RELOAD_NATS: error}
    for precision, answers in reference.served_as.items():
        name = f"{PRECISION}{precision.replace('+', '-')}"
        figures |= {f"{name}/gap_nats": answers.gap, f"{name}/noise_nats": answers.noise}
        if not answers.gap <= answers.max_gap:
            report.stage(
                "serving",
                f"in {precision} the adapter differs from its training by {answers.gap:.2g} nats per token, more than "
                f"register.max_precision_gap allows ({answers.max_gap:g}): it will not be served in {precision}",
            )
    report.metrics(figures, step=step, model_id=logged.model_id)
