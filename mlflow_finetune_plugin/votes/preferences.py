"""Decided votes as preference data for the next training: TRL's layout, an explicit prompt and two conversations.

A row is ``{"prompt": [messages], "chosen": [answer], "rejected": [answer]}``; what it rests on stands on the same line
of ``NAME.meta.jsonl``, because TRL would carry further columns along.
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
from mlflow_finetune_plugin.votes.journal.vote import prompt_digest, text_digest
from mlflow_finetune_plugin.votes.mlflow.feedback import ToldSide, ToldVote
from mlflow_finetune_plugin.votes.mlflow.reading import SAME_VERSION, Reading, read_texts, read_votes
from mlflow_finetune_plugin.votes.mlflow.spoken_answer import SpokenText

NOT_DECISIVE = "tie or both bad"
EVENLY_SPLIT = "as many voters for one answer as for the other"
NO_TEXT = "the traces are deleted, or hold another text than was voted on"
SAME_TEXT = "both answers are the same text"
EMPTY = "an empty answer"
CONTRADICTION = "an answer preferred in one turn and not in another, to the same prompt"
REPEATED = "an answer that another row to the same prompt has"


@dataclass(frozen=True)
class Preference:
    """One row and the turns' votes behind it."""

    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    chosen_side: ToldSide
    rejected_side: ToldSide
    votes: tuple[ToldVote, ...]

    def row(self) -> dict[str, Any]:
        """What TRL reads."""
        return {
            "prompt": [dict(message) for message in self.prompt],
            "chosen": [{"role": "assistant", "content": self.chosen}],
            "rejected": [{"role": "assistant", "content": self.rejected}],
        }

    def provenance(self) -> dict[str, Any]:
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
    """The rows, in the order voted, and how many turns were left out for which reason."""

    rows: tuple[Preference, ...]
    left_out: Mapping[str, int]


def exportable(reading: Reading) -> tuple[ToldVote, ...]:
    """People's votes whose receipts are true; two answers of one version say as much about answers as those of two."""
    return tuple(
        vote.told for vote in reading.votes if vote.told.kind == "person" and vote.fault in (None, SAME_VERSION)
    )


def read_preferences(model: str, tracking_uri: str | None = None) -> Preferences:
    """Read the votes of a registered model from MLflow and return the preference rows that they decide.

    Raises:
        TrackingError: MLflow does not answer.
    """
    votes = exportable(read_votes(model, tracking_uri))
    return preferences(votes, read_texts(model, votes, tracking_uri))


def preferences(votes: Iterable[ToldVote], texts: Mapping[str, SpokenText]) -> Preferences:
    """One row a turn where most voters preferred one answer; ``texts`` by trace id (``read_texts``).

    No (prompt, answer) appears twice: where one is preferred here and not preferred there, every row that has it is left
    out; where one is in several rows, the first stays.
    """
    turns: dict[tuple[str, frozenset[str]], list[ToldVote]] = defaultdict(list)
    for vote in votes:
        turns[vote.turn_id, frozenset({vote.left.answer_id, vote.right.answer_id})].append(vote)
    left_out: Counter[str] = Counter()
    found: list[Preference] = []
    for cast in turns.values():
        preference = _decide(cast, texts)
        if isinstance(preference, str):
            left_out[preference] += 1
        else:
            found.append(preference)
    rows, doubled = _each_answer_once(found)
    return Preferences(tuple(rows), dict((left_out + doubled).most_common()))


def write_preferences(path: Path, found: Preferences) -> Path:
    """Writes the rows and, beside them, what they rest on; returns the second file. Raises DataError for a path it cannot."""
    beside = path.with_name(f"{path.stem}.meta.jsonl")
    try:
        _write(path, [row.row() for row in found.rows])
        _write(beside, [row.provenance() for row in found.rows])
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written: {error.strerror or error}; fix: name a file in a folder of yours"
        ) from error
    return beside


def _decide(cast: Sequence[ToldVote], texts: Mapping[str, SpokenText]) -> Preference | str:
    """What the voters of one turn prefer, or why nobody can say."""
    wins = Counter(vote.winner.answer_id for vote in cast if vote.winner is not None)
    if not wins:
        return NOT_DECISIVE
    order = wins.most_common()
    if len(order) > 1 and order[0][1] == order[1][1]:
        return EVENLY_SPLIT
    sides = {side.answer_id: side for side in (cast[0].left, cast[0].right)}
    chosen = sides.pop(order[0][0])
    (rejected,) = sides.values()
    spoken = [_true_text(side, cast[0].prompt_digest, texts) for side in (chosen, rejected)]
    if spoken[0] is None or spoken[1] is None:
        return NO_TEXT
    if not spoken[0].answer.strip() or not spoken[1].answer.strip():
        return EMPTY
    if spoken[0].answer == spoken[1].answer:
        return SAME_TEXT
    return Preference(spoken[0].messages, spoken[0].answer, spoken[1].answer, chosen, rejected, tuple(cast))


def _true_text(side: ToldSide, asked: str, texts: Mapping[str, SpokenText]) -> SpokenText | None:
    """The text that was voted on, proven by the digests in the vote."""
    text = texts.get(side.trace_id)
    if text is None or prompt_digest(text.messages) != asked or text_digest(text.answer) != side.answer_digest:
        return None
    return text


def _each_answer_once(found: Sequence[Preference]) -> tuple[list[Preference], Counter[str]]:
    chosen = {(prompt_digest(row.prompt), row.chosen) for row in found}
    contradicted = chosen & {(prompt_digest(row.prompt), row.rejected) for row in found}
    seen: set[tuple[str, str]] = set()
    rows = []
    left_out: Counter[str] = Counter()
    for row in found:
        answers = {(prompt_digest(row.prompt), answer) for answer in (row.chosen, row.rejected)}
        if answers & contradicted:
            left_out[CONTRADICTION] += 1
        elif answers & seen:
            left_out[REPEATED] += 1
        else:
            seen |= answers
            rows.append(row)
    return rows, left_out


def _write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    os.replace(draft, path)
