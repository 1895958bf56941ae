"""A line of the journal: JSON with the SHA-256 of itself, so that a damaged line is recognised."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from mlflow_finetune_plugin.errors import VoteError
from mlflow_finetune_plugin.votes.journal.vote import CastVote


@dataclass(frozen=True)
class Entry:
    """A vote in the journal.

    A changed vote keeps the ``first_sequence`` of its first revision. To read votes in order, take the last revision of each
    and sort by ``first_sequence``. Sequences are assigned under a lock, so they are in the order in which votes arrived;
    clock times are not used because a clock can jump.
    """

    sequence: int
    first_sequence: int
    vote: CastVote


@dataclass(frozen=True)
class Forgotten:
    """The remains of a vote that was forgotten on request."""

    sequence: int


def written_line(line: Entry | Forgotten) -> bytes:
    """Return the bytes of a line, with its line break."""
    content: dict[str, Any] = {"sequence": line.sequence}
    if isinstance(line, Entry):
        content |= {"place": line.first_sequence, "vote": line.vote.to_json()}
    return _canonical({**content, "sha256": _checksum(content)}) + b"\n"


def parse_line(raw: bytes) -> Entry | Forgotten | None:
    """Return what a line holds; None for a line whose checksum or content is wrong."""
    try:
        content = json.loads(raw)
        if content.pop("sha256") != _checksum(content):
            return None
        if "vote" not in content:
            return Forgotten(int(content["sequence"]))
        return Entry(int(content["sequence"]), int(content["place"]), CastVote.from_json(content["vote"]))
    except (ValueError, KeyError, TypeError, AttributeError, VoteError):
        return None


def _checksum(content: dict[str, Any]) -> str:
    return hashlib.sha256(_canonical(content)).hexdigest()


def _canonical(content: dict[str, Any]) -> bytes:
    """Return ASCII without line breaks for any text; a lone surrogate survives as its escape."""
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode("ascii")
