"""Render the data report of a version's training run as a fragment of the page."""

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
    """The training data of a version, as its run reported it."""

    model: str
    number: str
    run_id: str
    report: DataReport

    def to_html(self) -> str:
        """Return the fragment, with every text of the data escaped. The page needs ``REPORT_CSS``."""
        return report_fragment(self.report)


def read_training_data(client: MlflowClient, model: str, number: str) -> TrainingData:
    """Return the data report of a version.

    Raises:
        MoveError: the version does not exist.
        DataError: its run has no report that can be displayed.
        TrackingError: MLflow cannot be read.
    """
    with registry_faults(model):
        version = find_version(client, model, number)
    if not version.run_id:
        raise DataError(f"{model} version {number}: the run that trained it is unknown; fix: register it from its run")
    return TrainingData(model, number, str(version.run_id), DataReport.from_json(_text(client, str(version.run_id))))


def _text(client: MlflowClient, run_id: str) -> str:
    """Return the artifact's text. Its size is checked before and after the download: not every store reports sizes."""
    from mlflow.exceptions import MlflowException

    try:
        files = {file.path: file for file in client.list_artifacts(run_id, Path(ARTIFACT).parent.as_posix())}
        if ARTIFACT not in files:
            raise DataError(
                f"run {run_id} holds no {ARTIFACT}: another program made it, or it ended before its data was "
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
            raise DataError(f"the run {run_id} that trained it was deleted; fix: restore the run") from error
        raise TrackingError(
            f"the data report of run {run_id}: {in_short(error)}; fix: try again when MLflow answers"
        ) from error
    except OSError as error:
        raise TrackingError(
            f"the data report of run {run_id}: {in_short(error)}; fix: check the run's artifact location"
        ) from error


def _check_size(size_bytes: int, run_id: str) -> None:
    if size_bytes > LONGEST_BYTES:
        raise DataError(
            f"run {run_id}: its {ARTIFACT} has {size_bytes:,} bytes, more than the {LONGEST_BYTES:,} that this page displays; fix: "
            f"open it in MLflow, or its finetune/data_report.html"
        )
