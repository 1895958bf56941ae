"""What a run tells MLflow: params, metrics, artifacts, tags, and the lines a person reads."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow_finetune_plugin import __version__
from mlflow_finetune_plugin.base_models.facts import Reasons
from mlflow_finetune_plugin.base_models.loading import device
from mlflow_finetune_plugin.config.evaluation import EvaluationConfig
from mlflow_finetune_plugin.config.sections import DataFileSettings
from mlflow_finetune_plugin.data.mixture import Mixture
from mlflow_finetune_plugin.data.preparation import PreparedData
from mlflow_finetune_plugin.data.report.contents import DataReport
from mlflow_finetune_plugin.data.report.page import report_page
from mlflow_finetune_plugin.evaluation.results import EvalReport, Interval, MetricResult
from mlflow_finetune_plugin.evaluation.scale import forgetting_text
from mlflow_finetune_plugin.jobs.report import Report
from mlflow_finetune_plugin.logged_models.adapter import LoggedAdapter, Reference
from mlflow_finetune_plugin.planning.forecast import Forecast
from mlflow_finetune_plugin.planning.memory import mib
from mlflow_finetune_plugin.planning.plan import Plan
from mlflow_finetune_plugin.promotion.held_out import TABLE as HELD_OUT_TABLE
from mlflow_finetune_plugin.store.clients import metric_part
from mlflow_finetune_plugin.store.names import (
    ADAPTATION_TAG,
    ADAPTER_DIGEST_TAG,
    BASE_DIGEST_TAG,
    BASE_MODEL_TAG,
    DATA_DIGEST_TAG,
    EVAL_ROWS,
    EVALUATED_MODEL_TAG,
    FORGETTING,
    FORGETTING_HIGH,
    FORGETTING_LOW,
    HELD_OUT_FOLDER,
    OBJECTIVE_TAG,
    PLAN_MEMORY,
    PLAN_SECONDS,
    PROCESSES_TAG,
    PROOF_TAG,
    RELOAD_NATS,
    SERVING_TAG,
    TRAIN_PEAK_MEMORY,
    TRAIN_SECONDS,
    TRAIN_TOTAL_TOKENS,
    TRAINED_ON_DIGEST_TAG,
)
from mlflow_finetune_plugin.training.trainer import TrainingResult
from mlflow_finetune_plugin.weights_digest import folder_digest

HELD_OUT = "held-out"


@dataclass(frozen=True)
class Identity:
    """What a version is made of: digests and names, the tags that lineage and serving rely on."""

    adaptation: str
    objective: str
    base_model: str
    base_digest: str
    data_digest: str
    adapter_digest: str
    serving: str

    @classmethod
    def of(cls, plan: Plan, data: PreparedData, base_digest: str, adapter: Path) -> Identity:
        return cls(
            adaptation=plan.config.adaptation,
            objective=plan.config.objective,
            base_model=plan.base.name,
            base_digest=base_digest,
            data_digest=data.digest,
            adapter_digest=folder_digest(adapter),
            serving=plan.serving,
        )

    def tags(self) -> dict[str, str]:
        """``finetune.<field>`` for every field."""
        return {
            ADAPTATION_TAG: self.adaptation,
            OBJECTIVE_TAG: self.objective,
            BASE_MODEL_TAG: self.base_model,
            BASE_DIGEST_TAG: self.base_digest,
            DATA_DIGEST_TAG: self.data_digest,
            ADAPTER_DIGEST_TAG: self.adapter_digest,
            SERVING_TAG: self.serving,
        }


def plan_params(plan: Plan) -> dict[str, Any]:
    """The resolved config, flat, as params are logged; which run is resumed is no param of that run."""
    config = {**plan.config.model_dump(mode="json", by_alias=True, exclude={"resume"}), "options": plan.options}
    return _flat(config)


def record_plan(plan: Plan, data: PreparedData, folder: Path, report: Report) -> None:
    """The resolved config, whole as an artifact and flat as params, with the reason of every chosen value; the data report."""
    config = {**plan.config.model_dump(mode="json", by_alias=True), "options": plan.options, "reasons": plan.reasons}
    report.params(plan_params(plan))
    report.text(folder / "config.json", json.dumps(config, indent=1, ensure_ascii=False), "finetune")
    record_data(data.report, folder, report)
    held_out = plan.config.data.eval if isinstance(plan.config.data.eval, list) else plan.config.data.train
    report.datasets(
        [
            {
                "name": plan.config.data.train[0].task or Path(plan.config.data.train[0].path).name,
                "context": "train",
                "digest": data.digest,
                **_source(plan.config.data.train, data),
            },
            {"name": "held-out", "context": "eval", "digest": data.eval_digest, **_source(held_out, data)},
        ]
    )
    report.tags(
        {
            BASE_MODEL_TAG: plan.base.name,
            ADAPTATION_TAG: plan.config.adaptation,
            OBJECTIVE_TAG: plan.config.objective,
            PROCESSES_TAG: str(plan.processes),
        }
    )
    training = plan.config.training
    shared = "" if plan.processes == 1 else f" x {plan.processes} processes"
    report.stage(
        "plan",
        f"{plan.config.adaptation} x {plan.config.objective} on {plan.base.name} ({plan.facts.parameters / 1e6:,.1f}M parameters, {plan.base.precision}, {device().type}); "
        f"learning rate {training.learning_rate:g}, batch {training.per_device_train_batch_size} x {training.gradient_accumulation_steps}{shared}; serving {plan.serving}",
    )
    summary_line = data.report.summary()
    report.stage("data", summary_line.removeprefix("data").strip())
    for warning in data.report.warnings:
        report.note(warning)


def record_evaluation(
    config: EvaluationConfig,
    card: Mapping[str, Any],
    data: PreparedData,
    reasons: Reasons,
    folder: Path,
    report: Report,
) -> None:
    """What is evaluated on what: config with reasons, data report, the held-out rows as a dataset input, lineage tags."""
    values = {**config.model_dump(mode="json"), "reasons": reasons}
    report.params(_flat({key: value for key, value in values.items() if key != "reasons"}))
    report.text(folder / "config.json", json.dumps(values, indent=1, ensure_ascii=False), "finetune")
    record_data(data.report, folder, report)
    assert isinstance(config.data.eval, list)
    source = _source(config.data.eval, data)
    report.datasets([{"name": "held-out", "context": "eval", "digest": data.eval_digest, **source}])
    report.tags(
        {
            EVALUATED_MODEL_TAG: config.model,
            BASE_MODEL_TAG: str(card["base_model"]["name"]),
            ADAPTATION_TAG: str(card["adaptation"]),
            OBJECTIVE_TAG: str(card["objective"]),
            ADAPTER_DIGEST_TAG: str(card["adapter_digest"]),
            TRAINED_ON_DIGEST_TAG: str(card["data_digest"]),
            DATA_DIGEST_TAG: data.eval_digest,
        }
    )
    report.stage("data", data.report.summary().removeprefix("data").strip())
    for warning in data.report.warnings:
        report.note(warning)


def record_mixture(mixture: Mixture, mixing: str, folder: Path, report: Report) -> None:
    """How often each task is drawn, when there are several."""
    if len(mixture.tasks) < 2:
        return
    shares = [{"task": share.task, "rows": share.rows, "drawn": share.drawn} for share in mixture.tasks]
    report.text(folder / "mixture.json", json.dumps(shares, indent=1, ensure_ascii=False), "finetune")
    report.stage(
        "data",
        f"{len(shares)} tasks, mixing {mixing}: "
        + ", ".join(
            f"{share.task} {share.rows:,}{'' if share.rows == share.drawn else f' -> {share.drawn:,}'}"
            for share in mixture.tasks
        ),
    )


def record_forecast(forecast: Forecast | None, why_not: str, folder: Path, report: Report) -> None:
    """``plan/memory_mib`` (training, as ``train/peak_memory_mib`` measures it), ``plan/train_seconds``, the parts as an artifact."""
    if forecast is None:
        report.note(why_not)
        return
    report.text(folder / "plan.json", json.dumps(forecast.to_json(), indent=1), "finetune")
    report.metrics({PLAN_MEMORY: mib(forecast.memory.training_and_loading), PLAN_SECONDS: forecast.seconds})
    report.stage("plan", forecast.line())
    if forecast.verdict == "tight":
        report.note("memory is tight by the prediction: steps are made in smaller parts if it runs out")


def record_training(result: TrainingResult, peak_bytes: int, folder: Path, report: Report) -> None:
    """The loss curve as a picture, and what training took."""
    took = {TRAIN_SECONDS: result.seconds, TRAIN_PEAK_MEMORY: mib(peak_bytes)}
    report.metrics({**took, TRAIN_TOTAL_TOKENS: float(result.tokens)}, step=result.steps)
    from mlflow_finetune_plugin.evaluation.plots import plot_loss  # matplotlib is not paid for before the first step

    figure = plot_loss(result.losses, result.eval_losses)
    figure.savefig(folder / "loss.png", dpi=120)
    report.artifact(folder / "loss.png", "plots")
    report.stage(
        "train",
        f"{result.steps} steps in {result.seconds:.1f} s, {result.tokens / max(result.seconds, 1e-9):,.0f} tokens/s; loss {result.losses[0][1]:.3f} -> {result.losses[-1][1]:.3f}",
    )


def record_model(logged: LoggedAdapter, error: float, reference: Reference, step: int, report: Report) -> None:
    """The reload check's figure, and how each precision of serving stands to training's; a gap that will not serve is told."""
    figures = {RELOAD_NATS: error}
    for precision, told in reference.served_as.items():
        place = f"precision/{precision.replace('+', '-')}"
        figures |= {f"{place}/gap_nats": told.gap, f"{place}/noise_nats": told.noise}
        if not told.gap <= told.max_gap:
            report.stage(
                "serving",
                f"in {precision} the adapter is {told.gap:.2g} nats from what it was trained to say "
                f"(register.max_precision_gap {told.max_gap:g}): it will not be served so",
            )
    report.metrics(figures, step=step, model_id=logged.model_id)


def record_proof(
    proof: EvalReport, model_id: str | None, step: int, folder: Path, report: Report, *, rows: str = HELD_OUT
) -> None:
    """Metrics on the run and on the logged model, the rows as a table, the gains as a picture; ``rows``: what they are."""
    report.metrics(proof_metrics(proof), step=step, model_id=model_id)
    columns = list(proof.rows[0])
    table = {"columns": columns, "data": [[row[column] for column in columns] for row in proof.rows]}
    text = json.dumps(table, ensure_ascii=False)
    report.text(folder / HELD_OUT_TABLE, text, HELD_OUT_FOLDER)
    logged = json.dumps([{"path": f"{HELD_OUT_FOLDER}/{HELD_OUT_TABLE}", "type": "table"}])
    report.tags({"mlflow.loggedArtifacts": logged, PROOF_TAG: hashlib.sha256(text.encode()).hexdigest()})
    from mlflow_finetune_plugin.evaluation.plots import plot_gain, plot_tasks

    figure = plot_gain(proof)
    figure.savefig(folder / "gain.png", dpi=120)
    report.artifact(folder / "gain.png", "plots")
    if proof.tasks:
        figure = plot_tasks({task: results[0] for task, results in proof.tasks.items()}, "adapter against base")
        figure.savefig(folder / "tasks.png", dpi=120)
        report.artifact(folder / "tasks.png", "plots")
    for line in proof_lines(proof, rows=rows):
        report.stage("proof", line)


def record_interference(costs: Mapping[str, tuple[MetricResult, ...]], folder: Path, report: Report) -> None:
    """``interference/<metric>/<task>``: the mixture's adapter minus the task's own, below 0 where the mixture costs."""
    if not costs:
        return
    values: dict[str, float] = {}
    table = []
    for task, results in costs.items():
        for result in results:
            values |= _gains(f"interference/{result.name}/{metric_part(task)}", result.gain)
            table.append(
                [task, result.name, result.base, result.adapter, result.gain.value, result.gain.low, result.gain.high]
            )
    report.metrics(values)
    columns = ["task", "metric", "single_task", "mixture", "gain", "gain_low", "gain_high"]
    text = json.dumps({"columns": columns, "data": table}, ensure_ascii=False)
    report.text(folder / "interference.json", text, "proof")
    from mlflow_finetune_plugin.evaluation.plots import plot_tasks

    figure = plot_tasks({task: results[0] for task, results in costs.items()}, "mixture against single-task adapters")
    figure.savefig(folder / "interference.png", dpi=120)
    report.artifact(folder / "interference.png", "plots")
    for task, results in costs.items():
        first = results[0]
        report.stage(
            "proof",
            f"{task} alone {first.name} {first.base:.3g}, in the mixture {first.adapter:.3g} "
            f"(95 % CI of the difference {first.gain.low:+.3g}..{first.gain.high:+.3g})",
        )


def proof_metrics(proof: EvalReport) -> dict[str, float]:
    """``eval/base/M``, ``eval/adapter/M``, ``eval/gain/M``, ``eval/gain_low/M``, ``eval/gain_high/M``, ``forgetting/...``.

    With several tasks each again as ``eval/base/M/TASK`` and so on.
    """
    values: dict[str, float] = {EVAL_ROWS: float(len(proof.rows))}
    for metric in proof.metrics:
        values |= _sides_and_gain(metric, "")
    for task, results in proof.tasks.items():
        for metric in results:
            values |= _sides_and_gain(metric, f"/{metric_part(task)}")
    if proof.forgetting is not None:
        values |= {
            FORGETTING: proof.forgetting.value,
            FORGETTING_LOW: proof.forgetting.low,
            FORGETTING_HIGH: proof.forgetting.high,
        }
    return values


def _sides_and_gain(metric: MetricResult, task: str) -> dict[str, float]:
    return {
        f"eval/base/{metric.name}{task}": metric.base,
        f"eval/adapter/{metric.name}{task}": metric.adapter,
        f"eval/gain/{metric.name}{task}": metric.gain.value,
        f"eval/gain_low/{metric.name}{task}": metric.gain.low,
        f"eval/gain_high/{metric.name}{task}": metric.gain.high,
    }


def _gains(name: str, gain: Interval) -> dict[str, float]:
    return {name: gain.value, f"{name}_low": gain.low, f"{name}_high": gain.high}


def proof_lines(proof: EvalReport, *, rows: str = HELD_OUT) -> list[str]:
    """One line a metric, as shown in the terminal and in the version's description."""
    lines = [_metric_line(metric, rows) for metric in proof.metrics]
    lines += [f"{task}: {_metric_line(results[0], rows)}" for task, results in proof.tasks.items()]
    if proof.forgetting is not None:
        lines.append(f"forgetting: {forgetting_text(proof.forgetting)}")
    return lines


