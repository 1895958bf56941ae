"""Registered versions with the proof that a training run leaves, without a training: rows, answers, policy, what was trained on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from mlflow import MlflowClient

from mlflow_finetune_plugin.data.conversations.split import hash_eval_row
from mlflow_finetune_plugin.evaluation.results import EvalRow, answer_room
from mlflow_finetune_plugin.gate.policy import GatePolicy
from mlflow_finetune_plugin.promotion.evidence.held_out import FILE, held_out_json
from mlflow_finetune_plugin.promotion.written_policy import write_policy
from mlflow_finetune_plugin.store.names import (
    GATE_DIGEST_TAG,
    GATE_FOLDER,
    HELD_OUT_FOLDER,
    HELD_OUT_TABLE,
    HELD_OUT_TAG,
    PROOF_TAG,
)

RIGHT, WRONG = "yes", "no"


def rows(count: int, source: str = "test.jsonl") -> list[EvalRow]:
    """Questions whose reference is RIGHT."""
    return [
        EvalRow(({"role": "user", "content": f"question {i}?"},), (1, i), (2, 3), RIGHT, "task", source, i + 1)
        for i in range(count)
    ]


def register_proven(
    client: MlflowClient,
    name: str,
    held_out: Sequence[EvalRow] | None,
    right: int,
    *,
    base_right: int = 0,
    adapter: str = "",
    base: str = "b" * 64,
    policy: GatePolicy | None = None,
    regressions: dict[str, list[EvalRow]] | None = None,
    trained_on: Sequence[EvalRow] | None = (),
    metrics: dict[str, float] | None = None,
) -> str:
    """A version whose adapter answers the first ``right`` rows rightly, and whose base the first ``base_right``; its number.

    ``regressions``: path -> rows, as the policy names the files; ``trained_on``: None leaves no word of it.
    """
    experiment = client.get_experiment_by_name("proven")
    run = client.create_run(experiment.experiment_id if experiment else client.create_experiment("proven"))
    run_id = run.info.run_id
    digest = adapter or f"{abs(hash((name, run_id))):064x}"[:64]
    client.set_tag(run_id, "finetune.adapter_digest", digest)
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if held_out is not None:
            log_believed(
                client, run_id, HELD_OUT_TAG, held_out_json(held_out, ["exact_match"], answer_room(held_out)), FILE
            )
            log_believed(client, run_id, PROOF_TAG, json.dumps(_table(held_out, right, base_right)), HELD_OUT_TABLE)
        if policy is not None:
            written = write_policy(policy, regressions or {})
            client.log_text(run_id, written.to_json(), f"{GATE_FOLDER}/policy.json")
            client.set_tag(run_id, GATE_DIGEST_TAG, written.digest)
        for path, found in (regressions or {}).items():
            client.log_text(
                run_id, held_out_json(found, (), answer_room(found)), f"{GATE_FOLDER}/{Path(path).name}.json"
            )
        if trained_on is not None:
            hashes = sorted({hash_eval_row(row, 0) for row in trained_on})
            np.save(folder / "trained_rows.npy", np.array(hashes, dtype=np.uint64))
            (folder / "trained_rows.json").write_text(json.dumps({"seed": 0, "rows": len(hashes)}))
            for file in ("trained_rows.npy", "trained_rows.json"):
                client.log_artifact(run_id, str(folder / file), "finetune")
    for key, value in (metrics or {}).items():
        client.log_metric(run_id, key, value)
    client.set_terminated(run_id)
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    tags = {"finetune.adapter_digest": digest, "finetune.base_digest": base, "finetune.objective": "sft"}
    version = client.create_model_version(name, f"runs:/{run_id}/model", run_id=run_id, tags=tags)
    client.set_registered_model_alias(name, "challenger", version.version)
    return str(version.version)


def _table(held_out: Sequence[EvalRow], right: int, base_right: int) -> dict[str, Any]:
    data = [
        [row.reference, RIGHT if i < base_right else WRONG, 1.0, RIGHT if i < right else WRONG, 0.5]
        for i, row in enumerate(held_out)
    ]
    columns = ["reference", "base_answer", "base_nats_per_token", "adapter_answer", "adapter_nats_per_token"]
    return {"columns": columns, "data": data}


def log_believed(client: MlflowClient, run_id: str, tag: str, text: str, file: str) -> None:
    """A file of a proof, with the digest by which it is known."""
    client.log_text(run_id, text, f"{HELD_OUT_FOLDER}/{file}")
    client.set_tag(run_id, tag, hashlib.sha256(text.encode()).hexdigest())
