"""Read answers that are rated good or bad, and pairs as one good and one bad answer. Standard library only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from mlflow_finetune_plugin.data.columns.ratings import flag_of
from mlflow_finetune_plugin.data.conversations.conversion import Conversation, check_fields, developer_turns, value_of
from mlflow_finetune_plugin.data.conversations.layouts import RATED, Layout
from mlflow_finetune_plugin.data.conversations.row_faults import EMPTY_PROMPT, WRONG_TYPE, RowFault
from mlflow_finetune_plugin.data.conversations.row_forms.dialogues import (
    answer_turns,
    prompt_turns,
    row_tools,
    whole_dialogue,
)
from mlflow_finetune_plugin.data.conversations.row_forms.pairs import pairs_of
from mlflow_finetune_plugin.data.conversations.texts import excerpt_of
from mlflow_finetune_plugin.data.conversations.turns.chat import as_context, in_turn, with_tools
from mlflow_finetune_plugin.errors import DataError
from mlflow_finetune_plugin.evaluation.results import Message


def rated_of(layout: Layout, row: Mapping[str, Any]) -> list[Conversation]:
    """Return the rated answer of ``row``, or the good and the bad one of each of its pairs.

    Raises:
        RowFault: the row cannot be used for training.
    """
    if layout.name != RATED:
        pairs = pairs_of(layout, row)
        return [
            Conversation(messages, pair.developer_turns, is_good=is_good)
            for pair in pairs
            for messages, is_good in ((pair.messages, True), (pair.rejected, False))
        ]
    check_fields(layout, row)
    turns = _turns(layout, row)
    last = max((index for index, turn in enumerate(turns) if turn["role"] == "assistant"), default=len(turns))
    messages = with_tools(in_turn([*map(as_context, turns[:last]), *turns[last:]]), row_tools(layout, row))
    developers = developer_turns(row.get(column) for column in layout.columns.values())
    return [Conversation(messages, developers, is_good=_rating(layout, row))]


class RatingCounts:
    """How many answers of a file are good and how many are bad."""

    def __init__(self) -> None:
        self.good, self.bad = 0, 0

    def add(self, conversations: Iterable[Conversation]) -> None:
        """Count the answers of a row."""
        for conversation in conversations:
            self.good += conversation.is_good is True
            self.bad += conversation.is_good is False

    def check(self) -> None:
        """Raise DataError where all answers have the same rating."""
        if (self.good == 0) == (self.bad == 0):
            return
        rating, other, count = ("good", "bad", self.good) if self.good else ("bad", "good", self.bad)
        also = "; or -e lora trains on the good answers alone" if self.good else ""
        raise DataError(
            f"all {count:,} rated answers are {rating}, and this objective learns from the difference between good and bad "
            f"ones; fix: add {other} answers{also}"
        )


def _turns(layout: Layout, row: Mapping[str, Any]) -> list[Message]:
    """Return the turns of the prompt and of the rated answer."""
    part = "messages" if "messages" in layout.columns else "completion"
    answer = answer_turns(layout, row, value_of(layout, row, part), layout.columns[part])
    turns = whole_dialogue(prompt_turns(layout, row), answer)
    if not any(turn["role"] == "user" for turn in turns):
        raise RowFault(EMPTY_PROMPT, layout.columns[part])
    return turns


def _rating(layout: Layout, row: Mapping[str, Any]) -> bool:
    value = value_of(layout, row, "label")
    rating = flag_of(value)
    if rating is None:
        raise RowFault(WRONG_TYPE, f"{layout.columns['label']} is {excerpt_of(value)}, not true or false")
    return rating
