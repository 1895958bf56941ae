"""Turn votes into training rows, in TRL's layouts with an explicit prompt.

The page offers "A is better", "B is better", "A tie" and "Both are bad". A better answer is good and the other one bad; of "Both
are bad" both answers are bad. "A tie" says that the answers are equal, not that they are good, so it gives no row in any form.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlflow_finetune_plugin.evaluation.results import Message
from mlflow_finetune_plugin.images.turns import pictures_of
from mlflow_finetune_plugin.methods import RowForm
from mlflow_finetune_plugin.votes.journal.vote import prompt_digest
from mlflow_finetune_plugin.votes.mlflow.answer_trace import TraceText
from mlflow_finetune_plugin.votes.mlflow.feedback import MirroredSide, MirroredVote
from mlflow_finetune_plugin.votes.mlflow.reading import verified_text
from mlflow_finetune_plugin.votes.preferences import (
    CONTRADICTION,
    EMPTY,
    EVENLY_SPLIT,
    HAS_PICTURES,
    NO_TEXT,
    NOT_DECISIVE,
    REPEATED,
    SAME_TEXT,
    preferences,
    turns_of,
)

TIE = "a tie, which does not say whether the answers are good"
REPEATED_PROMPT = "a prompt that is already in another row"

LAYOUTS: Mapping[RowForm, str] = {
    "pairs": "preference",
    "rated": "rated",
    "answers": "auto",  # turns of a prompt and an answer, of which no layout has the name
    "prompts": "prompts",
}
"""The layout of ``data.layout`` in which the rows of each form are written."""


@dataclass(frozen=True)
class VotedRow:
    """A training row and the votes that it rests on."""

    columns: dict[str, Any]
    prompt: tuple[Message, ...]
    votes: tuple[MirroredVote, ...]


@dataclass(frozen=True)
class VotedRows:
    """The rows in the order of their votes, and how many turns or answers give none, by reason."""

    rows: tuple[VotedRow, ...]
    left_out: Mapping[str, int]


def voted_rows(votes: Iterable[MirroredVote], texts: Mapping[str, TraceText], form: RowForm) -> VotedRows:
    """Return the rows that votes give for objectives of one form.

    Args:
        votes: The votes of people with valid receipts.
        texts: The texts by trace id, of ``read_texts``.
        form: ``pairs``: the better answer and the other one. ``rated``: both answers of a turn. ``answers``: the better
            answers. ``prompts``: each prompt once.
    """
    if form == "rated":
        return _rated(votes, texts)
    if form == "prompts":
        return _prompts(votes, texts)
    decided = preferences(votes, texts)
    rows = [VotedRow(preference.row(), preference.prompt, preference.votes) for preference in decided.rows]
    if form == "answers":
        rows = [_as_answer(row) for row in rows]
    return VotedRows(tuple(rows), decided.left_out)


def _as_answer(row: VotedRow) -> VotedRow:
    return VotedRow({"prompt": row.columns["prompt"], "completion": row.columns["chosen"]}, row.prompt, row.votes)


# rated answers ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Rating:
    text: TraceText
    is_good: bool
    votes: tuple[MirroredVote, ...]

    @property
    def answer(self) -> tuple[str, str]:
        return prompt_digest(self.text.messages), self.text.answer

    def row(self) -> VotedRow:
        columns = {
            "prompt": [dict(message) for message in self.text.messages],
            "completion": [{"role": "assistant", "content": self.text.answer}],
            "label": self.is_good,
        }
        return VotedRow(columns, self.text.messages, self.votes)


def _rated(votes: Iterable[MirroredVote], texts: Mapping[str, TraceText]) -> VotedRows:
    left_out: Counter[str] = Counter()
    ratings: list[_Rating] = []
    for cast in turns_of(votes):
        found = _ratings_of(cast, texts)
        if isinstance(found, str):
            left_out[found] += 1
        else:
            ratings += found
    kept, doubled = _each_rated_once(ratings)
    return VotedRows(tuple(rating.row() for rating in kept), dict((left_out + doubled).most_common()))


def _ratings_of(cast: Sequence[MirroredVote], texts: Mapping[str, TraceText]) -> list[_Rating] | str:
    """Return the ratings of a turn's two answers, or the reason why there are none."""
    labels = _labels(cast)
    if isinstance(labels, str):
        return labels
    ratings = []
    for side, is_good in labels:
        text = verified_text(side, cast[0].prompt_digest, texts)
        if text is None:
            return NO_TEXT
        if pictures_of(text.messages):
            return HAS_PICTURES
        if not text.answer.strip():
            return EMPTY
        ratings.append(_Rating(text, is_good, tuple(cast)))
    if ratings[0].answer == ratings[1].answer and ratings[0].is_good != ratings[1].is_good:
        return SAME_TEXT
    return ratings


