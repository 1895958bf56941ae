"""What was asked to be forgotten, for those who still hold some of it in memory, in whatever process of this host.

``forgotten.jsonl`` in the journal's folder, append-only. A line names nobody: a keyed digest of the voter or the session, or
a time. Whoever takes something into memory remembers ``mark()``; only what is forgotten after that is about it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from mlflow_finetune_plugin.durable_files import append_synced
from mlflow_finetune_plugin.votes.journal.journal import Journal


@dataclass(frozen=True)
class Meant:
    """Whose turn it was, or when: all of a voter's, all of a session's, or all that began at a time or before it."""

    voter: str | None = None
    session: str | None = None
    until_ms: int | None = None


class Tombstones:
    """Of one journal. Raises OSError where the disk refuses."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    @property
    def _path(self) -> Path:
        return self._journal.folder / "forgotten.jsonl"

    def mark(self) -> int:
        """How much has been forgotten up to now. Where the disk does not say, nothing: then all of it counts as later."""
        try:
            return self._size()
        except OSError:
            return 0

    def add(self, meant: Meant) -> None:
        """On the disk when this returns."""
        told = {
            "voter": self._disguised("voter", meant.voter),
            "session": self._disguised("session", meant.session),
            "until_ms": meant.until_ms,
        }
        append_synced(self._path, b"\n" + json.dumps(told).encode() + b"\n")  # a torn line before it ends here

    def covers(self, mark: int, *, voter: str, session: str, started_at_ms: int) -> bool:
        """Whether it was forgotten since ``mark``. A line that cannot be read may be about anybody."""
        if self._size() == mark:
            return False
        disguised = {"voter": self._disguised("voter", voter), "session": self._disguised("session", session)}
        with self._path.open("rb") as file:
            file.seek(mark)
            return any(_is_about(line, disguised, started_at_ms) for line in file if line.strip())

    def _size(self) -> int:
        try:
            return self._path.stat().st_size
        except FileNotFoundError:
            return 0

    def _disguised(self, kind: str, name: str | None) -> str | None:
        return None if name is None else self._journal.keyed_digest(f"{kind}\0{name}")


def _is_about(line: bytes, disguised: dict[str, str | None], started_at_ms: int) -> bool:
    try:
        told = json.loads(line)
        if told["until_ms"] is not None and started_at_ms <= int(told["until_ms"]):
            return True
        return any(told[kind] is not None and told[kind] == name for kind, name in disguised.items())
    except (ValueError, KeyError, TypeError):
        return True
