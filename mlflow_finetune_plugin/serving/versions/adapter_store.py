"""Store adapters on this disk, each under the digest of its contents. Nothing is ever overwritten.

``ROOT/adapters/DIGEST/`` holds an adapter's two files. A process locks ``ROOT/locks/DIGEST`` while it serves the adapter, so
that several routers can share a store and none evicts what another one serves. The kernel releases the locks of a process
however it ends.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from safetensors import SafetensorError, safe_open

from mlflow_finetune_plugin.base_models.weights_digest import folder_digest
from mlflow_finetune_plugin.durable_files import sync
from mlflow_finetune_plugin.errors import StoreError

logger = logging.getLogger(__name__)

FILES = frozenset(("adapter_config.json", "adapter_model.safetensors"))
_DIGEST = re.compile(r"[0-9a-f]{64}")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class HeldAdapter:
    """An adapter that stays in the store until it is released. It is a context manager."""

    def __init__(self, digest: str, folder: Path, lock: int) -> None:
        self.digest, self.folder = digest, folder
        self._lock: int | None = lock

    def release(self) -> None:
        """Allow other processes to evict the adapter. It may be called again."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


@dataclass(frozen=True)
class AdapterStore:
    """A folder of adapters. ``max_bytes`` limits all of them together; None means no limit."""

    root: Path
    max_bytes: int | None = None

    def hold(self, digest: str) -> HeldAdapter | None:
        """Verify an adapter against its digest and hold it. Returns None if it is not stored, or was damaged and is removed."""
        held = self._open(digest)
        if held is None and self._folder(digest).is_dir():
            with self._alone():
                held = self._open(digest)
                if held is None:
                    self._drop(digest)
        return held

    def add(self, source: Path, digest: str) -> HeldAdapter:
        """Copy an adapter's files into the store and hold it.

        Raises:
            StoreError: ``source`` is not the adapter with this digest, or there is no room for it.
        """
        if (here := self.hold(digest)) is not None:
            return here
        fault = _fault(source, digest)
        if fault is not None:
            raise StoreError(f"adapter {digest}: {fault}; nothing was stored; fix: train or register it again")
        with self._alone():
            if (here := self._open(digest)) is not None:  # another process was quicker
                return here
            self._drop(digest)
            self._make_room(sum((source / name).stat().st_size for name in FILES))
            self._copy(source, digest)
            held = self._open(digest)
        if held is None:
            raise StoreError(f"adapter {digest}: changed while it was copied to {self.root}; fix: check that disk")
        return held

    def _open(self, digest: str) -> HeldAdapter | None:
        """Hold the adapter if it is stored and whole."""
        folder = self._folder(digest)
        held = HeldAdapter(digest, folder, self._lock(digest, fcntl.LOCK_SH))
        if not folder.is_dir() or (fault := _fault(folder, digest)) is not None:
            held.release()
            if folder.is_dir():
                logger.warning("adapter %s in the store is damaged: %s", digest, fault)
            return None
        os.utime(folder)  # the least recently held goes first
        return held

    def _drop(self, digest: str) -> None:
        """Remove the adapter unless a process holds it. Call it inside ``_alone``."""
        if self._folder(digest).is_dir():
            with self._unheld(digest) as is_unheld:
                if is_unheld:
                    _remove(self._folder(digest))

    def digests(self) -> list[str]:
        """Return the digests of the stored adapters, the least recently held first."""
        adapters = self.root / "adapters"
        folders = [path for path in adapters.iterdir() if _DIGEST.fullmatch(path.name)] if adapters.is_dir() else []
        return [path.name for path in sorted(folders, key=lambda path: path.stat().st_mtime_ns)]

    def size(self) -> int:
        """Return the bytes of all adapters."""
        return sum(_size(self._folder(digest)) for digest in self.digests())

    def _folder(self, digest: str) -> Path:
        if _DIGEST.fullmatch(digest) is None:
            raise StoreError(f"adapter digest {digest[:80]!r} is not 64 hexadecimal digits")
        return self.root / "adapters" / digest

    def _make_room(self, size_bytes: int) -> None:
        if self.max_bytes is None:
            return
        for digest in self.digests():
            if self.size() + size_bytes <= self.max_bytes:
                return
            logger.info("adapter %s is evicted from the store, unless it is served", digest)
            self._drop(digest)
        if self.size() + size_bytes > self.max_bytes:
            raise StoreError(
                f"the adapter store {self.root} is full: {self.size():,} of {self.max_bytes:,} bytes are being served, and "
                f"{size_bytes:,} more are needed; fix: a larger --max-store, or fewer versions under an alias"
            )

    def _copy(self, source: Path, digest: str) -> None:
        """Copy whole or not at all: write a draft through to the disk, then rename it."""
        adapters = self.root / "adapters"
        try:
            adapters.mkdir(parents=True, exist_ok=True)
            draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=adapters))
        except OSError as error:
            raise StoreError(f"the adapter store {self.root} cannot be written: {error.strerror}") from error
        try:
            for name in FILES:
                shutil.copyfile(source / name, draft / name)
                sync(draft / name)
            fault = _fault(draft, digest)
            if fault is not None:
                raise StoreError(f"adapter {digest}: changed while it was copied ({fault})")
            draft.rename(adapters / digest)
        except OSError as error:
            full = error.errno in _FULL
            reason = "the disk is full; fix: free space" if full else str(error.strerror)
            raise StoreError(f"the adapter store {self.root} cannot be written: {reason}") from error
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Let one process change the store at a time, and remove the drafts of dead ones."""
        lock = self._lock("store", fcntl.LOCK_EX)
        try:
            for draft in (self.root / "adapters").glob(".draft-*"):
                shutil.rmtree(draft, ignore_errors=True)
            yield
        finally:
            os.close(lock)

    @contextmanager
    def _unheld(self, digest: str) -> Iterator[bool]:
        """Yield whether no process holds the adapter. No process can begin to hold it inside."""
        try:
            lock = self._lock(digest, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        try:
            yield True
        finally:
            os.close(lock)

    def _lock(self, name: str, kind: int) -> int:
        locks = self.root / "locks"
        try:
            locks.mkdir(parents=True, exist_ok=True)
            lock = os.open(locks / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StoreError(f"the adapter store {self.root} cannot be written: {error.strerror}") from error
        try:
            fcntl.flock(lock, kind)
        except BaseException:
            os.close(lock)
            raise
        return lock


def _fault(folder: Path, digest: str) -> str | None:
    """Return what is wrong with an adapter's files, or None. Only the safetensors file and the config are ever read."""
    entries = sorted(folder.iterdir())
    names = {path.name for path in entries}
    if names != FILES:
        return f"files {sorted(names ^ FILES)} are missing or do not belong there"
    if not all(path.is_file() and not path.is_symlink() for path in entries):
        return "a file is not a regular file"
    if folder_digest(folder) != digest:
        return "its contents have another digest"
    try:
        with safe_open(folder / "adapter_model.safetensors", "np") as weights:
            return None if weights.keys() else "it holds no weights"
    except (SafetensorError, OSError) as error:
        return f"not a valid safetensors file: {error}"


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def _remove(folder: Path) -> None:
    """Rename first, so that a kill in between leaves nothing that looks whole."""
    grave = folder.with_name(f".draft-{folder.name}")
    folder.rename(grave)
    shutil.rmtree(grave, ignore_errors=True)
