"""What a run records of its data: the report, the dataset inputs, and config sections as flat params."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlflow_finetune_plugin.config.sections import DataFileSettings
from mlflow_finetune_plugin.data.preparation import PreparedData
from mlflow_finetune_plugin.data.report.contents import DataReport
from mlflow_finetune_plugin.data.report.page import report_page
from mlflow_finetune_plugin.jobs.report import Report
from mlflow_finetune_plugin.store.names import RECORDS_FOLDER, VOTES_RECORD
from mlflow_finetune_plugin.votes.training.files import VoteFile

_MOST_FILES = 50
"""Files that a dataset input names; the data report lists all of them."""


def record_data(data_report: DataReport, folder: Path, report: Report) -> None:
    """Record the data report as JSON and as a page, also of data that cannot be trained on."""
    text = json.dumps(data_report.to_json(), indent=1, ensure_ascii=False)
    report.text(folder / "data_report.json", text, RECORDS_FOLDER)
    report.text(folder / "data_report.html", report_page(data_report), RECORDS_FOLDER)


def record_votes(votes: Sequence[VoteFile], folder: Path, report: Report) -> None:
    """Record ids and digests of the votes that a run trains on, from which a resumed run reads the same rows."""
    if votes:
        text = json.dumps([file.record() for file in votes], indent=1, ensure_ascii=False)
        report.text(folder / VOTES_RECORD, text, RECORDS_FOLDER)


def dataset_source(
    files: Sequence[DataFileSettings], data: PreparedData, votes: Sequence[VoteFile] = ()
) -> dict[str, str]:
    """Return source and profile of a dataset input, as MLflow stores them: JSON. ``votes`` are those that files may name."""
    source: dict[str, Any] = {"files": [file.path for file in files[:_MOST_FILES]]}
    paths = {file.path for file in files}
    if voted := [file.lineage() for file in votes if file.source in paths]:
        source["votes"] = voted
    if len(files) > _MOST_FILES:
        source["more_files"] = len(files) - _MOST_FILES  # MLflow stores at most 65,535 characters
    return {
        "source": json.dumps(source),
        "profile": json.dumps({"train_rows": len(data.train), "eval_rows": len(data.eval_rows)}),
    }


def flat_params(value: Any, prefix: str = "") -> dict[str, Any]:
    """Return nested sections as dotted keys, lists as JSON; keys without a value are left out."""
    if isinstance(value, dict):
        return {
            key: item
            for name, part in value.items()
            for key, item in flat_params(part, f"{prefix}.{name}" if prefix else str(name)).items()
        }
    if value is None:
        return {}
    return {prefix: json.dumps(value, ensure_ascii=False) if isinstance(value, list) else value}
