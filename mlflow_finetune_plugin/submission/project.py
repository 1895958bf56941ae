"""Open a project: a local folder, or a git URI with ``#subdir`` and a version.

MLflow checks a version out inside the given folder. Here a version is always fetched into a folder of the job, so the
user's checkout does not change.
"""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit, urlunsplit

from mlflow_finetune_plugin.errors import ProjectError

if TYPE_CHECKING:
    import git

_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://")
_SSH_SHORTHAND = re.compile(r"^[^/\s]+@[^/\s]+:")  # git@host:path
_GIT_SCHEMES = ("http", "https", "ssh", "git", "git+ssh")


@dataclass(frozen=True)
class ProjectFolder:
    """A project on disk and its origin. Fetched projects know their commit; ``with_lineage`` reads it for local ones."""

    path: Path
    source: str
    commit: str | None = None
    repository: str | None = None
    branch: str | None = None

    def with_lineage(self) -> ProjectFolder:
        """Return the same folder with its commit and repository, if it is in one. Importing git takes 0.1 s, so this is
        called last.
        """
        if self.commit or not any((parent / ".git").exists() for parent in (self.path, *self.path.parents)):
            return self
        from mlflow.utils.git_utils import get_git_commit, get_git_repo_url

        return replace(self, commit=get_git_commit(str(self.path)), repository=get_git_repo_url(str(self.path)))


def open_project(uri: str, version: str | None, fetch_into: Path) -> ProjectFolder:
    """Return the project folder behind a URI. Git projects are fetched into ``fetch_into``. Raises ProjectError."""
    location, subfolder = _split(uri)
    if _is_remote(location):
        return _remote_project(location, subfolder, version, fetch_into)
    local = Path(os.path.expanduser(_without_file_scheme(location)))
    if not os.path.exists(local):
        raise ProjectError(
            f"project {_shown(uri)}: no such folder{_nearest(local)}; fix: give a project folder or a git URI"
        )
    if not local.is_dir():
        hint = "unpack it and give" if local.suffix == ".zip" else "give"
        raise ProjectError(f"project {_shown(uri)}: not a folder; fix: {hint} the folder that holds finetune.yaml")
    if version is None and not _is_bare_repository(local):
        return _folder_project(local.resolve(), subfolder, uri)
    return _version_of_local(local.resolve(), subfolder, version, fetch_into, uri)


def _split(uri: str) -> tuple[str, str]:
    """Return location and subfolder of ``LOCATION#SUBFOLDER``. A folder with a # in its name is a location."""
    if os.path.isdir(uri):
        return uri, ""
    location, _, subfolder = uri.strip("'\"").partition("#")
    if Path(subfolder).is_absolute() or ".." in Path(subfolder).parts:
        raise ProjectError(f"project {_shown(uri)}: #{subfolder} leaves the project; fix: name a folder inside it")
    return location, subfolder


def _is_remote(location: str) -> bool:
    scheme = _SCHEME.match(location)
    if scheme is None:
        return bool(_SSH_SHORTHAND.match(location)) and not os.path.exists(location)
    if scheme[1] == "file":
        return False
    if scheme[1] not in _GIT_SCHEMES or location.endswith(".zip"):
        raise ProjectError(
            f"project {_shown(location)}: neither a folder nor a git URI ({', '.join(_GIT_SCHEMES)}); fix: clone or download it, and give the folder"
        )
    return True


def _without_file_scheme(location: str) -> str:
    return unquote(urlsplit(location).path) if location.startswith("file://") else location


def _folder_project(root: Path, subfolder: str, uri: str) -> ProjectFolder:
    path = _subfolder(root, subfolder, uri)
    return ProjectFolder(path, str(path))


