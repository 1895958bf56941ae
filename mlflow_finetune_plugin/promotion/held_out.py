"""Held-out rows as a run keeps them, so that another version can be asked the very same; and what a side answered."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlflow_finetune_plugin.errors import GateError
from mlflow_finetune_plugin.evaluation.comparison import AnswerSet
from mlflow_finetune_plugin.evaluation.results import EvalRow

FILE = "held_out.json"
TABLE = "rows.json"


@dataclass(frozen=True)
class HeldOut:
    """``metrics``: packaged names, or files that lie beside, with their sha256; ``max_new_tokens``: that an answer may have, whoever is asked.

    ``digest`` (sha256, hex) is of all that decides the answers: the rows and the length.
    """

    rows: tuple[EvalRow, ...]
    metrics: Mapping[str, str | None]
    max_new_tokens: int
    digest: str

    @property
    def ids(self) -> tuple[str, ...]:
        """One a row: its place, and where it came from."""
        return tuple(f"{i}:{row.source}:{row.line}" for i, row in enumerate(self.rows))

    @property
    def clusters(self) -> tuple[str, ...] | None:
        """Rows with the same question, or cut from the same row of a file, are one draw; None where no two are."""
        root: dict[str, str] = {}

        def find(key: str) -> str:
            while root.setdefault(key, key) != key:
                key = root[key]
            return key

        keys = []
        for row in self.rows:
            place = json.dumps([row.source, row.line])
            asked = json.dumps(list(row.messages), ensure_ascii=False) if row.messages else place
            root[find(asked)] = find(place)
            keys.append(place)
        found = tuple(find(key) for key in keys)
        return found if len(set(found)) < len(found) else None


def held_out_json(rows: Sequence[EvalRow], metrics: Sequence[str], max_new_tokens: int) -> str:
    content = {
        "metrics": {Path(metric).name: file_digest(metric) if metric.endswith(".py") else None for metric in metrics},
        "max_new_tokens": max_new_tokens,
        "rows": [_row(row) for row in rows],
    }
    return json.dumps(content, ensure_ascii=False)


def read_held_out(text: str, what: str) -> HeldOut:
    """Raises GateError for what ``held_out_json`` has not written."""
    try:
        content: dict[str, Any] = json.loads(text)
        rows = tuple(_row_of(row) for row in content["rows"])
        metrics = {str(name): str(digest) if digest else None for name, digest in content["metrics"].items()}
        longest = int(content["max_new_tokens"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise GateError(
            f"{what}: holds no held-out rows: {type(error).__name__} {error}; fix: train it again"
        ) from error
    if not rows or longest < 1:
        raise GateError(f"{what}: holds no rows, or no room for answers; fix: train it again, with held-out rows")
    return HeldOut(rows, metrics, longest, rows_digest(rows, longest))


def rows_digest(rows: Sequence[EvalRow], max_new_tokens: int) -> str:
    """sha256 (hex) of questions, references and their order, and of how long an answer may be."""
    content = [max_new_tokens, [_row(row) for row in rows]]
    return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()


def file_digest(path: str | Path) -> str:
    """sha256 (hex). Raises OSError."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def proof_answers(table: Mapping[str, Any], name: str, rows: Sequence[EvalRow], what: str) -> AnswerSet:
    """What ``base`` or ``adapter`` answered, from the table of a proof. Raises GateError when it is not of these rows."""
    columns, data = table.get("columns"), table.get("data")
    try:
        told = [dict(zip(columns, row, strict=True)) for row in data]  # type: ignore[arg-type, union-attr]
        answers = [str(row[f"{name}_answer"]) for row in told]
        nats = np.array(
            [
                float(row[f"{name}_nats_per_token"]) * len(kept.completion_ids)
                for row, kept in zip(told, rows, strict=True)
            ]
        )
        is_same = all(row["reference"] == kept.reference for row, kept in zip(told, rows, strict=True))
    except (TypeError, KeyError, ValueError) as error:
        raise GateError(f"{what}: is no table of these rows: {error}; fix: train it again") from error
    if not is_same:
        raise GateError(f"{what}: its references are not those of the held-out rows; fix: find out who changed it")
    return AnswerSet(answers, nats)


def answer_set_content(side: AnswerSet) -> dict[str, Any]:
    return {"answers": side.answers, "nats": side.nats.tolist()}


def answer_set_from(told: Mapping[str, Any]) -> AnswerSet:
    return AnswerSet([str(answer) for answer in told["answers"]], np.asarray(told["nats"], dtype=np.float64))


def _row(row: EvalRow) -> dict[str, Any]:
    return {
        "messages": list(row.messages),
        "prompt_ids": list(row.prompt_ids),
        "completion_ids": list(row.completion_ids),
        "reference": row.reference,
        "task": row.task,
        "source": Path(row.source).name,
        "line": row.line,
    }


def _row_of(told: Mapping[str, Any]) -> EvalRow:
    return EvalRow(
        messages=tuple(dict(message) for message in told["messages"]),
        prompt_ids=tuple(int(i) for i in told["prompt_ids"]),
        completion_ids=tuple(int(i) for i in told["completion_ids"]),
        reference=str(told["reference"]),
        task=str(told["task"]),
        source=str(told["source"]),
        line=int(told["line"]),
    )
