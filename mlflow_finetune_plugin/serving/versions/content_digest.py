"""The content digest of a version: one SHA-256 of all that shapes its answers.

``finetune.json`` holds stop ids, prompt format and base, the adapter's digest, and under ``files`` the SHA-256 of each other
file (tokenizer, chat template, ``reference.json``). So its own digest covers them all. It is a tag of the version and of the
logged model, which are kept apart from the files, and it is computed again before each use.
"""

from __future__ import annotations

import hashlib
import json
import logging
import stat
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from mlflow_finetune_plugin.errors import ServingError
from mlflow_finetune_plugin.store.names import CARD_FILE, CONTENT_DIGEST_TAG, REFERENCE_FILE

logger = logging.getLogger(__name__)

TOKENIZER_FOLDER = "tokenizer"
ADAPTER_FOLDER = "adapter"
_TOKENIZER_SUFFIXES = (".json", ".jinja", ".model", ".txt")
_MEBIBYTE = 2**20
_MOST_FILES = 200
_LARGEST = {
    CARD_FILE: 4 * _MEBIBYTE,
    REFERENCE_FILE: 64 * _MEBIBYTE,
    f"{ADAPTER_FOLDER}/adapter_config.json": 4 * _MEBIBYTE,
    f"{TOKENIZER_FOLDER}/chat_template.jinja": _MEBIBYTE,
}
_LARGEST_OTHER = 256 * _MEBIBYTE


def content_digest(card: Mapping[str, Any]) -> str:
    """Return the content digest that a version's ``finetune.json`` stands for. Its spacing and order of keys do not matter."""
    return json_digest(card)


def file_digests(reference: Any, tokenizer: Path) -> dict[str, str]:
    """Return the SHA-256 of ``reference.json`` (by its parsed content) and of each file that loading the tokenizer reads."""
    files = {f"{TOKENIZER_FOLDER}/{path.name}": file_sha256(path) for path in tokenizer_files(tokenizer)}
    return {REFERENCE_FILE: json_digest(reference), **files}


def tokenizer_files(folder: Path) -> list[Path]:
    """Return the files of a tokenizer that are read when it is loaded, sorted by name. Python code is never one of them."""
    return sorted(path for path in folder.iterdir() if path.suffix in _TOKENIZER_SUFFIXES)


def json_digest(content: Any) -> str:
    """Return the SHA-256 of a JSON value in canonical form."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()


def check_content(digests: Mapping[str, str], card: Mapping[str, Any], tag: str | None, name: str) -> None:
    """Check a version's files against its content digest.

    Args:
        digests: ``file_digests`` of the files.
        card: The content of its ``finetune.json``.
        tag: The content digest in the registry; None for a version that was registered before there was one.
        name: The version, for messages.

    Raises:
        ServingError: A file is not as it was registered. The message names it.
    """
    if tag is not None and content_digest(card) != tag:
        raise ServingError(
            f"{name}: {CARD_FILE} is not the one that was registered (its digest is {content_digest(card)[:12]}, the tag "
            f"{CONTENT_DIGEST_TAG} says {tag[:12]}); fix: restore the file, or register the version again"
        )
    registered = card.get("files")
    if not isinstance(registered, dict):
        if tag is not None:
            raise ServingError(f"{name}: {CARD_FILE} does not list its files; fix: register the version again")
        return
    for path in sorted({*digests, *registered}):
        if digests.get(path) != registered.get(path):
            fault = "is missing" if path not in digests else "was added" if path not in registered else "was changed"
            raise ServingError(
                f"{name}: {path} {fault} after the version was registered; fix: restore the file, or register the version again"
            )


@lru_cache(maxsize=1000)
def report_missing_digest(name: str) -> None:
    """Warn, once for each version, that only its adapter can be checked."""
    logger.warning(
        "content_digest_missing version=%s: registered by an earlier mlflow-finetune, so a change of its chat template or "
        "stop ids is not noticed; fix: register it again",
        name,
    )


def check_files(artifacts: Path, name: str) -> None:
    """Check that a version's files can be read: regular files of a bounded size, with no link out of its folder.

    Args:
        artifacts: The folder ``artifacts`` of the version. Nothing in it is opened.
        name: The version, for messages.

    Raises:
        ServingError: A file is a link, a device or too large, or there are too many. The message names it.
    """
    if artifacts.is_symlink() or not artifacts.is_dir():
        raise ServingError(
            f"{name}: has no folder {artifacts.name}; fix: name a version that mlflow-finetune registered"
        )
    for number, (path, relative) in enumerate(_entries(artifacts)):
        state = path.lstat()
        is_folder = relative in (ADAPTER_FOLDER, TOKENIZER_FOLDER)
        if not (stat.S_ISDIR(state.st_mode) if is_folder else stat.S_ISREG(state.st_mode)):
            raise ServingError(
                f"{name}: {relative} is not a regular {'folder' if is_folder else 'file'}; fix: register it again"
            )
        largest = _LARGEST.get(relative, _LARGEST_OTHER)
        is_weights = relative.startswith(f"{ADAPTER_FOLDER}/") and path.suffix == ".safetensors"
        if not is_folder and not is_weights and state.st_size > largest:
            raise ServingError(
                f"{name}: {relative} has {state.st_size:,} bytes, {largest:,} are allowed; fix: register it again"
            )
        if number >= _MOST_FILES:
            raise ServingError(f"{name}: has more than {_MOST_FILES} files; fix: register it again")


def _entries(artifacts: Path) -> Iterator[tuple[Path, str]]:
    """Yield the files and folders of a version, with their paths below ``artifacts``. Links are not followed."""
    for path in sorted(artifacts.iterdir()):
        yield path, path.name
        if path.name in (ADAPTER_FOLDER, TOKENIZER_FOLDER) and path.is_dir() and not path.is_symlink():
            yield from ((below, f"{path.name}/{below.name}") for below in sorted(path.iterdir()))


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
