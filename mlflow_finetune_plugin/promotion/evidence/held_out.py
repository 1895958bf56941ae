"""Held-out rows as a run records them, so that other versions answer the same rows; and the recorded answers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlflow_finetune_plugin.errors import GateError
from mlflow_finetune_plugin.evaluation.clusters import clusters_of
from mlflow_finetune_plugin.evaluation.comparison import AnswerSet
from mlflow_finetune_plugin.evaluation.metric_modules import is_reward
from mlflow_finetune_plugin.evaluation.results import EvalRow

FILE = "held_out.json"


@dataclass(frozen=True)
class HeldOut:
    """The held-out rows of a run.

    Args:
        rows: The rows.
        metrics: Packaged metrics and metric files, each file with its SHA-256.
        max_new_tokens: The longest answer of any version.
        digest: SHA-256 (hex) of all that decides the answers: the rows and the length.
    """

    rows: tuple[EvalRow, ...]
    metrics: Mapping[str, str | None]
    max_new_tokens: int
    digest: str

    @property
    def ids(self) -> tuple[str, ...]:
        """One id per row: its position, file and line."""
        return tuple(f"{i}:{row.source}:{row.line}" for i, row in enumerate(self.rows))

    @property
    def clusters(self) -> tuple[str, ...] | None:
        """The cluster of each row; None where no two rows share one (see ``clusters_of``)."""
        return clusters_of(self.rows)


def held_out_json(
    rows: Sequence[EvalRow], metrics: Sequence[str], max_new_tokens: int, reward_digest: str | None = None
) -> str:
    """Return held-out rows as the JSON that ``read_held_out`` reads.

    ``reward_digest`` says with which rewards answers are scored (SHA-256, hex).
    """

    def digest(metric: str) -> str | None:
        return file_digest(metric) if metric.endswith(".py") else reward_digest if is_reward(metric) else None

    content = {
        "metrics": {metric_key(metric): digest(metric) for metric in metrics},
        "max_new_tokens": max_new_tokens,
        "rows": [_row(row) for row in rows],
    }
    return json.dumps(content, ensure_ascii=False)


def metric_key(metric: str) -> str:
    """Return the name of a metric without the folder of its file."""
    return Path(metric).name if metric.endswith(".py") else metric


def read_held_out(text: str, what: str) -> HeldOut:
    """Read what ``held_out_json`` wrote. ``what`` names it in errors. Raises GateError for anything else."""
    try:
        content: dict[str, Any] = json.loads(text)
        rows = tuple(_row_of(row) for row in content["rows"])
        metrics = {str(name): str(digest) if digest else None for name, digest in content["metrics"].items()}
        longest = int(content["max_new_tokens"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise GateError(f"{what}: has no held-out rows: {type(error).__name__} {error}; fix: train it again") from error
    if not rows or longest < 1:
        raise GateError(f"{what}: has no rows, or no room for answers; fix: train it again, with held-out rows")
    return HeldOut(rows, metrics, longest, rows_digest(rows, longest))


def rows_digest(rows: Sequence[EvalRow], max_new_tokens: int) -> str:
    """Return the SHA-256 (hex) of questions, references, their order and the longest answer."""
    content = [max_new_tokens, [_row(row) for row in rows]]
    return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()


def file_digest(path: str | Path) -> str:
    """Return the SHA-256 (hex) of a file. Raises OSError."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def proof_answers(table: Mapping[str, Any], name: str, rows: Sequence[EvalRow], what: str) -> AnswerSet:
    """Return recorded answers from the table of a proof.

    Args:
        table: The table.
        name: ``base`` or ``adapter``: whose answers.
        rows: The rows that the table must hold.
        what: The name of the table in errors.

    Raises:
        GateError: The table is not of these rows.
    """
    columns, data = table.get("columns"), table.get("data")
    try:
        entries = [dict(zip(columns, values, strict=True)) for values in data]  # type: ignore[arg-type, union-attr]
        if columns is not None and f"{name}_rejected_reward" in columns:  # a reward model's pairs
            sides = [[float(e[f"{name}{side}"]) for e in entries] for side in ("_reward", "_rejected_reward")]
            return _checked(AnswerSet.of_rewards(*map(np.array, sides)), entries, rows, what)
        answers = [str(entry[f"{name}_answer"]) for entry in entries]
        pairs = list(zip(entries, rows, strict=True))
        nats = np.array([_number(entry[f"{name}_nats_per_token"]) * len(row.completion_ids) for entry, row in pairs])
        rejected = [
            float(entry.get(f"{name}_rejected_nats_per_token", np.nan)) * len(row.rejected_ids) for entry, row in pairs
        ]
        rewards = {
            column.removeprefix(f"{name}_"): np.array([_number(entry[column]) for entry in entries])
            for column in map(str, columns or ())
            if column.startswith(f"{name}_") and is_reward(column.removeprefix(f"{name}_"))
        }
        has_pairs = any(row.rejected is not None for row in rows)
        found = AnswerSet(answers, nats, np.array(rejected) if has_pairs else None, rewards=rewards)
        return _checked(found, entries, rows, what)
    except (TypeError, KeyError, ValueError) as error:
        raise GateError(f"{what}: is not a table of these rows: {error}; fix: train it again") from error


