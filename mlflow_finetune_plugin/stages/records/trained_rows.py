"""Hashes of the rows that an adapter was trained on, kept in its run, so that a later evaluation can report such rows."""

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
    """Record the hashes, 8 bytes a row, and the seed that they were made with."""
    np.save(folder / _HASHES, hashes)
    (folder / _SEED).write_text(json.dumps({"seed": seed, "rows": len(hashes)}), encoding="utf-8")
    for name in (_HASHES, _SEED):
        report.artifact(folder / name, RECORDS_FOLDER)


def trained_rows_of(
    client: MlflowClient, model_id: str | None, folder: Path, report: Report
) -> tuple[np.ndarray, int] | None:
    """Return the hashes of the rows that a logged adapter was trained on, and their seed; None where that is not known."""
    run_id = with_patience(lambda: client.get_logged_model(model_id), report).source_run_id if model_id else None
    return _download(client, run_id, folder, report) if run_id else None


def rows_among(rows: Sequence[EvalRow], hashes: np.ndarray, seed: int) -> list[EvalRow]:
    """Return the held-out rows that are among the rows with these hashes."""
    return [row for row in rows if np.isin(np.uint64(hash_eval_row(row, seed)), hashes)]


def report_trained_rows(
    data_report: DataReport,
    rows: Sequence[EvalRow],
    client: MlflowClient,
    model_id: str | None,
    folder: Path,
    report: Report,
) -> DataReport:
    """Return the data report with a finding about rows that were trained on, or with a note where that is not known."""
    known = trained_rows_of(client, model_id, folder, report)
    if known is None:
        return replace(
            data_report,
            notes=(
                *data_report.notes,
                "whether the adapter was trained on these rows is not known: its run has no record of its rows",
            ),
        )
    hashes, seed = known
    leaked = rows_among(rows, hashes, seed)
    if not leaked:
        return data_report
    finding = DataFinding(
        check=LEAKED_ROWS,
        count=len(leaked),
        text=f"of {len(rows):,} rows are rows that the adapter was trained on; for them this evaluation proves nothing",
        places=tuple(f"{row.source} line {row.line}" for row in leaked[:MAX_LINES]),
        example=leaked[0].reference,
        fix="evaluate on rows that were held out",
    )
    return replace(data_report, leaked_rows=len(leaked), findings=(*data_report.findings, finding))


def _download(client: MlflowClient, run_id: str, folder: Path, report: Report) -> tuple[np.ndarray, int] | None:
    """Return the hashes and their seed; None for a run of an earlier version, which has none."""
    listed = with_patience(lambda: client.list_artifacts(run_id, RECORDS_FOLDER), report)
    if f"{RECORDS_FOLDER}/{_HASHES}" not in {file.path for file in listed}:
        return None
    folder.mkdir(parents=True, exist_ok=True)

    def download(name: str) -> Path:
        path = f"{RECORDS_FOLDER}/{name}"
        return Path(with_patience(lambda: client.download_artifacts(run_id, path, str(folder)), report))

    return np.load(download(_HASHES), allow_pickle=False), int(
        json.loads(download(_SEED).read_text(encoding="utf-8"))["seed"]
    )
