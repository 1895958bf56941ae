"""Which rows of a must-pass file a candidate did not pass: what a person asks first who reads that it was refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mlflow_finetune_plugin.evaluation.comparison import Side
from mlflow_finetune_plugin.types import EvalRow

_SHOWN = 3
_LONGEST = 60


def tell_missed_rows(name: str, rows: Sequence[EvalRow], side: Side, scores: Sequence[float], best: float) -> list[str]:
    """How many scored below ``best``, and the first of them with question, answer and reference, a line each; none: nothing."""
    missed = [i for i, score in enumerate(scores) if score < best]
    if not missed:
        return []
    told = f"{name}: {len(missed):,} of {len(rows):,} rows missed{', the first ones' if len(missed) > _SHOWN else ''}:"
    return [told, *(_told(rows[i], side.answers[i]) for i in missed[:_SHOWN])]


def _told(row: EvalRow, answer: str) -> str:
    question = str(row.messages[-1]["content"]) if row.messages else "the text"
    return (
        f"{Path(row.source).name} line {row.line}: {_short(question)} was answered {_short(answer)}, "
        f"not {_short(row.reference)}"
    )


def _short(text: str) -> str:
    line = " ".join(text.split())
    return repr(line if len(line) <= _LONGEST else f"{line[: _LONGEST - 3]}...")
