"""A line of the journal as bytes: JSON with the SHA-256 of itself, so that what is not whole is seen."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from mlflow_finetune_plugin.errors import VoteError
from mlflow_finetune_plugin.votes.journal.vote import CastVote


@dataclass(frozen=True)
class Line:
    sequence: int
    place: int
    vote: CastVote


@dataclass(frozen=True)
class Forgotten:
    """What is left of a vote that somebody asked to forget."""

    sequence: int


def written_line(line: Line | Forgotten) -> bytes:
    told: dict[str, Any] = {"sequence": line.sequence}
    if isinstance(line, Line):
        told |= {"place": line.place, "vote": line.vote.to_json()}
    return _canonical({**told, "sha256": _checksum(told)}) + b"\n"


def parse_line(raw: bytes) -> Line | Forgotten | None:
    """None for a line that is not what was written."""
    try:
        told = json.loads(raw)
        if told.pop("sha256") != _checksum(told):
            return None
        if "vote" not in told:
            return Forgotten(int(told["sequence"]))
        return Line(int(told["sequence"]), int(told["place"]), CastVote.from_json(told["vote"]))
    except (ValueError, KeyError, TypeError, AttributeError, VoteError):
        return None


def _checksum(told: dict[str, Any]) -> str:
    return hashlib.sha256(_canonical(told)).hexdigest()


def _canonical(told: dict[str, Any]) -> bytes:
    """ASCII without line breaks, whatever the text holds; a lone surrogate survives as its escape."""
    return json.dumps(told, sort_keys=True, separators=(",", ":")).encode("ascii")
