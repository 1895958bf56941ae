"""``-e evaluate``: prove a logged adapter again, on other held-out rows.

The rows are rendered with the chat template that the model carries. The base is the one that the adapter was trained on,
checked by its digest. The metrics are linked to the model as well as to this run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlflow_finetune_plugin.base_models.facts import Reasons
from mlflow_finetune_plugin.config.evaluation import EvaluationConfig
from mlflow_finetune_plugin.config.reward_options import reward_metrics
from mlflow_finetune_plugin.config.sections import EvalSettings
from mlflow_finetune_plugin.data.preparation import PreparedData
from mlflow_finetune_plugin.data.tokens.renderer import ChatRenderer
from mlflow_finetune_plugin.evaluation.forgetting import DEFAULT_TEXT, read_texts
from mlflow_finetune_plugin.evaluation.proof import prove
from mlflow_finetune_plugin.jobs.report import Report
from mlflow_finetune_plugin.logged_models.evaluation_rows import SEED, prepare_evaluation_rows
from mlflow_finetune_plugin.logged_models.loading import load_logged
from mlflow_finetune_plugin.planning.eval_settings import settle_eval
from mlflow_finetune_plugin.rewards import scoring
from mlflow_finetune_plugin.stages.context import RunContext
from mlflow_finetune_plugin.stages.outages import with_patience
from mlflow_finetune_plugin.stages.prove import record_proof
from mlflow_finetune_plugin.stages.records.data import dataset_source, flat_params, record_data
from mlflow_finetune_plugin.stages.records.description import summary
from mlflow_finetune_plugin.stages.records.trained_rows import report_trained_rows
from mlflow_finetune_plugin.stages.rewards import check_rewards, record_rewards
from mlflow_finetune_plugin.store.names import (
    ADAPTATION_TAG,
    ADAPTER_DIGEST_TAG,
    BASE_MODEL_TAG,
    DATA_DIGEST_TAG,
    EVALUATED_MODEL_TAG,
    OBJECTIVE_TAG,
    RECORDS_FOLDER,
    TRAINED_ON_DIGEST_TAG,
)
from mlflow_finetune_plugin.store.registry import find_model


def run(config: EvaluationConfig, context: RunContext, report: Report) -> dict[str, Any]:
    """Let base and adapter answer the rows, and record the comparison.

    Returns:
        ``model_uri``, ``model_id`` and ``summary``, the run in one line.
    """
    import mlflow
    from mlflow import MlflowClient

    mlflow.set_tracking_uri(context.tracking_uri)
    model = with_patience(lambda: find_model(MlflowClient(), config.model), report)
    report.stage("model", model.uri)
    loaded = with_patience(lambda: load_logged(model.uri, config.base_model, trust_code=config.trust_code), report)
    renderer = ChatRenderer(loaded.tokenizer, None)
    is_reward_model = loaded.card.get("kind") == "reward"
    if is_reward_model and config.rewards:
        report.note(f"options.rewards is not read: {model.uri} is a reward model, which writes no answers to score")
        config = config.model_copy(update={"rewards": []})
    data = prepare_evaluation_rows(config, loaded.card, renderer, context.folder)
    hashes = context.folder / "trained"
    data_report = report_trained_rows(data.report, data.eval_rows, MlflowClient(), model.model_id, hashes, report)
    data = replace(data, report=data_report)
    reasons: Reasons = {}
    layouts = [file.layout for file in data.report.files]
    settings = settle_eval(
        _answer_length(config, loaded.card, reasons),
        data.eval_rows,
        layouts,
        reasons,
        rewards=reward_metrics(config.rewards),
        is_reward_model=is_reward_model,
    )
    config = config.model_copy(update={"model": model.uri, "eval": settings})
    check_rewards(config.rewards, [row.fields for row in data.eval_rows])
    record_evaluation(config, loaded.card, data, reasons, context.folder, report)
    texts = [] if settings.forgetting is False else read_texts(settings.forgetting or DEFAULT_TEXT)
    with scoring(config.rewards) as score_answers:
        proof = prove(
            loaded.model,
            loaded.tokenizer,
            data.eval_rows,
            metrics=list(settings.metrics),
            max_new_tokens=int(settings.max_new_tokens),
            stop_token_ids=loaded.card["stop_token_ids"],
            forgetting_texts=texts,
            answer_prefix=loaded.card["answer_prefix"],
            seed=SEED,
            on_progress=lambda side, done, total: report.progress(done, total, f"answers of the {side}", stage="proof"),
            score_answers=score_answers,
        )
    kind = "evaluated"  # not "held-out": the data report says how many of them the adapter was trained on
    record_proof(proof, model.model_id, 0, context.folder, report, rows=kind)
    return {"model_uri": model.uri, "model_id": model.model_id, "summary": summary(proof, model.uri, rows=kind)}


def _answer_length(config: EvaluationConfig, card: Mapping[str, Any], reasons: Reasons) -> EvalSettings:
    """Return the eval section, for scored answers with the length of those in the training's proof, whose rows may have no reference."""
    settings = config.eval
    if not config.rewards or settings.max_new_tokens != "auto":
        return settings
    reasons["eval.max_new_tokens"] = f"{card['max_new_tokens']}: as in the proof of its training"
    return settings.model_copy(update={"max_new_tokens": int(card["max_new_tokens"])})


def record_evaluation(
    config: EvaluationConfig,
    card: Mapping[str, Any],
    data: PreparedData,
    reasons: Reasons,
    folder: Path,
    report: Report,
) -> None:
    """Record config with reasons, data report, the held-out rows as a dataset input, and the lineage as tags."""
    values = {**config.model_dump(mode="json"), "reasons": reasons}
    report.params(flat_params({key: value for key, value in values.items() if key != "reasons"}))
    report.text(folder / "config.json", json.dumps(values, indent=1, ensure_ascii=False), RECORDS_FOLDER)
    record_rewards(config.rewards, report)
    record_data(data.report, folder, report)
    assert isinstance(config.data.eval, list)
    source = dataset_source(config.data.eval, data)
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
    report.stage("data", data.report.summary(is_evaluation=True).removeprefix("data").strip())
    for warning in data.report.warnings:
        report.note(warning)
