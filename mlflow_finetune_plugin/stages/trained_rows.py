"""Which rows an adapter was trained on, as hashes in its run: what is evaluated later can be told apart from what was learnt."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mlflow_finetune_plugin.data.conversations.split import hash_eval_row
from mlflow_finetune_plugin.data.report.checks import LEAKED_ROWS
from mlflow_finetune_plugin.data.report.contents import MAX_LINES, DataFinding, DataReport
from mlflow_finetune_plugin.evaluation.results import EvalRow
from mlflow_finetune_plugin.jobs.report import Report
from mlflow_finetune_plugin.stages.outages import with_patience
from mlflow_finetune_plugin.store.names import RECORDS_FOLDER

if TYPE_CHECKING:
    from mlflow import MlflowClient

_HASHES, _SEED = "trained_rows.npy", "trained_rows.json"


def record_trained_rows(hashes: np.ndarray, seed: int, folder: Path, report: Report) -> None:
    """8 bytes a row, and the seed that they were made with, as artifacts."""
    np.save(folder / _HASHES, hashes)
    (folder / _SEED).write_text(json.dumps({"seed": seed, "rows": len(hashes)}), encoding="utf-8")
    for name in (_HASHES, _SEED):
        report.artifact(folder / name, RECORDS_FOLDER)


def told_of_trained_rows(
    found: DataReport, rows: Sequence[EvalRow], client: MlflowClient, model_id: str | None, folder: Path, report: Report
) -> DataReport:
    """The report with a finding where rows were trained on, or with a note where nobody can know."""
    run_id = with_patience(lambda: client.get_logged_model(model_id), report).source_run_id if model_id else None
    known = _download(client, run_id, folder, report) if run_id else None
    if known is None:
        return replace(
            found,
            notes=(*found.notes, "whether the adapter was trained on these rows is not known: its run does not tell"),
        )
    hashes, seed = known
    leaked = [row for row in rows if np.isin(np.uint64(hash_eval_row(row, seed)), hashes)]
    if not leaked:
        return found
    finding = DataFinding(
        check=LEAKED_ROWS,
        count=len(leaked),
        text=f"of {len(rows):,} rows are rows that the adapter was trained on: for them this is no proof",
        places=tuple(f"{row.source} line {row.line}" for row in leaked[:MAX_LINES]),
        example=leaked[0].reference,
        fix="evaluate on rows that were held out",
    )
    return replace(found, leaked_rows=len(leaked), findings=(*found.findings, finding))


def _download(client: MlflowClient, run_id: str, folder: Path, report: Report) -> tuple[np.ndarray, int] | None:
    """None where the run has none: it is of an earlier version."""
    listed = with_patience(lambda: client.list_artifacts(run_id, RECORDS_FOLDER), report)
    if f"{RECORDS_FOLDER}/{_HASHES}" not in {file.path for file in listed}:
        return None
    folder.mkdir(parents=True, exist_ok=True)

    def got(name: str) -> Path:
        path = f"{RECORDS_FOLDER}/{name}"
        return Path(with_patience(lambda: client.download_artifacts(run_id, path, str(folder)), report))

    return np.load(got(_HASHES), allow_pickle=False), int(json.loads(got(_SEED).read_text(encoding="utf-8"))["seed"])