def _labels(cast: Sequence[MirroredVote]) -> list[tuple[MirroredSide, bool]] | str:
    """Return whether each answer is good by the voters of a turn, or the reason why they do not say so.

    As in pairs, the voters who prefer an answer decide, unless more of them say that both are bad.
    """
    sides = (cast[0].left, cast[0].right)
    wins = Counter(vote.winner.answer_id for vote in cast if vote.winner is not None)
    choices = Counter(vote.choice for vote in cast)
    first, second = (wins[side.answer_id] for side in sides)
    if choices["both_bad"] > max(first, second, 0 if wins else choices["tie"]):
        return [(side, False) for side in sides]
    if not wins:
        return TIE
    if first == second:
        return EVENLY_SPLIT
    return [(sides[0], first > second), (sides[1], second > first)]


def _each_rated_once(ratings: Sequence[_Rating]) -> tuple[list[_Rating], Counter[str]]:
    """Return each answer to a prompt once, and none that is good in one turn and bad in another."""
    good = {rating.answer for rating in ratings if rating.is_good}
    contradicted = good & {rating.answer for rating in ratings if not rating.is_good}
    used: set[tuple[str, str]] = set()
    kept, left_out = [], Counter[str]()
    for rating in ratings:
        if rating.answer in contradicted:
            left_out[CONTRADICTION] += 1
        elif rating.answer in used:
            left_out[REPEATED] += 1
        else:
            used.add(rating.answer)
            kept.append(rating)
    return kept, left_out


# prompts ---------------------------------------------------------------------------------------------------------------


def _prompts(votes: Iterable[MirroredVote], texts: Mapping[str, TraceText]) -> VotedRows:
    rows: dict[str, VotedRow] = {}
    left_out: Counter[str] = Counter()
    for cast in turns_of(votes):
        digest = cast[0].prompt_digest
        text = next(_texts_of(cast, texts), None)
        if text is None:
            left_out[NO_TEXT] += 1
        elif pictures_of(text.messages):
            left_out[HAS_PICTURES] += 1
        elif digest in rows:
            left_out[REPEATED_PROMPT] += 1
            known = rows[digest]
            rows[digest] = VotedRow(known.columns, known.prompt, (*known.votes, *cast))
        else:
            rows[digest] = VotedRow(
                {"prompt": [dict(message) for message in text.messages]}, text.messages, tuple(cast)
            )
    return VotedRows(tuple(rows.values()), dict(left_out.most_common()))


def _texts_of(cast: Sequence[MirroredVote], texts: Mapping[str, TraceText]) -> Iterator[TraceText]:
    for side in (cast[0].left, cast[0].right):
        if (text := verified_text(side, cast[0].prompt_digest, texts)) is not None:
            yield text


def kind_fault(rows: VotedRows, form: RowForm) -> str | None:
    """Return why votes give nothing to learn from in this form, with a fix; None where they do."""
    reasons = "; ".join(f"{count:,}: {reason}" for reason, count in rows.left_out.items())
    if not rows.rows:
        only = f" ({reasons})" if reasons else ""
        what = "prefers one of two answers" if form in ("pairs", "answers") else "gives a row"
        more = ", or -e kto, which learns from bad answers too" if set(rows.left_out) == {NOT_DECISIVE} else ""
        return f"no vote {what}{only}; fix: vote for the better answer{more}"
    labels = {row.columns["label"] for row in rows.rows} if form == "rated" else set()
    if len(labels) == 1:
        kind = "good" if labels.pop() else "bad"
        return f"all {len(rows.rows):,} answers are {kind}; fix: vote for the better answer of some turns"
    return None