def _checked(answers: AnswerSet, entries: Sequence[Mapping[str, Any]], rows: Sequence[EvalRow], what: str) -> AnswerSet:
    if any(entry["reference"] != row.reference for entry, row in zip(entries, rows, strict=True)):
        raise GateError(f"{what}: its references are not those of the held-out rows; fix: find out who changed it")
    return answers


def _number(value: Any) -> float:
    """Return a number of a proof's table; NaN for a value that was not measured."""
    return float("nan") if value is None else float(value)


def answer_set_content(answers: AnswerSet) -> dict[str, Any]:
    """Return answers as JSON values."""
    rejected = {} if answers.rejected_nats is None else {"rejected_nats": answers.rejected_nats.tolist()}
    return {"answers": answers.answers, "nats": answers.nats.tolist(), **rejected}


def answer_set_from(content: Mapping[str, Any]) -> AnswerSet:
    """Return the answers that ``answer_set_content`` describes."""
    rejected = content.get("rejected_nats")
    return AnswerSet(
        [str(answer) for answer in content["answers"]],
        np.asarray(content["nats"], dtype=np.float64),
        None if rejected is None else np.asarray(rejected, dtype=np.float64),
    )


def _row(row: EvalRow) -> dict[str, Any]:
    return {
        "messages": list(row.messages),
        "prompt_ids": list(row.prompt_ids),
        "completion_ids": list(row.completion_ids),
        "reference": row.reference,
        "task": row.task,
        "source": Path(row.source).name,
        "line": row.line,
        **({"answer": row.answer} if row.answer is not None else {}),
        **({"group": row.group} if row.group is not None else {}),
        **({"rejected": row.rejected, "rejected_ids": list(row.rejected_ids)} if row.rejected is not None else {}),
        **({"fields": row.fields} if row.fields else {}),
    }


def _row_of(content: Mapping[str, Any]) -> EvalRow:
    return EvalRow(
        messages=tuple(dict(message) for message in content["messages"]),
        prompt_ids=tuple(int(i) for i in content["prompt_ids"]),
        completion_ids=tuple(int(i) for i in content["completion_ids"]),
        reference=str(content["reference"]),
        task=str(content["task"]),
        source=str(content["source"]),
        line=int(content["line"]),
        answer=dict(content["answer"]) if content.get("answer") else None,
        group=str(content["group"]) if "group" in content else None,
        rejected=str(content["rejected"]) if "rejected" in content else None,
        rejected_ids=tuple(int(i) for i in content.get("rejected_ids", ())),
        fields=str(content.get("fields", "")),
    )
