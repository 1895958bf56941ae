"""Records of deletions, for every process of this host that still holds some of the deleted turns in memory.

``forgotten.jsonl`` in the journal's folder is append-only. A line holds a time or the keyed digest of a voter or a session,
never a name. A process that takes a turn into memory stores ``mark()`` with it and later checks only the lines after it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from mlflow_finetune_plugin.durable_files import append_synced
from mlflow_finetune_plugin.votes.journal.journal import Journal


@dataclass(frozen=True)
class DeletionScope:
    """What to delete: all turns of a voter, all of a session, or all that began at ``until_ms`` or earlier."""

    voter: str | None = None
    session: str | None = None
    until_ms: int | None = None


class Tombstones:
    """The deletions of one journal. The methods raise OSError if the disk fails."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    @property
    def _path(self) -> Path:
        return self._journal.folder / "forgotten.jsonl"

    def mark(self) -> int:
        """Return the current end of the list. If it cannot be read, return 0, so that every deletion counts as later."""
        try:
            return self._size()
        except OSError:
            return 0

    def add(self, scope: DeletionScope) -> None:
        """Write a deletion to the disk."""
        record = {
            "voter": self._digest("voter", scope.voter),
            "session": self._digest("session", scope.session),
            "until_ms": scope.until_ms,
        }
        append_synced(self._path, b"\n" + json.dumps(record).encode() + b"\n")  # The first line break ends a torn line.

    def covers(self, mark: int, *, voter: str, session: str, started_at_ms: int) -> bool:
        """Check whether a turn was deleted after ``mark``. A line that cannot be read counts as a deletion of it."""
        if self._size() == mark:
            return False
        digests = {"voter": self._digest("voter", voter), "session": self._digest("session", session)}
        with self._path.open("rb") as file:
            file.seek(mark)
            return any(_is_about(line, digests, started_at_ms) for line in file if line.strip())

    def _size(self) -> int:
        try:
            return self._path.stat().st_size
        except FileNotFoundError:
            return 0

    def _digest(self, kind: str, name: str | None) -> str | None:
        return None if name is None else self._journal.keyed_digest(f"{kind}\0{name}")


def _is_about(line: bytes, digests: dict[str, str | None], started_at_ms: int) -> bool:
    try:
        record = json.loads(line)
        if record["until_ms"] is not None and started_at_ms <= int(record["until_ms"]):
            return True
        return any(record[kind] is not None and record[kind] == digest for kind, digest in digests.items())
    except (ValueError, KeyError, TypeError):
        return True
