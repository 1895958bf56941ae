"""Find the columns of pairs, of rated answers and of prompts by their names and values. Standard library only."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from mlflow_finetune_plugin.data.columns.ratings import RATINGS, is_flag
from mlflow_finetune_plugin.data.columns.remainder import is_description
from mlflow_finetune_plugin.data.conversations.layouts import (
    ANSWER_PAIRS,
    CHAT_COLUMNS,
    COMPOSED,
    FURTHER_ANSWER_PAIRS,
    JUDGED,
    LABEL_COLUMNS,
    PREFERENCE,
    PROMPT_COLUMNS,
    PROMPTS,
    RANKED,
    RATED,
    SYSTEM_COLUMNS,
    TEXT_COLUMNS,
    WITH_INPUT,
    Layout,
)
from mlflow_finetune_plugin.data.conversations.row_forms.dialogues import is_transcript
from mlflow_finetune_plugin.data.conversations.row_forms.judged import judged_columns

Rows = Sequence[Mapping[str, Any]]

_SIDES = (
    *(("chosen", "rejected"), ("preferred_output", "non_preferred_output"), ("chosen_response", "rejected_response")),
    *(("chosen_conversations", "rejected_conversations"), ("chosen_messages", "rejected_messages")),
    *(("response_j", "response_k"), ("preferred", "dispreferred"), ("response", "rejected_response")),
    *(("messages", "rejected_messages"), ("messages", "rejected_response")),
    *(("accepted", "rejected"), ("better", "worse"), ("winner", "loser")),
)
"""The columns of the better and of the worse answer: TRL, OpenAI, Argilla, torchtune, StackExchange's pairs, ms-swift, plain words."""
_COMPLETIONS = ("completion", "response", "output", "answer", "generation")
_LONG_PROMPTS = ("context", "history")
"""The prompts of HelpSteer3 and SHP, beside judged answers. Beside others these columns stand before a prompt."""
_INPUTS = tuple(dict.fromkeys((instruction, context) for instruction, context, _ in WITH_INPUT))


