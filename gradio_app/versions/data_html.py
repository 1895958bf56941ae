"""The data report of a version's training run, as a fragment for the page: counts, lengths, checks, what carries loss."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gradio_app.versions.cards import find_version
from mlflow_finetune_plugin.data.report.contents import DataReport
from mlflow_finetune_plugin.data.report.page import DARK, LIGHT, REPORT_STYLE, report_fragment
from mlflow_finetune_plugin.errors import DataError, TrackingError, in_short
from mlflow_finetune_plugin.store.registered_model import registry_faults

if TYPE_CHECKING:
    from mlflow import MlflowClient

ARTIFACT = "finetune/data_report.json"
LONGEST_BYTES = 4 * 2**20

REPORT_CSS = f".mf-data {{ {LIGHT} }}\n.dark .mf-data {{ {DARK} }}\n{REPORT_STYLE}"
"""The report's colours and rules. The page's style sheet replaces ink, panels and lines by the theme's."""


@dataclass(frozen=True)
class TrainingData:
    """What a version was trained on, as its run reported it."""

    model: str
    number: str
    run_id: str
    report: DataReport

    def to_html(self) -> str:
        """Every text of the data is escaped; needs ``REPORT_CSS`` in the page."""
        return report_fragment(self.report)


def read_training_data(client: MlflowClient, model: str, number: str) -> TrainingData:
    """Raises MoveError for a version that there is not, DataError where its run left no report that can be shown, TrackingError."""
    with registry_faults(model):
        version = find_version(client, model, number)
    if not version.run_id:
        raise DataError(f"{model} version {number}: no run is known that trained it; fix: register it from its run")
    return TrainingData(model, number, str(version.run_id), DataReport.from_json(_text(client, str(version.run_id))))


def _text(client: MlflowClient, run_id: str) -> str:
    """Of the artifact, whose size is looked at before and after it is fetched: not every store tells it."""
    from mlflow.exceptions import MlflowException

    try:
        files = {file.path: file for file in client.list_artifacts(run_id, Path(ARTIFACT).parent.as_posix())}
        if ARTIFACT not in files:
            raise DataError(
                f"run {run_id} holds no {ARTIFACT}: it was not made by mlflow-finetune, or was ended before its data was "
                "read; fix: train it again"
            )
        _check_size(files[ARTIFACT].file_size or 0, run_id)
        with tempfile.TemporaryDirectory() as scratch:
            fetched = Path(client.download_artifacts(run_id, ARTIFACT, scratch))
            _check_size(fetched.stat().st_size, run_id)
            return fetched.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"run {run_id}: its {ARTIFACT} is not UTF-8; fix: train it again") from error
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            raise DataError(
                f"the run {run_id} that trained it is gone; fix: none, its data is not known here"
            ) from error
        raise TrackingError(
            f"the data report of run {run_id}: {in_short(error)}; fix: try again when MLflow answers"
        ) from error
    except OSError as error:
        raise TrackingError(
            f"the data report of run {run_id}: {in_short(error)}; fix: see where its artifacts lie"
        ) from error


def _check_size(size_bytes: int, run_id: str) -> None:
    if size_bytes > LONGEST_BYTES:
        raise DataError(
            f"run {run_id}: its {ARTIFACT} has {size_bytes:,} bytes, more than the {LONGEST_BYTES:,} that are shown here; fix: "
            f"open it in MLflow, or its finetune/data_report.html"
        )
