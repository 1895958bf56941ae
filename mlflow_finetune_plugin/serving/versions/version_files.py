"""Read the files of a registered version. They may be of any origin, so all of them have bounds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mlflow_finetune_plugin.errors import ServingError, TrackingError, in_short

_ARTIFACTS = "artifacts"


def fetch_files(uri: str, folder: Path, name: str) -> Path:
    """Return the folder with a version's files: the artifact store's own, if it is on this machine, else a copy.

    Args:
        uri: The version, ``models:/NAME/NUMBER``.
        folder: Where a copy is written.
        name: The version, for messages.

    Raises:
        TrackingError: The artifact store cannot be reached.
    """
    import mlflow

    try:
        local = _local_folder(uri)
        if local is not None and local.is_dir():  # not copied, because a copy would read what links in it lead to
            return local / _ARTIFACTS
        return Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(folder))) / _ARTIFACTS
    except Exception as error:  # each artifact store raises different errors
        if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
            raise
        raise TrackingError(f"the artifacts of {name} cannot be downloaded: {in_short(error)}") from error


def _local_folder(uri: str) -> Path | None:
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

    repository = get_artifact_repository(uri)
    while hasattr(repository, "repo"):  # those of versions, logged models and runs wrap the one of the files
        repository = repository.repo
    return Path(repository.artifact_dir) if isinstance(repository, LocalArtifactRepository) else None


def read_json(path: Path, name: str) -> dict[str, Any]:
    """Return the JSON object in a file. Raises ServingError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ServingError(
            f"{name}: has no {path.name}, so mlflow-finetune did not register it; fix: name a version that one of its runs "
            "registered"
        ) from error
    except (ValueError, OSError, RecursionError) as error:  # nested too deeply
        raise ServingError(f"{name}: {path.name} cannot be read: {error}; fix: register it again") from error
    if not isinstance(content, dict):
        raise ServingError(f"{name}: {path.name} is not a JSON object; fix: register it again")
    return content
