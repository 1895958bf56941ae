"""Parse where data is: in local files, in Hugging Face data sets, or in artifacts of MLflow runs and models.

``hf:NAME[@REVISION][:CONFIG]:SPLIT`` means ``datasets.load_dataset(NAME, CONFIG, split=SPLIT, revision=REVISION)`` with the
split ``train`` by default. ``runs:/RUN_ID/PATH`` and ``models:/NAME/VERSION/PATH`` (also ``models:/NAME@ALIAS/PATH``) are
MLflow URIs. This module imports MLflow only to fetch an artifact.

``votes:NAME`` means the votes on answers of the registered model NAME. Trainings read them before their data is prepared
(``planning/votes.py``), because this room knows no votes.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from mlflow_finetune_plugin.errors import DataError, one_line, without_secrets

HUB = "hf:"
ARTIFACTS = ("runs:/", "models:/")
VOTES = "votes:"
_HUB_FORM = re.compile(
    r"hf:(?P<name>[\w.-]+(?:/[\w.-]+)?)(?:@(?P<revision>[^:]+))?(?::(?P<config>[^:\[\]]+))??(?::(?P<split>[^:\[\]]+(?:\[[^\]]*\])?))?"
)
_ARTIFACT_FORM = re.compile(r"runs:/[0-9a-zA-Z_.-]+/.+|models:/(?:[^/@]+/[^/]+|[^/@]+@[^/]+|m-[0-9a-f]+)/.+")


@dataclass(frozen=True)
class HubDataset:
    """One split of a data set on the Hugging Face Hub."""

    name: str
    config: str | None
    split: str
    revision: str | None


def is_remote(path: str) -> bool:
    """Return whether ``path`` names a data set of the hub, an MLflow artifact or votes, not a local file."""
    return path.startswith((HUB, *ARTIFACTS, VOTES))


def check_location(path: str) -> None:
    """Raise DataError for a hub name, an MLflow URI or a source of votes that is not well formed."""
    if path.startswith(HUB):
        hub_dataset(path)
    elif path.startswith(VOTES):
        voted_model(path)
    elif path.startswith(ARTIFACTS) and not _ARTIFACT_FORM.fullmatch(path):
        raise DataError(f"{path}: not a valid artifact URI; fix: use runs:/RUN_ID/PATH or models:/NAME/VERSION/PATH")


def voted_model(path: str) -> str:
    """Return the registered model of ``votes:NAME``. Raises DataError where it names a version, or none."""
    name = path.removeprefix(VOTES)
    if not name.strip() or any(sign in name for sign in "/:"):
        raise DataError(
            f"{path}: not the votes of a registered model; fix: use votes:NAME with the name of the model, without a version"
        )
    return name


def hub_dataset(path: str) -> HubDataset:
    match = _HUB_FORM.fullmatch(path)
    if match is None or path.endswith((":", "@")):
        raise DataError(
            f"{path}: not a valid data set name; fix: use hf:NAME:SPLIT or hf:NAME:CONFIG:SPLIT, for example hf:openai/gsm8k:main:train"
        )
    return HubDataset(match["name"], match["config"], match["split"] or "train", match["revision"])


def local_copy(path: str, folder: Path) -> Path:
    """Return where to read ``path``: the path itself, or a copy of the MLflow artifact in ``folder``.

    Raises:
        DataError: the artifact cannot be fetched from the tracking server of this process, or ``path`` is ``votes:NAME``.
    """
    if path.startswith(VOTES):
        raise DataError(
            f"{path}: votes are read for data.train and data.eval of a training only; fix: export them to a file, "
            f"`mlflow-finetune votes {path.removeprefix(VOTES)} --export FILE.jsonl`"
        )
    if not path.startswith(ARTIFACTS):
        return Path(path)
    import mlflow
    from mlflow.exceptions import MlflowException

    check_location(path)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        copy = Path(mlflow.artifacts.download_artifacts(artifact_uri=path, dst_path=str(folder)))
    except (MlflowException, OSError, ValueError) as error:
        raise DataError(
            f"{path}: cannot fetch the artifact from {without_secrets(mlflow.get_tracking_uri())}: {one_line(error)}; "
            "fix: check the run or version and the path of the artifact"
        ) from error
    if not os.path.lexists(copy):
        raise DataError(f"{path}: the artifact does not exist; fix: check its path in the MLflow UI")
    return copy


def report_name(path: str) -> str:
    """Return the name for reports. Absolute paths lose their folders, because reports are shared and home folders are private."""
    return Path(path).name if Path(path).is_absolute() else path
