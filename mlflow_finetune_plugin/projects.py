"""A project: a local folder, or a git URI with ``#subdir`` and a version, and what its MLproject says.

Stock MLflow checks a version out inside the folder it is given; here a version is always fetched into a folder of the
job, so nobody's checkout moves.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mlflow_finetune_plugin.errors import ProjectError

OWN_COMMAND = ("mlflow-finetune", "run")
_GIT_URI = re.compile(r"^(?:[A-Za-z][A-Za-z0-9+.-]*://|[^/\s]+@[^/\s]+:)")  # https://..., ssh://..., git@host:path


@dataclass(frozen=True)
class ProjectFolder:
    """A project on disk and where it came from."""

    path: Path
    source: str
    commit: str | None
    repository: str | None
    branch: str | None


@dataclass(frozen=True)
class OwnCommand:
    """An MLproject entry point that is somebody's own program."""

    command: str
    parameters: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class FinetuneCommand:
    """An MLproject entry point that calls ``mlflow-finetune run``: its arguments, parameters filled in."""

    arguments: tuple[str, ...]


def open_project(uri: str, version: str | None, fetch_into: Path) -> ProjectFolder:
    """The project folder behind a URI; git projects are fetched into ``fetch_into``. Raises ProjectError."""
    from mlflow.exceptions import ExecutionException, MlflowException
    from mlflow.projects import utils

    location, subfolder = utils._parse_subdirectory(uri)
    local = Path(utils._parse_file_uri(location)).expanduser()
    remote = bool(_GIT_URI.match(location)) and not location.startswith("file://")
    if not remote and not local.exists():
        raise ProjectError(f"project {uri!r}: no such folder; fix: give a project folder or a git URI")
    if not remote and not local.is_dir():
        raise ProjectError(f"project {uri!r}: not a folder; fix: give the folder that holds finetune.yaml")
    if remote or version is not None:
        try:
            fetch_into.mkdir(parents=True, exist_ok=True)
            utils._fetch_git_repo(location if remote else str(local.resolve()), version, str(fetch_into))
        except (ExecutionException, MlflowException) as error:
            raise ProjectError(f"project {uri!r}: {error}") from error
        except Exception as error:  # GitPython's own family, importable only where git is installed
            raise ProjectError(
                f"project {uri!r}: git could not fetch it: {' '.join(str(error).split())[:400]}"
            ) from error
        root = fetch_into
    else:
        root = local.resolve()
    path = root / subfolder if subfolder else root
    if not path.is_dir():
        raise ProjectError(f"project {uri!r}: the repository has no folder {subfolder!r}")
    commit, repository, branch = _git_facts(path, version)
    return ProjectFolder(path, uri if remote else str(path), commit, location if remote else repository, branch)


def _git_facts(path: Path, version: str | None) -> tuple[str | None, str | None, str | None]:
    if not any((parent / ".git").exists() for parent in (path, *path.parents)):
        return None, None, None
    from mlflow.projects import utils
    from mlflow.utils.git_utils import get_git_commit, get_git_repo_url

    branch = version if utils._is_valid_branch_name(str(path), version) else None
    return get_git_commit(str(path)), get_git_repo_url(str(path)), branch


def mlproject_entry(
    folder: Path, entry_point: str, parameters: Mapping[str, str]
) -> OwnCommand | FinetuneCommand | None:
    """What the folder's MLproject says of an entry point; None when it does not define it. Raises ProjectError."""
    from mlflow.exceptions import ExecutionException, MlflowException
    from mlflow.projects import _project_spec

    if _project_spec._find_mlproject(str(folder)) is None:
        return None
    try:
        project = _project_spec.load_project(str(folder))
        entry = (project._entry_points or {}).get(entry_point)
        if entry is None:
            return None
        if not isinstance(entry.command, str):
            raise ProjectError(f"{folder}/MLproject: entry point {entry_point!r} has no command")
        if shlex.split(entry.command)[: len(OWN_COMMAND)] == list(OWN_COMMAND):
            final, extra = _parameters(entry, parameters)
            arguments = shlex.split(entry.command.format(**{k: shlex.quote(v) for k, v in final.items()}))[
                len(OWN_COMMAND) :
            ]
            return FinetuneCommand(
                (*arguments, *(part for key, value in extra.items() for part in ("-P", f"{key}={value}")))
            )
        command = entry.compute_command(dict(parameters), None)
        final, extra = _parameters(entry, parameters)
    except (ExecutionException, MlflowException, KeyError, ValueError) as error:
        raise ProjectError(f"{folder}/MLproject, entry point {entry_point!r}: {error}") from error
    return OwnCommand(command, {**final, **extra})


def _parameters(entry: object, given: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Declared parameters with defaults filled in, and undeclared ones; unquoted, unlike stock MLflow's."""
    entry._validate_parameters(given)  # type: ignore[attr-defined]
    declared = entry.parameters  # type: ignore[attr-defined]
    final = {name: str(given.get(name, parameter.default)) for name, parameter in declared.items()}
    return final, {name: value for name, value in given.items() if name not in declared}


def caller_folder() -> Path:
    """Where relative paths on the command line start."""
    return Path(os.getcwd())
