"""Import votes from a CSV file of a spreadsheet or another tool.

The file is UTF-8 with a header line. The columns can be in any order; the first six are required:

``turn_id``       unique among all turns; two voters of one turn share it
``prompt``        the question; or ``messages``: the whole prompt as a JSON list of OpenAI messages, instead of ``prompt``
``left_answer``   as shown on the left
``right_answer``  as shown on the right
``choice``        left, right, tie or both_bad
``voter``         a login; empty: a visitor without a login
``session``       default: the turn_id
``reasons``       tags, separated by ``;``
``comment``
``prompt_set``    name of the set that the prompt was taken from
``cast_at``       ISO 8601 with a time zone; default: now
``left_model``, ``left_version``, ``left_adapter_digest``, ``left_base_digest``, ``left_request_id``
                  the router's receipt of the left answer; the same with ``right_``. All or none: a vote without two
                  receipts is stored and never counts. The base has the version ``base`` and no adapter digest.

A file with a fault is not imported at all. Importing the same file twice adds nothing.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from pathlib import Path

from mlflow_finetune_plugin.errors import VoteError
from mlflow_finetune_plugin.evaluation.results import Message
from mlflow_finetune_plugin.votes.journal.journal import Journal
from mlflow_finetune_plugin.votes.journal.vote import CastVote, Position, Receipt, Turn, VoteSide

_RECEIPT = tuple(field.name for field in fields(Receipt))
_REQUIRED = ("turn_id", "left_answer", "right_answer", "choice", "voter")
_OPTIONAL = ("prompt", "messages", "session", "reasons", "comment", "prompt_set", "cast_at")
_COLUMNS = (*_REQUIRED, *_OPTIONAL, *(f"{side}_{name}" for side in ("left", "right") for name in _RECEIPT))
_FAULTS_SHOWN = 50


@dataclass(frozen=True)
class CsvImport:
    """The number of new votes, of votes that the journal already had, and of those without two receipts, which never count."""

    added: int
    existing: int
    without_receipts: int


def import_csv(path: Path, journal: Journal) -> CsvImport:
    """Cast the votes of a file in its order.

    Raises:
        VoteError: The file has faults; all are listed with their lines.
        JournalError: The journal cannot be written.
    """
    votes, faults = _read(path, journal)
    cast: dict[str, CastVote] = {}
    for line, vote in votes:
        before = cast.get(vote.vote_id)
        if before is not None and not before.says_the_same(vote):
            faults.append((line, "an earlier line has a different vote of this voter on this turn and pair"))
        entry = journal.find(vote.vote_id)
        if entry is not None and not entry.vote.says_the_same(vote):
            faults.append((line, f"the journal has this vote as {entry.vote.choice!r}, and an import cannot change it"))
        cast.setdefault(vote.vote_id, vote)
    if faults:
        raise _error(path, faults)
    sequence = journal.sequence
    added = sum(journal.cast(vote).sequence > sequence for vote in cast.values())
    without_receipts = sum(lacks_receipt(vote) for vote in cast.values())
    return CsvImport(added, len(cast) - added, without_receipts)


def lacks_receipt(vote: CastVote) -> bool:
    """Check whether a side of the vote has no receipt."""
    return any(side.receipt is None for side in vote.sides)


def _read(path: Path, journal: Journal) -> tuple[list[tuple[int, CastVote]], list[tuple[int, str]]]:
    votes: list[tuple[int, CastVote]] = []
    faults: list[tuple[int, str]] = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            faults += [(1, fault) for fault in _header_faults(list(reader.fieldnames or ()))]
            if faults:
                return votes, faults
            start = reader.line_num + 1
            for row in reader:
                try:
                    votes.append((start, _vote(row, journal)))
                except VoteError as error:
                    faults.append((start, str(error)))
                start = reader.line_num + 1
    except OSError as error:
        raise VoteError(f"{path} cannot be read: {error.strerror}; fix: give a CSV file") from error
    except UnicodeDecodeError as error:
        raise VoteError(f"{path} is not UTF-8: {error.reason} at byte {error.start}; fix: save it as UTF-8") from error
    except csv.Error as error:
        faults.append((reader.line_num, f"is not valid CSV: {error}"))
    if not votes and not faults:
        faults.append((1, "has no votes"))
    return votes, faults


def _header_faults(columns: list[str]) -> list[str]:
    faults = [f"column {name!r} is missing" for name in _REQUIRED if name not in columns]
    faults += [f"unknown column {name!r}" for name in columns if name not in _COLUMNS]
    faults += [
        f"column {name!r} appears twice" for name in sorted({name for name in columns if columns.count(name) > 1})
    ]
    if ("prompt" in columns) == ("messages" in columns):
        faults.append("give one of the columns 'prompt' and 'messages'")
    return faults


def _vote(row: Mapping[str, str | None], journal: Journal) -> CastVote:
    if None in row or None in row.values():
        raise VoteError("has more or fewer fields than the header")
    cells = {name: value or "" for name, value in row.items()}
    prompt_set = cells.get("prompt_set", "").strip() or None
    turn = Turn(cells["turn_id"], cells.get("session") or cells["turn_id"], _messages(cells), prompt_set)
    sides = (_side(cells, "left"), _side(cells, "right"))
    reasons = tuple(reason.strip() for reason in cells.get("reasons", "").split(";") if reason.strip())
    return CastVote(
        turn,
        sides,
        cells["choice"].strip(),  # type: ignore[arg-type]  # checked by CastVote
        journal.voter(cells["voter"]),
        reasons=reasons,
        comment=cells.get("comment", ""),
        cast_at=_time(cells.get("cast_at", "")),
    )


def _side(cells: Mapping[str, str], position: Position) -> VoteSide:
    fields = {name: cells.get(f"{position}_{name}", "").strip() for name in _RECEIPT}
    try:
        receipt = Receipt(**fields) if any(fields.values()) else None
    except VoteError as error:
        empty = [f"{position}_{name}" for name, value in fields.items() if not value]
        raise VoteError(f"the {position} receipt is incomplete: {', '.join(empty)} is empty") from error
    return VoteSide(receipt, cells[f"{position}_answer"], None, position)


def _messages(cells: Mapping[str, str]) -> tuple[Message, ...]:
    if "prompt" in cells:
        if not cells["prompt"].strip():
            raise VoteError("prompt is empty")
        return ({"role": "user", "content": cells["prompt"]},)
    try:
        messages = json.loads(cells["messages"])
        return tuple(dict(message) for message in messages)
    except (ValueError, TypeError) as error:
        raise VoteError(f"messages is not a JSON list of messages: {error}") from error


def _time(text: str) -> datetime | None:
    if not text.strip():
        return None
    try:
        return datetime.fromisoformat(text.strip())
    except ValueError as error:
        raise VoteError(f"cast_at {text!r} is not an ISO 8601 time") from error


def _error(path: Path, faults: list[tuple[int, str]]) -> VoteError:
    distinct = sorted(set(faults))
    head = "1 fault" if len(distinct) == 1 else f"{len(distinct)} faults"
    lines = [f"  - line {line}: {fault}" for line, fault in distinct[:_FAULTS_SHOWN]]
    if len(distinct) > _FAULTS_SHOWN:
        lines.append(f"  - and {len(distinct) - _FAULTS_SHOWN} more")
    return VoteError(f"{path}: {head}, so nothing was imported; fix them:\n" + "\n".join(lines))
