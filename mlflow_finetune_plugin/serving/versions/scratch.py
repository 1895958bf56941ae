"""Scratch folders under a store, one per process. The next process removes the folders of dead ones."""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
import shutil
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from mlflow_finetune_plugin.errors import StoreError

logger = logging.getLogger(__name__)

_TRIES = 20


@dataclass
class ScratchFolder:
    """The folder of this process under the store's ``work``. It is created when it is first used.

    A lock on the folder's lock file shows that the process lives; the kernel releases it however the process ends. Process
    ids would not do: they are used again, and mean nothing on another host that shares the disk.
    """

    store: Path
    _folder: Path | None = None
    _lock: int | None = field(default=None, repr=False)
    _is_over: bool = field(default=False, repr=False)

    @property
    def folder(self) -> Path:
        """The folder. Raises StoreError if it cannot be created."""
        if self._is_over:  # a fetch whose thread ends after its service
            raise StoreError(f"the process that uses the adapter store {self.store} is ending")
        if self._folder is None:
            root = self.store / "work"
            try:
                root.mkdir(parents=True, exist_ok=True)
                sweep(root)
                new_folder = root / f"{os.getpid()}-{secrets.token_hex(4)}"
                self._lock = os.open(_lock_of(new_folder), os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                fcntl.flock(self._lock, fcntl.LOCK_SH)  # before the folder exists, so that no process removes it
                new_folder.mkdir(0o700)
            except OSError as error:
                raise StoreError(f"the adapter store {self.store} cannot be written: {error.strerror}") from error
            self._folder = new_folder
        return self._folder

    def draft(self) -> Path:
        """Create an empty folder for content that is moved to its final path when it is whole."""
        folder = self.folder
        try:
            return Path(tempfile.mkdtemp(prefix="draft-", dir=folder))
        except OSError as error:
            raise StoreError(f"the adapter store {self.store} cannot be written: {error.strerror}") from error

    def remove(self) -> None:
        """Remove the folder, at the end of the process. It is not made again."""
        self._is_over = True
        if self._folder is not None and self._lock is not None:
            _remove(self._folder)
            os.close(self._lock)
            self._folder = self._lock = None


def sweep(root: Path) -> None:
    """Remove the folders of dead processes."""
    for folder in root.iterdir():
        if not folder.is_dir():
            continue
        try:
            lock = os.open(_lock_of(folder), os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            continue  # another process has just removed it
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        else:
            logger.info("swept folder=%s", folder)
            _remove(folder)
        finally:
            os.close(lock)


def _lock_of(folder: Path) -> Path:
    return folder.with_suffix(".lock")


def _remove(folder: Path) -> None:
    """Remove a folder, with retries, because a cancelled fetch may still write into it for a moment."""
    for _ in range(_TRIES):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            _lock_of(folder).unlink(missing_ok=True)
            return
        time.sleep(0.1)
