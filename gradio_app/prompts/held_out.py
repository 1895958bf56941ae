"""The held-out rows of a version's training run as a prompt set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mlflow_finetune_plugin.errors import DataError
from mlflow_finetune_plugin.promotion.evidence.answers import are_unseen
from mlflow_finetune_plugin.promotion.evidence.proven_version import read_version
from mlflow_finetune_plugin.store.names import BASE
from mlflow_finetune_plugin.votes.prompt_sets import MOST_PROMPTS, PromptSet, PromptSetRow, prompt_set

if TYPE_CHECKING:
    from mlflow import MlflowClient


def held_out_set(client: MlflowClient, model: str, version: str, *, others: Sequence[str] = ()) -> PromptSet:
    """Return the rows that ``version`` was proven on, without rows that it or ``others`` were trained on.

    Raises DataError where the run has no row with a question, GateError where the rows do not match the run's digest,
    MoveError for a version that does not exist, and TrackingError.
    """
    proven = read_version(client, model, version)
    if proven.held_out is None:
        raise DataError(
            f"{proven.uri}: its training run has no held-out rows; fix: train with an eval file or a split, or give a "
            "file of prompts"
        )
    notes: list[str] = []
    sides = [proven, *(read_version(client, model, other) for other in others if other not in (version, BASE))]
    unseen = are_unseen(proven.held_out.rows, sides, notes)
    rows = [row for row, is_new in zip(proven.held_out.rows, unseen, strict=True) if is_new]
    questions = [row for row in rows if row.messages]
    if not questions:
        why = "they are texts without a question" if rows else "all of them were trained on"
        raise DataError(f"{proven.uri}: no held-out row can be used: {why}; fix: give a file of prompts")
    if len(questions) > MOST_PROMPTS:
        notes.append(f"{proven.uri}: the first {MOST_PROMPTS:,} of {len(questions):,} held-out rows are used")
    prompts = [
        PromptSetRow(f"{row.source}:{row.line}", row.messages, row.reference) for row in questions[:MOST_PROMPTS]
    ]
    return prompt_set(f"held-out rows of version {version}", prompts, notes)
