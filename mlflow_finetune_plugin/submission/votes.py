"""Read the votes that a training's data section names, before its run is created.

A resumed run uses the votes of its first attempt, by their ids: from a job folder of this host, else from the run's artifacts.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from mlflow_finetune_plugin.config.run_config import RunConfig
from mlflow_finetune_plugin.jobs.folder import JobFolder
from mlflow_finetune_plugin.planning.votes import FOLDER, find_votes, voted_models
from mlflow_finetune_plugin.store.names import RECORDS_FOLDER, VOTES_RECORD
from mlflow_finetune_plugin.submission.mlflow_run import Submission, tracking_error
from mlflow_finetune_plugin.votes.training.files import VoteFile, read_vote_files

if TYPE_CHECKING:
    from mlflow import MlflowClient


def bring_votes(config: RunConfig, request: Submission, folder: JobFolder) -> None:
    """Write the votes that the data section names to the job folder; nothing where it names none.

    Raises:
        DataError: There are no such votes, they give nothing to learn from, or those of an earlier attempt are gone.
        TrackingError: MLflow does not answer.
    """
    models = voted_models(config.data)
    if not models:
        return
    earlier = () if request.run_id is None else _of_earlier_attempts(request, models)
    find_votes(config, folder.work, tracking_uri=request.tracking_uri, earlier=earlier)


def _of_earlier_attempts(request: Submission, models: Sequence[str]) -> tuple[VoteFile, ...]:
    """Return the votes of the run's earlier attempts; none where these ended before they had any."""
    for job in JobFolder.all():
        if (job.read("run") or {}).get("run_id") == request.run_id:
            files = read_vote_files(job.work / FOLDER, models)
            if files is not None:
                return files
    from mlflow import MlflowClient

    try:
        return _recorded(MlflowClient(request.tracking_uri), str(request.run_id), models)
    except Exception as error:  # a tracking store can raise anything, and the message goes to the user
        raise tracking_error(request, error) from error


def _recorded(client: MlflowClient, run_id: str, models: Sequence[str]) -> tuple[VoteFile, ...]:
    path = f"{RECORDS_FOLDER}/{VOTES_RECORD}"
    if path not in [artifact.path for artifact in client.list_artifacts(run_id, RECORDS_FOLDER)]:
        return ()
    with TemporaryDirectory(prefix="mlflow-finetune-") as folder:
        values = json.loads(Path(client.download_artifacts(run_id, path, folder)).read_text(encoding="utf-8"))
    files = [VoteFile.from_record(record) for record in values]
    return tuple(file for file in files if file.model in models)
