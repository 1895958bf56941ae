"""Conversations behind shared links: one file each, deleted with the voter, the session, or when it is too old."""

from __future__ import annotations

import json
import re
import secrets
import time
from pathlib import Path
from typing import Any

from mlflow_finetune_plugin.durable_files import write_whole
from mlflow_finetune_plugin.votes.journal.journal import Journal
from mlflow_finetune_plugin.votes.journal.tombstones import Tombstones

_TOKEN = re.compile(r"[A-Za-z0-9_-]{32}")
MOST_SHARED = 10_000


class SharedConversations:
    """The shared conversations of a model, in the folder of its journal. The caller leaves out names that are hidden."""

    def __init__(self, journal: Journal) -> None:
        self._folder = journal.folder / "shared"
        self._tombstones = Tombstones(journal)

    def save(self, conversation: dict[str, Any], *, voter: str, session: str) -> str:
        """Store a conversation and return the token of its link, 192 random bits. Raises OSError."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        if sum(1 for _ in self._folder.iterdir()) >= MOST_SHARED:
            raise OSError(f"{self._folder} already holds {MOST_SHARED:,} conversations")
        token = secrets.token_urlsafe(24)
        record = {
            "mark": self._tombstones.mark(),
            "voter": voter,
            "session": session,
            "at_ms": time.time_ns() // 1_000_000,
            "conversation": conversation,
        }
        write_whole(self._folder / f"{token}.json", json.dumps(record, ensure_ascii=False).encode())
        return token

    def load(self, token: str) -> dict[str, Any] | None:
        """Return the conversation of a link; None for an unknown link, or one whose conversation was deleted."""
        if _TOKEN.fullmatch(token) is None:
            return None
        path = self._folder / f"{token}.json"
        record = self._valid_record(path)
        if record is None:
            path.unlink(missing_ok=True)
            return None
        return dict(record["conversation"])

    def purge(self, older_than_days: float | None = None) -> int:
        """Delete conversations that were forgotten or are older than that; return their number."""
        if not self._folder.is_dir():
            return 0
        limit = None if older_than_days is None else time.time() - older_than_days * 86_400
        deleted = 0
        for path in self._folder.glob("*.json"):
            if self._valid_record(path) is None or (limit is not None and path.stat().st_mtime < limit):
                path.unlink(missing_ok=True)
                deleted += 1
        return deleted

    def _valid_record(self, path: Path) -> dict[str, Any] | None:
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            is_forgotten = self._tombstones.covers(
                int(record["mark"]),
                voter=record["voter"],
                session=record["session"],
                started_at_ms=int(record["at_ms"]),
            )
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None
        return None if is_forgotten else dict(record)
