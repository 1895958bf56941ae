"""Read two answers to one prompt and a column that says which of them is better. Standard library only.

Published sets write the verdict in different ways; each is read by the name of its column. A tie has no better answer, so the
row is skipped and counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from mlflow_finetune_plugin.data.columns.ratings import flag_of
from mlflow_finetune_plugin.data.conversations.layouts import PREFERENCE, Layout
from mlflow_finetune_plugin.data.conversations.row_faults import TIE, WRONG_TYPE, RowFault
from mlflow_finetune_plugin.data.conversations.texts import excerpt_of

TWO_ANSWERS = (
    *(("response_0", "response_1"), ("response_1", "response_2"), ("response1", "response2")),
    *(("response_a", "response_b"), ("answer_0", "answer_1"), ("answer_a", "answer_b"), ("output_1", "output_2")),
    *(("completion_a", "completion_b"), ("conversation_a", "conversation_b"), ("human_ref_A", "human_ref_B")),
)
"""The columns of two answers: PKU-SafeRLHF, HelpSteer2 and 3, arenas, WebGPT, AlpacaFarm, SHP."""

_FIRST, _SECOND, _TIE = 0, 1, None
_Verdict = Callable[[Layout, Mapping[str, Any], Any], int | None]


def judged_columns(present: Collection[str], named: Mapping[str, str]) -> dict[str, str] | None:
    """Return the columns of two answers and of the verdict, or None where the file does not have them."""
    for first, second in [(named.get("first", ""), named.get("second", "")), *TWO_ANSWERS]:
        if not {first, second} <= set(present) or {first, second} - {
            named.get("first", first),
            named.get("second", second),
        }:
            continue
        verdict = named.get("verdict") or next(iter(_verdicts(first, present)), None)
        if verdict is not None:
            return {"first": first, "second": second, "verdict": verdict}
    return None


def _verdicts(first: str, present: Collection[str]) -> Iterable[str]:
    """Return the columns of the file that say which answer is better, the clearest first."""
    names = ("labels", *_VERDICTS) if first == "human_ref_A" else _VERDICTS
    side = first.rsplit("_", 1)[-1]
    return (name for name in names if name in present and (name not in _OTHER_SCORE or name == f"score_{side}"))


def as_pair(layout: Layout, row: Mapping[str, Any]) -> Layout:
    """Return the layout of ``row`` as a pair of a better and a worse answer.

    Raises:
        RowFault: the answers are equally good, or the verdict cannot be read.
    """
    column = layout.columns["verdict"]
    verdict = row.get(column)
    read = _labels if column == "labels" else _VERDICTS.get(column, _name)
    better = read(layout, row, verdict)
    if better is None:
        raise RowFault(TIE, f"{column} is {excerpt_of(verdict)}")
    answers = [layout.columns["first"], layout.columns["second"]]
    others = {part: name for part, name in layout.columns.items() if part not in ("first", "second", "verdict")}
    return Layout(PREFERENCE, {**others, "chosen": answers[better], "rejected": answers[1 - better]})


def _fault(layout: Layout, verdict: Any, expected: str) -> RowFault:
    return RowFault(WRONG_TYPE, f"{layout.columns['verdict']} is {excerpt_of(verdict)}, not {expected}")


def _labels(layout: Layout, row: Mapping[str, Any], verdict: Any) -> int | None:
    """Read SHP's ``labels``: 1 where A is better."""
    return {1: _FIRST, 0: _SECOND}[_one_of(layout, verdict, (0, 1))]


def _index(layout: Layout, row: Mapping[str, Any], verdict: Any) -> int | None:
    """Read the position of the better answer, counted from 0."""
    return _one_of(layout, verdict, (0, 1))


def _position(layout: Layout, row: Mapping[str, Any], verdict: Any) -> int | None:
    """Read the position of the better answer, counted from 1, or its name."""
    if isinstance(verdict, str) and not verdict.strip().isdigit():
        return _name(layout, row, verdict)
    return _one_of(layout, verdict, (1, 2)) - 1


def _strength(layout: Layout, row: Mapping[str, Any], verdict: Any) -> int | None:
    """Read how much better the second answer is; negative where the first is better."""
    strength = _number(layout, verdict)
    return _TIE if strength == 0 else _SECOND if strength > 0 else _FIRST


def _score(layout: Layout, row: Mapping[str, Any], verdict: Any) -> int | None:
    """Compare the scores of both answers."""
    column = layout.columns["verdict"]
    other = _OTHER_SCORE[column]
    if row.get(other) is None:
        raise RowFault(WRONG_TYPE, f"{column} has no {other} beside it")
    first, second = _number(layout, verdict), _number(layout, row[other])
    return _TIE if first == second else _FIRST if first > second else _SECOND


def _flags(layout: Layout, row: Mapping[str, Any], verdict: Any) -> int | None:
    """Read the flags ``winner_model_a`` and ``winner_model_b``; a row with neither is a tie."""
    flags = [flag_of(value) for value in (verdict, row.get("winner_model_b"))]
    if None in flags or all(flags):
        raise _fault(layout, verdict, "0 or 1, with the opposite or 0 in winner_model_b")
    return _FIRST if flags[0] else _SECOND if flags[1] else _TIE


def _name(layout: Layout, row: Mapping[str, Any], verdict: Any) -> int | None:
    """Read the name of the better answer: that of its column or its side."""
    text = str(verdict).strip().casefold()
    if text.startswith(("tie", "both", "neither", "draw", "equal")):
        return _TIE
    for place, (part, letter) in enumerate((("first", "a"), ("second", "b"))):
        names = (letter, part, f"model_{letter}", f"response_{letter}", layout.columns[part].casefold())
        if text in names:
            return place
    raise _fault(layout, verdict, f"{layout.columns['first']}, {layout.columns['second']}, a, b or tie")


def _one_of(layout: Layout, verdict: Any, numbers: tuple[int, int]) -> int:
    number = _number(layout, verdict)
    if number not in numbers:
        raise _fault(layout, verdict, f"{numbers[0]} or {numbers[1]}")
    return int(number)


def _number(layout: Layout, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise _fault(layout, value, "a number")
    return number


_VERDICTS: Mapping[str, _Verdict] = {
    "better_response_id": _index,
    "overall_preference": _strength,
    "preference_strength": _strength,
    "winner": _name,
    "winner_model_a": _flags,
    "preference": _position,
    "score_0": _score,
    "score_a": _score,
    "score_1": _score,
}
VERDICTS = (
    "human_ref_A",
    "better_response_id",
    "overall_preference",
    "preference_strength",
    "winner",
    "winner_model_a",
)
"""Columns that are a verdict whatever else a file has, or that such a column belongs to."""
_OTHER_SCORE = {"score_0": "score_1", "score_a": "score_b", "score_1": "score_2"}