def _version_of_local(local: Path, subfolder: str, version: str | None, fetch_into: Path, uri: str) -> ProjectFolder:
    """Return a commit of a repository on this disk, cloned elsewhere, so that the caller's checkout does not change."""
    from mlflow.utils.git_utils import get_git_repo_url

    git = _git()
    try:
        repository = git.Repo(local, search_parent_directories=True)
    except git.exc.InvalidGitRepositoryError:
        raise ProjectError(
            f"project {_shown(uri)}: --version {version} given, but the folder is in no git repository; fix: leave --version out"
        ) from None
    top = Path(repository.working_tree_dir or repository.git_dir).resolve()
    commit = _resolved(repository, version, uri)
    try:
        clone = git.Repo.clone_from(str(top), str(fetch_into), no_checkout=True)
        clone.git.checkout("--detach", commit)
        clone.git.submodule("update", "--init", "--recursive")
    except git.exc.GitError as error:
        raise ProjectError(f"project {_shown(uri)}: git could not fetch {version}: {_git_says(error)}") from error
    inside = local.relative_to(top) if local.is_relative_to(top) else Path()
    return ProjectFolder(
        path=_subfolder(fetch_into, str(inside / subfolder), uri),
        source=str(local / subfolder),
        commit=commit,
        repository=get_git_repo_url(str(top)) or str(top),
        branch=version if version in [head.name for head in repository.heads] else None,
    )


def _resolved(repository: git.Repo, version: str | None, uri: str) -> str:
    git = _git()
    for name in (version, f"origin/{version}") if version else ("HEAD",):
        try:
            return str(repository.git.rev_parse("--verify", "--end-of-options", f"{name}^{{commit}}"))
        except git.exc.GitCommandError:
            continue
    known = [reference.name for reference in repository.references]
    near = difflib.get_close_matches(str(version), known, n=1)
    hint = f"; did you mean {near[0]}?" if near else f"; branches and tags: {', '.join(known[:8]) or 'none'}"
    raise ProjectError(f"project {_shown(uri)}: no commit, tag or branch {version!r}{hint}")


def _remote_project(location: str, subfolder: str, version: str | None, fetch_into: Path) -> ProjectFolder:
    from mlflow.exceptions import ExecutionException

    from mlflow_finetune_plugin.internals.mlflow import fetch_git_project

    git, public = _git(), _without_user(location)
    fetch_into.mkdir(parents=True, exist_ok=True)
    try:
        fetch_git_project(location, version, fetch_into)
    except (ExecutionException, git.exc.GitError) as error:
        reason = _git_says(error).replace(location, public)
        raise ProjectError(f"project {_shown(public)}: git could not fetch it: {reason}") from None
    clone = git.Repo(fetch_into)
    return ProjectFolder(
        path=_subfolder(fetch_into, subfolder, public),
        source=f"{public}#{subfolder}" if subfolder else public,
        commit=clone.head.commit.hexsha,
        repository=public,
        branch=version if version in [head.name for head in clone.heads] else None,
    )


def _git() -> Any:
    """Import GitPython, which fails if the git program is missing."""
    try:
        import git
    except ImportError as error:
        raise ProjectError("a git project needs the program git; fix: install git") from error
    return git


def _git_says(error: Exception) -> str:
    """Return git's stderr in one line."""
    text = " ".join(str(error).split())
    return text.rpartition("stderr:")[2].strip(" '")[:400] or text[:400]


def _subfolder(root: Path, subfolder: str, uri: str) -> Path:
    path = root / subfolder
    if not path.is_dir():
        raise ProjectError(f"project {_shown(uri)}: it has no folder {subfolder!r}{_nearest(path)}")
    return path


def _is_bare_repository(folder: Path) -> bool:
    return (folder / "HEAD").is_file() and (folder / "objects").is_dir() and (folder / "refs").is_dir()


def _nearest(path: Path) -> str:
    folders = [p.name for p in path.parent.iterdir() if p.is_dir()] if os.path.isdir(path.parent) else []
    near = difflib.get_close_matches(path.name, folders, n=1)
    return f"; did you mean {path.parent / near[0]}?" if near else ""


def _without_user(uri: str) -> str:
    """Return a git URI without a user and password in it; git@host:path stays."""
    parts = urlsplit(uri)
    if not parts.scheme or "@" not in parts.netloc or parts.scheme.endswith("ssh"):
        return uri
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _shown(uri: str) -> str:
    uri = _without_user(uri)
    return repr(uri if len(uri) <= 300 else f"{uri[:300]}...")


def caller_folder() -> Path:
    """Return the folder in which relative paths on the command line start."""
    return Path(os.getcwd())
