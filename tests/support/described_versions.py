"""Registered versions that say of themselves what a training run says: tags, proof, loss, data."""

from __future__ import annotations

import json
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric
from proven_versions import register_proven, rows

from mlflow_finetune_plugin.gate.policy import GatePolicy

POLICY = GatePolicy.model_validate({"gain": {"metric": "exact_match"}})
ROWS = 200
BASE_RIGHT = 20


def register_described(client: MlflowClient, name: str, right: int, *, tags: dict[str, str] | None = None) -> str:
    """Of 200 held-out rows the adapter answers ``right`` rightly, and its base 20; the version's number."""
    gain = (right - BASE_RIGHT) / ROWS
    metrics = {
        "eval/base/exact_match": BASE_RIGHT / ROWS,
        "eval/adapter/exact_match": right / ROWS,
        "eval/gain/exact_match": gain,
        "eval/gain_low/exact_match": gain - 0.05,
        "eval/gain_high/exact_match": gain + 0.05,
        "forgetting/nats_per_token": 0.03,
        "forgetting/nats_per_token_low": 0.01,
        "forgetting/nats_per_token_high": 0.07,
    }
    number = register_proven(
        client, name, rows(ROWS), right=right, base_right=BASE_RIGHT, policy=POLICY, metrics=metrics
    )
    run_id = str(client.get_model_version(name, number).run_id)
    losses = [("train/loss", 1, 3.0), ("train/loss", 2, 2.0), ("train/loss", 3, 1.0), ("eval_loss", 3, 1.25)]
    client.log_batch(run_id, [Metric(key, loss, 1000 + step, step) for key, step, loss in losses])
    profile = json.dumps({"train_rows": 800, "eval_rows": ROWS})
    used = DatasetInput(
        Dataset("d", "ab" * 16, "local", "{}", profile=profile), [InputTag("mlflow.data.context", "train")]
    )
    client.log_inputs(run_id, datasets=[used])
    told: dict[str, Any] = {"adaptation": "lora", "base_model": "tiny", "data_digest": "cd" * 32, **(tags or {})}
    for key, value in told.items():
        client.set_model_version_tag(name, number, f"finetune.{key}", value)
    return number
