"""Store the tokenizers of versions on this disk, each under the digest of all its bytes.

Two tokenizers that differ in any file have different folders, so no version can replace what another one is served with.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
from pathlib import Path

from mlflow_finetune_plugin.errors import ServingError
from mlflow_finetune_plugin.serving.versions.content_digest import file_sha256, json_digest, tokenizer_files
from mlflow_finetune_plugin.serving.versions.scratch import ScratchFolder
from mlflow_finetune_plugin.serving.versions.version_files import read_json

logger = logging.getLogger(__name__)

_SETTINGS, _TEMPLATE, _TOKENS = "tokenizer_config.json", "chat_template.jinja", "tokenizer.json"
_DIGEST = re.compile(r"[0-9a-f]{64}")
_NOT_FOR_CHATS = (
    "is_local",
    "local_files_only",
    "max_length",
    "model_max_length",
    "name_or_path",
    "pad_to_multiple_of",
    "padding_side",
    "stride",
    "tokenizer_file",
    "truncation_side",
    "truncation_strategy",
)
"""Settings of a tokenizer that change no token id of a conversation, and may differ from one training to the next."""


class TokenizerStore:
    """A folder of tokenizers. ``scratch`` is where copies are prepared."""

    def __init__(self, root: Path, scratch: ScratchFolder) -> None:
        self._root, self._scratch = root, scratch

    def folder(self, digest: str) -> Path:
        """Return the folder of a tokenizer, which may not exist. Raises ValueError if ``digest`` is not one."""
        if _DIGEST.fullmatch(digest) is None:
            raise ValueError(f"tokenizer digest {digest[:80]!r} is not 64 hexadecimal digits")
        return self._root / digest

    def get(self, digest: str) -> Path | None:
        """Return the folder of a stored tokenizer, verified; None if it is not stored or was changed since."""
        folder = self.folder(digest)
        if not folder.is_dir():
            return None
        if folder_fault(folder) is not None:
            logger.warning("tokenizer %s in the store was changed; it is fetched again", digest)
            return None
        return folder

    def add(self, source: Path, name: str) -> Path:
        """Copy a version's tokenizer into the store, whole or not at all, and return its folder.

        Raises:
            ServingError: It is incomplete.
        """
        draft = self._scratch.draft()
        try:
            for path in tokenizer_files(source) if source.is_dir() else ():
                shutil.copyfile(path, draft / path.name)
            check_tokenizer(draft, name)
            target = self.folder(tokenizer_digest(draft))
            if self.get(target.name) is None:
                target.parent.mkdir(parents=True, exist_ok=True)
                self._replace(draft, target)
            return target
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def _replace(self, draft: Path, target: Path) -> None:
        """Put a whole copy at its place. Engines have read the files that were there, and read new ones at their next start."""
        if target.exists():
            target.rename(self._scratch.draft() / "changed")
        try:
            draft.rename(target)
        except OSError:
            if self.get(target.name) is None:  # else another process was quicker
                raise


def folder_fault(folder: Path) -> str | None:
    """Return how a stored tokenizer differs from the digest that its folder is named by; None if it does not."""
    try:
        digest = tokenizer_digest(folder)
    except OSError as error:
        return f"the tokenizer {folder} cannot be read: {error.strerror or error}"
    return None if digest == folder.name else f"the tokenizer {folder} was changed after it was verified"


def check_tokenizer(folder: Path, name: str) -> None:
    """Raise ServingError if a version's tokenizer cannot render and encode conversations."""
    settings = read_json(folder / _SETTINGS, name)
    if not ((folder / _TEMPLATE).is_file() or settings.get("chat_template")) or not (folder / _TOKENS).is_file():
        raise ServingError(f"{name}: its tokenizer is incomplete; fix: register it again")


def chat_digest(folder: Path, name: str) -> str:
    """Return the digest of all that decides which token ids a conversation becomes. Tokenizers that share it share engines."""
    settings = read_json(folder / _SETTINGS, name)
    for_chats = {key: value for key, value in settings.items() if key not in _NOT_FOR_CHATS}
    total = hashlib.sha256(json.dumps(for_chats, sort_keys=True).encode())
    for path in sorted(folder.iterdir()):
        if path.name != _SETTINGS:
            total.update(b"\0" + path.name.encode() + b"\0" + file_sha256(path).encode())
    return total.hexdigest()


def tokenizer_digest(folder: Path) -> str:
    """Return one SHA-256 over names and bytes of all files of a tokenizer. Raises OSError for anything but files."""
    return json_digest({path.name: file_sha256(path) for path in folder.iterdir()})
