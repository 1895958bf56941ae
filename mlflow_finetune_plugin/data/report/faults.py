"""Word the faults of the data that stop a run."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mlflow_finetune_plugin.data.conversations.row_faults import OVER_EVAL_LIMIT, OVER_LENGTH, TIE
from mlflow_finetune_plugin.data.report.tally import RowTally
from mlflow_finetune_plugin.data.tokens.overlength import NO_LOSS_TOKEN
from mlflow_finetune_plugin.data.tokens.renderer import ChatRenderer
from mlflow_finetune_plugin.data.tokens.trained_tokens import embedding_rows

_EXPECTED_REASONS = (OVER_LENGTH, NO_LOSS_TOKEN, OVER_EVAL_LIMIT, TIE)
"""Reasons that follow from a setting, such as ``overlength: drop``, and ties, which are judgements and not faults. They do not
count towards ``max_skipped``."""


def skipped_fault(tallies: Sequence[RowTally], max_skipped: float) -> str | None:
    """Return which file has too large a share of rows that cannot be used, and why; None where none has."""
    for tally in tallies:
        skipped = sum(rows for reason, rows in tally.reasons.items() if reason not in _EXPECTED_REASONS)
        share = skipped / tally.conversations if tally.conversations else 0.0
        if skipped and share > max_skipped:
            allowed = math.ceil(share * 100) / 100
            return (
                f"{skipped:,} of {tally.conversations:,} rows of {tally.name} cannot be used ({share:.0%}; data.max_skipped allows "
                f"{max_skipped:.0%}): {_reasons(tally)}; fix: correct the rows, data.columns or data.layout, or train without them "
                f"with data.max_skipped: {allowed:g} (-P data.max_skipped={allowed:g})"
            )
    return None


def why_skipped(tallies: Sequence[RowTally]) -> str:
    """Return the reasons for which rows were left out, with their lines and the fix."""
    reasons = [_reasons(tally, f"{tally.name}: ") for tally in tallies if tally.reasons]
    return (
        "; ".join(reasons) or "the weights of the files leave no row"
    ) + "; fix: correct the rows, data.columns or data.layout"


def token_without_row(renderer: ChatRenderer, largest_id: int) -> str | None:
    """Return the fault of a token for which the base has no embedding; None where the base has one for each, or is unknown."""
    rows = embedding_rows(renderer.weights) if renderer.weights is not None else None
    if rows is None or largest_id < rows:
        return None
    token = renderer.tokenizer.convert_ids_to_tokens(largest_id)
    return (
        f"the tokenizer is larger than the base's embedding table: the data has the token {token!r} with id {largest_id:,}, and the "
        f"table has {rows:,} rows; fix: use the tokenizer that belongs to the base, or resize the base with "
        "model.resize_token_embeddings(len(tokenizer)) and save it"
    )


def over_length_fault(rows: Sequence[tuple[str, int, int]], max_length: int) -> str:
    """Return the fault of rows that are too long.

    Args:
        rows: The file, the line and the tokens of each row.
        max_length: The tokens that a row may have.
    """
    first = ", ".join(f"{name} line {line} ({length})" for name, line, length in rows[:5])
    longest = max(length for _, _, length in rows)
    number = "1 row is" if len(rows) == 1 else f"{len(rows):,} rows are"
    return (
        f"{number} longer than max_length ({max_length} tokens): {first}"
        f"{', ...' if len(rows) > 5 else ''}; the longest has {longest:,}; fix: set data.overlength: drop (or truncate), "
        f"or training.max_length: {longest} if the base model allows it"
    )


def _reasons(tally: RowTally, name: str = "") -> str:
    reasons = []
    for skip in tally.report().skipped:
        lines = ", ".join(map(str, skip.lines[:5]))
        detail = f" ({skip.detail})" if skip.detail else ""
        reasons.append(f"{name}{skip.rows} {skip.reason}{detail} in line {lines}")
    return "; ".join(reasons)
