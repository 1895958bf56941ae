"""Apply ``data.overlength`` to rows that are longer than max_length. Every change is counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from mlflow_finetune_plugin.data.conversations.conversion import is_document
from mlflow_finetune_plugin.data.conversations.row_faults import OVER_LENGTH
from mlflow_finetune_plugin.data.tokens.renderer import Example
from mlflow_finetune_plugin.evaluation.results import Message

NO_LOSS_TOKEN = "no loss token left"


@dataclass(frozen=True, slots=True)
class Fitting:
    """The examples of a row that fit, or the reason why none do."""

    examples: list[Example]
    longest: int
    reason: str | None = None
    detail: str = ""
    counts: Counter[str] | None = None


def fitted(examples: list[Example], limit: int, overlength: str, messages: Sequence[Message], is_eval: bool) -> Fitting:
    """Return the examples of one row, changed by ``overlength`` where one has more than ``limit`` tokens."""
    longest = max([len(example.input_ids) for example in examples])
    if longest <= limit:
        return Fitting(examples, longest)
    if any(example.pictures for example in examples):  # a part of a picture's tokens would be no picture
        detail = f"{longest} tokens; a row with pictures is never cut"
        return Fitting([], longest, OVER_LENGTH, detail, Counter(over_length=1))
    if overlength == "truncate":
        return _truncated(examples, limit, longest, is_eval)
    if overlength == "split" and is_document(messages):
        return Fitting(_pieces(examples[0], limit), longest, counts=Counter(over_length=1))
    return Fitting([], longest, OVER_LENGTH, f"{longest} tokens", Counter(over_length=1))


def _pieces(document: Example, limit: int) -> list[Example]:
    """Cut a document into pieces of ``limit`` tokens. Each starts with the last token of the one before, so every token is trained on."""
    ids, pieces = document.input_ids, []
    for start in range(0, len(ids) - 1, limit - 1):
        piece = ids[start : start + limit]
        pieces.append(Example(piece, [0] + [1] * (len(piece) - 1)))
    return pieces


def _truncated(examples: list[Example], limit: int, longest: int, is_eval: bool) -> Fitting:
    fitting, counts = [], Counter(over_length=1)
    for example in examples:
        if len(example.input_ids) <= limit:
            fitting.append(example)
            continue
        start, end = example.last_turn()
        cut = Example(example.input_ids[:limit], example.loss_mask[:limit], example.is_boundary_split)
        counts.update(truncated=1, truncated_end_of_turn=int(end > limit), truncated_answer=int(start >= limit))
        if any(cut.loss_mask):
            fitting.append(cut)
    prompt_fills_it = examples[-1].last_turn()[0] >= limit  # no room to generate an answer
    if not fitting or (is_eval and prompt_fills_it):
        return Fitting([], longest, NO_LOSS_TOKEN, counts=counts)
    return Fitting(fitting, longest, counts=counts)
