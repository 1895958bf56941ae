"""``mlflow-finetune promote`` in this process, and what it left in the registry."""

import json
from pathlib import Path

from mlflow_finetune_plugin.cli.main import main
from mlflow_finetune_plugin.gate.policy import GatePolicy
from mlflow_finetune_plugin.promotion.moves.audit import history
from mlflow_finetune_plugin.store.registered_model import read_model

POLICY = GatePolicy.model_validate({"gain": {"metric": "exact_match"}})


def promote(*arguments):
    return main(["promote", *arguments])


def champion(client, name="bot"):
    return read_model(client, name)[0].get("champion")


def report_of(client):
    newest = next(record for record in history(client, "bot") if record.run_id)
    text = client.download_artifacts(newest.run_id, "verdict.json", ".")
    return json.loads(Path(text).read_text())