def _metric_line(metric: MetricResult, rows: str) -> str:
    gain = metric.gain
    return (
        f"{metric.name} {metric.base:.3g} -> {metric.adapter:.3g} on {metric.rows} {rows} rows "
        f"(95 % CI of the gain {gain.low:+.3g}..{gain.high:+.3g})"
    )


def summary(proof: EvalReport, uri: str, *, rows: str = HELD_OUT) -> str:
    """The run in one line."""
    return f"{_metric_line(proof.metrics[0], rows)}; {uri}"


def version_description(plan: Plan, proof: EvalReport) -> str:
    """What the registry page shows under the version."""
    head = f"{plan.config.adaptation} x {plan.config.objective} on {plan.base.name}"
    return "\n".join([head, "", *(f"- {line}" for line in proof_lines(proof))])


def model_card(plan: Plan, identity: Identity) -> dict[str, Any]:
    """What travels in the model as ``finetune.json``: enough to load it, serve it and know what it is."""
    base = plan.base
    return {
        "mlflow_finetune": __version__,
        "base_model": {
            "name": base.name,
            "folder": str(base.folder),
            "revision": base.revision,
            "digest": identity.base_digest,
            "dtype": str(base.dtype).removeprefix("torch."),
            "quantization": base.quantization,
            "attn_implementation": base.attn_implementation,
            "trust_remote_code": base.trust_remote_code,
        },
        "adaptation": identity.adaptation,
        "objective": identity.objective,
        "options": plan.options,
        "serving": identity.serving,
        "data_digest": identity.data_digest,
        "adapter_digest": identity.adapter_digest,
        "stop_token_ids": list(plan.renderer.stop_token_ids),
        "answer_prefix": plan.renderer.answer_prefix.strip(),
        "chat_template_source": plan.renderer.template_source,
        "max_new_tokens": int(plan.config.eval.max_new_tokens),
        "max_length": plan.max_length,
    }


def record_data(found: DataReport, folder: Path, report: Report) -> None:
    """The data report as JSON and as a page, of data that cannot be trained on too."""
    text = json.dumps(found.to_json(), indent=1, ensure_ascii=False)
    report.text(folder / "data_report.json", text, "finetune")
    report.text(folder / "data_report.html", report_page(found), "finetune")


def _source(files: Sequence[DataFileSettings], data: PreparedData) -> dict[str, str]:
    return {
        "source": json.dumps({"files": [file.path for file in files]}),
        "profile": json.dumps({"train_rows": len(data.train), "eval_rows": len(data.eval_rows)}),
    }


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested sections as dotted keys; lists as JSON; what is not set is left out."""
    if isinstance(value, dict):
        return {
            key: item
            for name, part in value.items()
            for key, item in _flat(part, f"{prefix}.{name}" if prefix else str(name)).items()
        }
    if value is None:
        return {}
    return {prefix: json.dumps(value, ensure_ascii=False) if isinstance(value, list) else value}
