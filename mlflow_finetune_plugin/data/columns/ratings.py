"""Recognise the columns that rate or rank answers by their names and values, in the first rows of a file and in all of them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Mapping
from typing import Any

from mlflow_finetune_plugin.errors import DataError
from mlflow_finetune_plugin.methods import RowForm

WHY = "the objective sft learns from single answers"
ENTRY_POINTS: Mapping[RowForm, str] = {
    "answers": "-e lora",
    "pairs": "-e dpo, -e orpo or -e reward",
    "rated": "-e kto",
    "prompts": "-e grpo or -e rloo",
}
"""The entry points that take the rows of each form, for the fix of an error."""
REJECTED = re.compile(r"(^|_)(rejected|non_preferred|dispreferred)(_|$)|^response_k$")
"""The names of columns that hold the worse answer of a pair."""
RATINGS = ("kto_tag", "label", "thumbs_up")
"""Columns that say whether an answer is good, where every value is a flag."""

VERDICTS = frozenset(
    (
        *("is_correct", "correct", "is_right", "accepted", "is_accepted", "approved", "is_approved", "is_good", "good"),
        *("desirable", "is_desirable", "passed", "upvoted", "is_helpful"),
    )
)
"""Columns that say whether an answer is good, where every value is a flag and some are false."""
REMOVED = frozenset(("deleted", "is_deleted", "removed", "is_removed", "excluded", "is_excluded"))
"""Columns that say whether a row was taken out, where every value is a flag and some are true."""
SCORES = frozenset(
    (
        *("score", "rating", "reward", "quality", "stars", "helpfulness", "correctness", "coherence", "honesty"),
        *("harmlessness", "truthfulness", "instruction_following", "overall_score", "quality_score", "reward_score"),
    )
)
"""Columns that may say how good an answer is, where every value is a number."""
_SPLITS = frozenset(("split", "set", "subset", "partition", "fold", "data_split", "dataset_split"))
_TRAINED = frozenset(("train", "training"))
_HELD_OUT = frozenset(
    ("test", "testing", "val", "valid", "validation", "dev", "eval", "evaluation", "holdout", "held_out")
)

_FLAGS = {"true": True, "false": False, "1": True, "0": False}


def is_flag(value: Any) -> bool:
    """Return whether a value can say that an answer is good or bad: a boolean, 0 or 1, also as text. Null says nothing."""
    return value is None or flag_of(value) is not None


def flag_of(value: Any) -> bool | None:
    """Return what a boolean, 0 or 1 says, also as text; None for any other value."""
    if isinstance(value, str):
        return _FLAGS.get(value.strip().lower())
    return bool(value) if isinstance(value, bool | int | float) and value in (0, 1) else None


def rating_fault(name: str) -> DataError:
    """Return the error for a column that rates answers."""
    return DataError(
        f"the column {name!r} rates answers as good (true) or bad (false), as KTO needs: {WHY}; "
        f"fix: {ENTRY_POINTS['rated']} trains on ratings; or keep the rows with {name} true, or set data.ignore: [{name}] to learn every answer"
    )


def check_verdicts(name: str, false: int, flags: int, rows: int) -> None:
    """Raise DataError for a column that says of some answers that they are wrong.

    Args:
        name: The column.
        false: The number of rows in which its value is false.
        flags: The number of rows in which its value is a flag.
        rows: The number of rows that have a value.
    """
    if name in VERDICTS and false and flags == rows:
        raise DataError(
            f"the column {name!r} says of {false:,} of {rows:,} answers that they are not good, and the objective sft would learn them "
            f"like the others; fix: {ENTRY_POINTS['rated']} -P data.columns.label={name} trains on ratings; or keep the rows with {name} true, or set data.ignore: [{name}] (-P data.ignore={name}) to learn every answer"
        )


def check_removed(name: str, true: int, flags: int, rows: int) -> None:
    """Raise DataError for a column that says of some rows that they were taken out; see ``check_verdicts``."""
    if name in REMOVED and true and flags == rows:
        raise DataError(
            f"the column {name!r} is true in {true:,} of {rows:,} rows, and they would be learned like the others; "
            f"fix: keep the rows with {name} false, or set data.ignore: [{name}] (-P data.ignore={name}) to use all rows"
        )


def may_be_split(name: str) -> bool:
    """Return whether a column may say which rows are held out."""
    return name.lower() in _SPLITS


def check_split(name: str, values: Collection[str]) -> None:
    """Raise DataError for a column that says which rows are trained on and which are held out."""
    held_out = sorted({value for value in values if value.strip().lower() in _HELD_OUT})
    if held_out and any(value.strip().lower() in _TRAINED for value in values):
        raise DataError(
            f"the column {name!r} divides the rows into those to train on and those to hold out ({', '.join(held_out)}), and "
            f"this file is used as a whole; fix: write each set into its own file and name them in data.train and data.eval, "
            f"or set data.ignore: [{name}] (-P data.ignore={shlex.quote(name)}) to use all rows alike"
        )


def check_later_ratings(name: str, flags: int, rows: int) -> None:
    """Raise DataError for a column with ratings, some of which may begin after the first rows.

    Args:
        name: The column.
        flags: The number of rows in which its value is a flag.
        rows: The number of rows that have a value.
    """
    if name in RATINGS and flags == rows:
        raise rating_fault(name)


def check_later_pairs(name: str, rows: int, of_rows: int) -> None:
    """Raise DataError for a column with the worse answers of pairs that begin after the first rows."""
    if REJECTED.search(name):
        raise DataError(
            f"the column {name!r} has a value in {rows:,} of {of_rows:,} rows, and holds the worse answers of preference pairs: "
            f"{WHY}; fix: {ENTRY_POINTS['pairs']} trains on pairs, if every row is one; or data.ignore: [{name}] (-P data.ignore={shlex.quote(name)}) trains on the other answers alone"
        )


class AnswerLists:
    """The lists of answers in one column. LLaMA-Factory ranks the two answers of a list as [better, worse]."""

    def __init__(self, column: str) -> None:
        self._column, self._pairs, self._longer, self._rows = column, 0, 0, 0

    def add(self, row: Mapping[str, Any]) -> None:
        """Count the answers of a row."""
        answers = row.get(self._column)
        self._rows += answers is not None
        if isinstance(answers, list):
            self._pairs += len(answers) == 2
            self._longer += len(answers) != 2

    def check(self) -> None:
        """Raise DataError where every list has two answers."""
        if not self._pairs or self._longer:
            return
        share = "every row" if self._pairs == self._rows else f"{self._pairs:,} of {self._rows:,} rows"
        raise DataError(
            f"the column {self._column!r} holds two answers in {share}, which LLaMA-Factory ranks as [better, worse]: {WHY}; "
            f"fix: {ENTRY_POINTS['pairs']} trains on pairs; or keep the first of each list, or set data.layout: alpaca to learn both"
        )
