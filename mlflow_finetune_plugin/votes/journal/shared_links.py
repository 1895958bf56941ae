"""Conversations that somebody gave a link to: a file each, gone when its person, session or age is forgotten."""

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
    """In the folder of a model's journal. What a blind turn hides, its shared conversation does not say."""

    def __init__(self, journal: Journal) -> None:
        self._folder = journal.folder / "shared"
        self._tombstones = Tombstones(journal)

    def save(self, told: dict[str, Any], *, voter: str, session: str) -> str:
        """The token of its link: 192 random bits. Raises OSError."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        if sum(1 for _ in self._folder.iterdir()) >= MOST_SHARED:
            raise OSError(f"{self._folder} holds {MOST_SHARED:,} conversations already")
        token = secrets.token_urlsafe(24)
        kept = {
            "mark": self._tombstones.mark(),
            "voter": voter,
            "session": session,
            "at_ms": time.time_ns() // 1_000_000,
            "conversation": told,
        }
        write_whole(self._folder / f"{token}.json", json.dumps(kept, ensure_ascii=False).encode())
        return token

    def load(self, token: str) -> dict[str, Any] | None:
        """None for a link that nobody gave, or whose conversation was forgotten; then its file goes, too."""
        if _TOKEN.fullmatch(token) is None:
            return None
        path = self._folder / f"{token}.json"
        kept = self._kept(path)
        if kept is None:
            path.unlink(missing_ok=True)
            return None
        return dict(kept["conversation"])

    def purge(self, older_than_days: float | None = None) -> int:
        """Deletes what was forgotten, or is older than that; returns how many."""
        if not self._folder.is_dir():
            return 0
        limit = None if older_than_days is None else time.time() - older_than_days * 86_400
        gone = 0
        for path in self._folder.glob("*.json"):
            if self._kept(path) is None or (limit is not None and path.stat().st_mtime < limit):
                path.unlink(missing_ok=True)
                gone += 1
        return gone

    def _kept(self, path: Path) -> dict[str, Any] | None:
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
            is_forgotten = self._tombstones.covers(
                int(kept["mark"]), voter=kept["voter"], session=kept["session"], started_at_ms=int(kept["at_ms"])
            )
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None
        return None if is_forgotten else dict(kept)
