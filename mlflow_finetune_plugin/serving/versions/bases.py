"""Find the base of a version on this machine, by its digest. Each folder's digest is computed once."""

from __future__ import annotations

import logging
from pathlib import Path

from mlflow_finetune_plugin.base_models.files import local_folder
from mlflow_finetune_plugin.base_models.weights_digest import base_digest
from mlflow_finetune_plugin.errors import BaseModelError, ServingError
from mlflow_finetune_plugin.serving.versions.fetching import FetchedVersion

logger = logging.getLogger(__name__)


class Bases:
    """The bases on this machine. ``moved`` are folders to try first, for bases that moved since training."""

    def __init__(self, moved: tuple[Path, ...] = ()) -> None:
        self._moved = moved
        self._digests: dict[Path, str] = {}

    def find(self, version: FetchedVersion) -> Path:
        """Return the folder of a version's base. It blocks, and may download. Raises ServingError if no folder has it."""
        base = version.base
        other_bases: list[str] = []
        for folder in self._candidates(base):
            digest = self._digest(folder)
            if digest == base["digest"]:
                if other_bases and folder not in self._moved:
                    expected, name = str(base["digest"])[:12], f"{version.model}/{version.number}"
                    logger.warning(
                        "base_model_skipped version=%s expected=%s %s", name, expected, ", ".join(other_bases)
                    )
                return folder
            other_bases.append(f"{folder} ({digest[:12]})")
        raise ServingError(
            f"{version.model}/{version.number}: its base {base['name']} ({str(base['digest'])[:12]}) is not on this machine"
            f"{'; other bases: ' + ', '.join(other_bases) if other_bases else ''}; fix: --base-model FOLDER"
        )

    def _candidates(self, base: dict[str, object]) -> list[Path]:
        folders = [*self._moved, Path(str(base["folder"]))]
        try:
            local = local_folder(str(base["name"]))
        except BaseModelError:  # the name is a folder of the machine that trained the version
            local = None
        if local is not None:
            folders.append(local)
        elif not str(base["name"]).startswith((".", "/", "~")) and not any(path.is_dir() for path in folders):
            folders.append(_from_hub(str(base["name"]), base.get("revision")))
        return [path for path in dict.fromkeys(folders) if (path / "config.json").is_file()]

    def _digest(self, folder: Path) -> str:
        if folder not in self._digests:
            self._digests[folder] = base_digest(folder)
        return self._digests[folder]


def _from_hub(name: str, revision: object) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=str(revision) if revision else None))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ServingError(
            f"base {name} cannot be downloaded: {type(error).__name__}: {error}; fix: --base-model FOLDER"
        ) from error
