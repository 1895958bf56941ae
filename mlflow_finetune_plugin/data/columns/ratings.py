"""Recognise the columns that rate or rank answers by their names and values, in the first rows of a file and in all of them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import Any

from mlflow_finetune_plugin.errors import DataError

WHY = "the objective sft learns from single answers, and no objective of this version learns from"
REJECTED = re.compile(r"(^|_)(rejected|non_preferred|dispreferred)(_|$)|^response_k$")
"""The names of columns that hold the worse answer of a pair."""
RATINGS = ("kto_tag", "label", "thumbs_up")
"""Columns that say whether an answer is good, where every value is a flag."""

_FLAGS = ("true", "false", "0", "1")


def is_flag(value: Any) -> bool:
    """Return whether a value can say that an answer is good or bad: a boolean, 0 or 1, also as text. Null says nothing."""
    if isinstance(value, str):
        return value.strip().lower() in _FLAGS
    return value is None or (isinstance(value, bool | int | float) and value in (0, 1))


def rating_fault(name: str) -> DataError:
    """Return the error for a column that rates answers."""
    return DataError(
        f"the column {name!r} rates answers as good (true) or bad (false), as KTO needs: {WHY} ratings; "
        f"fix: keep the rows with {name} true, or set data.ignore: [{name}] to learn every answer"
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
            f"{WHY} pairs; fix: data.ignore: [{name}] (-P data.ignore={shlex.quote(name)}) trains on the other answers alone"
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
            f"the column {self._column!r} holds two answers in {share}, which LLaMA-Factory ranks as [better, worse]: {WHY} "
            "ranked answers; fix: keep the first of each list, or set data.layout: alpaca to learn both"
        )
