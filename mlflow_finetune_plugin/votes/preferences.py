"""Votes as preference data for the next training, in TRL's layout with an explicit prompt.

A row is ``{"prompt": [messages], "chosen": [answer], "rejected": [answer]}``. The votes behind a row are on the same line of
``NAME.meta.jsonl``, because TRL would take further columns into the training.
"""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mlflow_finetune_plugin.errors import DataError
from mlflow_finetune_plugin.evaluation.results import Message
from mlflow_finetune_plugin.images.turns import pictures_of
from mlflow_finetune_plugin.votes.journal.vote import prompt_digest
from mlflow_finetune_plugin.votes.mlflow.answer_trace import TraceText
from mlflow_finetune_plugin.votes.mlflow.feedback import MirroredSide, MirroredVote
from mlflow_finetune_plugin.votes.mlflow.reading import SAME_VERSION, Reading, read_texts, read_votes, verified_text

NOT_DECISIVE = "tie or both bad"
EVENLY_SPLIT = "equally many votes for both answers"
NO_TEXT = "the traces are deleted, or their text is not the one that was voted on"
SAME_TEXT = "both answers are the same text"
EMPTY = "an empty answer"
CONTRADICTION = "an answer preferred in one turn and rejected in another, to the same prompt"
HAS_PICTURES = "a prompt with pictures, of which a vote records the hashes only"
REPEATED = "an answer that is already in another row with the same prompt"


@dataclass(frozen=True)
class Preference:
    """A preference row and the votes behind it."""

    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    chosen_side: MirroredSide
    rejected_side: MirroredSide
    votes: tuple[MirroredVote, ...]

    def row(self) -> dict[str, Any]:
        """Return the row as TRL reads it."""
        return {
            "prompt": [dict(message) for message in self.prompt],
            "chosen": [{"role": "assistant", "content": self.chosen}],
            "rejected": [{"role": "assistant", "content": self.rejected}],
        }

    def provenance(self) -> dict[str, Any]:
        """Return the votes and sides behind the row, ready for JSON."""
        winners = [vote.winner.answer_id if vote.winner else None for vote in self.votes]
        return {
            "turn_id": self.votes[0].turn_id,
            "vote_ids": [vote.vote_id for vote in self.votes],
            "for": winners.count(self.chosen_side.answer_id),
            "against": winners.count(self.rejected_side.answer_id),
            "chosen": asdict(self.chosen_side),
            "rejected": asdict(self.rejected_side),
        }


@dataclass(frozen=True)
class Preferences:
    """The rows in the order of their votes, and the number of turns left out by reason."""

    rows: tuple[Preference, ...]
    left_out: Mapping[str, int]


def exportable(reading: Reading) -> tuple[MirroredVote, ...]:
    """Return people's votes with valid receipts. Votes between two answers of one version are included."""
    return tuple(
        vote.vote for vote in reading.votes if vote.vote.kind == "person" and vote.fault in (None, SAME_VERSION)
    )


def read_preferences(model: str, tracking_uri: str | None = None) -> Preferences:
    """Read the votes of a registered model from MLflow and return the preference rows that they decide.

    Raises:
        TrackingError: MLflow does not answer.
    """
    votes = exportable(read_votes(model, tracking_uri))
    return preferences(votes, read_texts(model, votes, tracking_uri))


def preferences(votes: Iterable[MirroredVote], texts: Mapping[str, TraceText]) -> Preferences:
    """Return one row for each turn in which most voters preferred one answer.

    No pair of prompt and answer appears twice. If an answer is preferred in one turn and rejected in another, all of its rows
    are left out; if it is in several rows, the first one is used.

    Args:
        votes: The votes.
        texts: The texts by trace id, of ``read_texts``.
    """
    left_out: Counter[str] = Counter()
    decided: list[Preference] = []
    for cast in turns_of(votes):
        preference = _decide(cast, texts)
        if isinstance(preference, str):
            left_out[preference] += 1
        else:
            decided.append(preference)
    rows, doubled = _each_answer_once(decided)
    return Preferences(tuple(rows), dict((left_out + doubled).most_common()))


def turns_of(votes: Iterable[MirroredVote]) -> list[list[MirroredVote]]:
    """Return the votes on the same two answers of a turn together, in the order of each turn's first vote."""
    turns: dict[tuple[str, frozenset[str]], list[MirroredVote]] = defaultdict(list)
    for vote in votes:
        turns[vote.turn_id, frozenset({vote.left.answer_id, vote.right.answer_id})].append(vote)
    return list(turns.values())


def write_preferences(path: Path, data: Preferences) -> Path:
    """Write the rows to ``path`` and their votes to ``NAME.meta.jsonl``; return the second path.

    Raises:
        DataError: The files cannot be written.
    """
    beside = path.with_name(f"{path.stem}.meta.jsonl")
    try:
        _write(path, [row.row() for row in data.rows])
        _write(beside, [row.provenance() for row in data.rows])
    except OSError as error:
        raise DataError(
            f"{path} cannot be written: {error.strerror or error}; fix: use a folder that you can write to"
        ) from error
    return beside


def _decide(cast: Sequence[MirroredVote], texts: Mapping[str, TraceText]) -> Preference | str:
    """Return the preference of a turn's voters, or the reason why there is none."""
    wins = Counter(vote.winner.answer_id for vote in cast if vote.winner is not None)
    if not wins:
        return NOT_DECISIVE
    order = wins.most_common()
    if len(order) > 1 and order[0][1] == order[1][1]:
        return EVENLY_SPLIT
    sides = {side.answer_id: side for side in (cast[0].left, cast[0].right)}
    chosen = sides.pop(order[0][0])
    (rejected,) = sides.values()
    answers = [verified_text(side, cast[0].prompt_digest, texts) for side in (chosen, rejected)]
    if answers[0] is None or answers[1] is None:
        return NO_TEXT
    if pictures_of(answers[0].messages):
        return HAS_PICTURES
    if not answers[0].answer.strip() or not answers[1].answer.strip():
        return EMPTY
    if answers[0].answer == answers[1].answer:
        return SAME_TEXT
    return Preference(answers[0].messages, answers[0].answer, answers[1].answer, chosen, rejected, tuple(cast))


def _each_answer_once(preferences: Sequence[Preference]) -> tuple[list[Preference], Counter[str]]:
    chosen = {(prompt_digest(row.prompt), row.chosen) for row in preferences}
    contradicted = chosen & {(prompt_digest(row.prompt), row.rejected) for row in preferences}
    used: set[tuple[str, str]] = set()
    rows = []
    left_out: Counter[str] = Counter()
    for row in preferences:
        answers = {(prompt_digest(row.prompt), answer) for answer in (row.chosen, row.rejected)}
        if answers & contradicted:
            left_out[CONTRADICTION] += 1
        elif answers & used:
            left_out[REPEATED] += 1
        else:
            used |= answers
            rows.append(row)
    return rows, left_out


def _write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    os.replace(draft, path)