class FormColumns:
    """The columns of a file, the parts that the user named, and the layouts that they make."""

    def __init__(
        self, rows: Rows, named: Mapping[str, str] | None = None, composed: Collection[str] | None = None
    ) -> None:
        self._rows, self._named, self._composed = rows, dict(named or {}), composed
        names = dict.fromkeys(str(name) for row in rows for name, value in row.items() if value is not None)
        self.present = [name for name in names if name not in (composed or ())]

    def layout(self, name: str) -> Layout | None:
        """Return this layout with its columns, or None where the file does not have them."""
        columns = {
            PREFERENCE: self._pair,
            RANKED: self._ranked,
            JUDGED: self._judged,
            RATED: self._rated,
            PROMPTS: self._prompts,
        }[name]()
        return None if columns is None else Layout(name, columns)

    def _pair(self) -> dict[str, str] | None:
        sides = self._sides()
        if sides is None:
            return None
        chosen, rejected = sides
        has_question = any(_holds_question(row.get(chosen)) for row in self._rows)
        others = PROMPT_COLUMNS if not has_question else tuple(n for n in PROMPT_COLUMNS if n not in CHAT_COLUMNS)
        margin = self._named.get("margin") or self._first(("margin",))
        return {
            **self._before_answer(self._prompt(others, without=sides)),
            **{"chosen": chosen, "rejected": rejected},
            **({"margin": margin} if margin else {}),
        }

    def _sides(self) -> tuple[str, str] | None:
        """Return the columns of the better and of the worse answer."""
        chosen, rejected = self._named.get("chosen"), self._named.get("rejected")
        if chosen and rejected:
            return chosen, rejected
        for better, worse in _SIDES:
            sides = chosen or better, rejected or worse
            if (chosen, rejected) in ((None, None), (better, None), (None, worse)) and all(
                map(self._holds_answer, sides)
            ):
                return sides
        sides = chosen or "chosen", rejected or "rejected"
        return sides if (chosen or rejected) and all(map(self._holds_answer, sides)) else None

    def _ranked(self) -> dict[str, str] | None:
        """Return the columns of LLaMA-Factory's earlier form, with ``[better, worse]`` in the column of the answer."""
        output = self._named.get("output") or "output"
        answers = [row[output] for row in self._rows if row.get(output) is not None]
        prompt = self._prompt(PROMPT_COLUMNS, without=(output,))
        if not answers or prompt is None or not all(isinstance(pair, list) and len(pair) == 2 for pair in answers):
            return None
        return {**self._before_answer(prompt), "output": output}

    def _judged(self) -> dict[str, str] | None:
        """Return the columns of two answers and of the verdict on them."""
        columns = judged_columns(self.present, self._named)
        if columns is None or not all(map(self._holds_answer, (columns["first"], columns["second"]))):
            return None
        has_question = any(_holds_question(row.get(columns["first"])) for row in self._rows)
        others = [name for name in PROMPT_COLUMNS if not (has_question and name in CHAT_COLUMNS)]
        prompt = self._prompt((*others, *_LONG_PROMPTS), without=tuple(columns.values()))
        if prompt in _LONG_PROMPTS:
            return {"prompt": prompt, **columns}
        return {**self._before_answer(prompt), **columns}

    def _rated(self) -> dict[str, str] | None:
        label = self._named.get("label") or next((name for name in RATINGS if self._holds_flags(name)), None)
        if label is None:
            return None
        chats = (self._named["messages"],) if "messages" in self._named else CHAT_COLUMNS
        texts = tuple(name for name in PROMPT_COLUMNS if name not in CHAT_COLUMNS)
        completion = self._named.get("completion") or self._first(_COMPLETIONS)
        prompt = self._prompt(
            PROMPT_COLUMNS if "completion" in self._named else texts, without=(label, completion or "")
        )
        if completion and prompt and "messages" not in self._named:
            return {**self._before_answer(prompt), "completion": completion, "label": label}
        chat = self._first(chats)
        return None if chat is None else {**self._before_answer(None), "messages": chat, "label": label}

    def _prompts(self) -> dict[str, str] | None:
        label = self._named.get("label") or self._first(LABEL_COLUMNS)
        texts = TEXT_COLUMNS if label else ()
        prompt = self._prompt((*PROMPT_COLUMNS, *texts), without=(label or "", self._named.get("completion", "")))
        if prompt is None:
            return None
        columns = self._before_answer(prompt)
        if "completion" in self._named or "label" in self._named:
            return {**columns, **{part: self._named[part] for part in ("completion", "label") if part in self._named}}
        pairs = (*ANSWER_PAIRS, *FURTHER_ANSWER_PAIRS, ("instruction", "output"), ("query", "answer"))
        usual = _COMPLETIONS if prompt == COMPOSED else [answer for asked, answer in pairs if asked == prompt]
        if completion := self._first(usual) or next(iter(self._sides() or ()), None):
            return {**columns, "completion": completion}
        return {**columns, "label": label} if label and prompt in TEXT_COLUMNS else columns

    def _prompt(self, names: Iterable[str], without: Collection[str]) -> str | None:
        if self._composed is not None:
            return COMPOSED
        return self._named.get("prompt") or self._first(name for name in names if name not in without)

    def _before_answer(self, prompt: str | None) -> dict[str, str]:
        """Return the parts before the answer, in the order in which a conversation has them."""
        system = self._named.get("system") or self._first(SYSTEM_COLUMNS)
        history = self._named.get("history") or (self._first(("history",)) if prompt else None)
        context = self._named.get("input") or self._first(name for asked, name in _INPUTS if asked == prompt)
        parts = {"system": system, "history": history, "prompt": prompt, "input": context}
        return {part: column for part, column in parts.items() if column}

    def _first(self, names: Iterable[str]) -> str | None:
        return next((name for name in names if name in self.present), None)

    def possible_prompts(self, layout: Layout) -> list[str]:
        """Return the columns that may hold the prompt of pairs which are texts without a prompt that the layout knows."""
        sides = self._sides()
        if layout.name != PREFERENCE or "prompt" in layout.columns or sides is None:
            return []
        values = [row[side] for row in self._rows for side in sides if row.get(side) is not None]
        if not all(isinstance(value, str) and not is_transcript(value) for value in values):
            return []
        others = [name for name in self.present if name not in layout.columns.values() and not is_description(name)]
        return [name for name in others if self._holds_answer(name)]

    def _holds_answer(self, name: str) -> bool:
        """Return whether the first value of a column is a text or turns, and not a score."""
        values = (row[name] for row in self._rows if row.get(name) is not None)
        return name in self.present and isinstance(next(values, None), str | list | dict)

    def _holds_flags(self, name: str) -> bool:
        return name in self.present and all(is_flag(row.get(name)) for row in self._rows)


def _holds_question(value: Any) -> bool:
    """Return whether an answer is a whole dialogue, which begins with its own prompt."""
    if is_transcript(value):
        return True
    turns = value if isinstance(value, list) else []
    return any(isinstance(turn, dict) and turn.get("role", turn.get("from")) in ("user", "human") for turn in turns)
