"""What a run's record does to the run in a real MLflow store."""

from __future__ import annotations

from pathlib import Path

from conftest import Workplace

from mlflow_finetune_plugin.jobs.run_record import RunRecord


def test_obsolete_artifacts_are_removed_and_nothing_else(desk: Workplace) -> None:
    client = desk.client()
    run_id = client.create_run(client.create_experiment("bot")).info.run_id
    for path in ("checkpoints/slot-0/optimizer.pt", "checkpoints/slot-1/optimizer.pt", "proof/rows.json"):
        file = desk.path / Path(path).name
        file.write_text("content")
        client.log_artifact(run_id, str(file), str(Path(path).parent))
    RunRecord(client, run_id, attempt=1).remove_artifacts(["checkpoints", "absent"])
    assert [entry.path for entry in client.list_artifacts(run_id)] == ["proof"]
    assert [entry.path for entry in client.list_artifacts(run_id, "proof")] == ["proof/rows.json"]
