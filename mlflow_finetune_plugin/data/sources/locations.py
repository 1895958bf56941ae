"""Where data can lie: files of this machine, data sets of the hub, artifacts of MLflow runs and models.

``hf:NAME[@REVISION][:CONFIG]:SPLIT`` is ``datasets.load_dataset(NAME, CONFIG, split=SPLIT, revision=REVISION)``, the split
``train`` where none is named; ``runs:/RUN_ID/PATH`` and ``models:/NAME/VERSION/PATH`` (also ``models:/NAME@ALIAS/PATH``) are
MLflow's own. MLflow is imported when an artifact is fetched.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from mlflow_finetune_plugin.errors import DataError, one_line

HUB = "hf:"
ARTIFACTS = ("runs:/", "models:/")
_HUB_FORM = re.compile(
    r"hf:(?P<name>[\w.-]+(?:/[\w.-]+)?)(?:@(?P<revision>[^:]+))?(?::(?P<config>[^:\[\]]+))??(?::(?P<split>[^:\[\]]+(?:\[[^\]]*\])?))?"
)
_ARTIFACT_FORM = re.compile(r"runs:/[0-9a-zA-Z_.-]+/.+|models:/(?:[^/@]+/[^/]+|[^/@]+@[^/]+|m-[0-9a-f]+)/.+")


@dataclass(frozen=True)
class HubDataset:
    """One split of one data set of the hub."""

    name: str
    config: str | None
    split: str
    revision: str | None


def is_remote(path: str) -> bool:
    """Whether this names something other than a file of this machine."""
    return path.startswith((HUB, *ARTIFACTS))


def check_location(path: str) -> None:
    """Raises DataError for a name of the hub or of MLflow that is not well formed."""
    if path.startswith(HUB):
        hub_dataset(path)
    elif path.startswith(ARTIFACTS) and not _ARTIFACT_FORM.fullmatch(path):
        raise DataError(f"{path}: names no artifact; fix: runs:/RUN_ID/PATH or models:/NAME/VERSION/PATH")


def hub_dataset(path: str) -> HubDataset:
    match = _HUB_FORM.fullmatch(path)
    if match is None or path.endswith((":", "@")):
        raise DataError(
            f"{path}: names no data set of the hub; fix: hf:NAME:SPLIT or hf:NAME:CONFIG:SPLIT, for example hf:openai/gsm8k:main:train"
        )
    return HubDataset(match["name"], match["config"], match["split"] or "train", match["revision"])


def local_copy(path: str, folder: Path) -> Path:
    """Where to read ``path``: itself, or the artifact's copy under ``folder``. Uses MLflow's tracking URI of this process."""
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
            f"{path}: cannot be fetched from {_without_password(mlflow.get_tracking_uri())}: {one_line(error)}; "
            "fix: check the run or version and the path of the artifact"
        ) from error
    if not os.path.lexists(copy):
        raise DataError(f"{path}: no such artifact; fix: check its path in the MLflow UI")
    return copy


def report_name(path: str) -> str:
    """The name to use in reports: as it was given, or only the name of an absolute path: reports are shared, home folders are not."""
    return Path(path).name if Path(path).is_absolute() else path


def _without_password(uri: str) -> str:
    return re.sub(r"//[^/@]*@", "//", uri)
