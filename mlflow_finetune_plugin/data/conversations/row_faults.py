"""The reasons why a row cannot be used for training. They are short and fixed, so that the report can count them."""

from __future__ import annotations

OVER_LENGTH = "over length"
OVER_EVAL_LIMIT = "over eval.max_rows"
EMPTY_PROMPT = "empty prompt"
EMPTY_COMPLETION = "empty completion"
EMPTY_TEXT = "empty text"
NULL_FIELD = "null field"
MISSING_FIELD = "missing field"
WRONG_TYPE = "wrong type"
BROKEN_UNICODE = "broken unicode"
NO_ASSISTANT_TURN = "no assistant turn"
NO_LEARNT_TURN = "no turn to learn"
ROLES_OUT_OF_ORDER = "roles out of order"
ENDS_WITH_USER_TURN = "ends with a user turn"
EQUAL_ANSWERS = "equal answers"
TIE = "tie"
PROMPTS_DIFFER = "prompts differ"
UNSUPPORTED_ROLE = "unsupported role"
UNSUPPORTED_FIELD = "unsupported field"
PICTURES_AND_PLACES = "pictures and their places differ in number"
TOO_MANY_PICTURES = "too many pictures"
TEMPLATE_FAILS = "prompt template fails"
SEVERAL_ANSWERS = "an answer of several turns that this chat template cannot write as one text"


class RowFault(Exception):
    """A row that cannot be used. The report counts ``reason`` and shows the ``detail`` of the first such row."""

    def __init__(self, reason: str, detail: str = "") -> None:
        self.reason, self.detail = reason, detail
        super().__init__(f"{reason}: {detail}" if detail else reason)
