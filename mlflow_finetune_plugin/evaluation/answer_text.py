"""The text of an answer, by one rule for training data, proof, pyfunc and serving.

This file travels inside logged models and needs nothing of mlflow-finetune.
"""

from collections.abc import Sequence
from typing import Any

HALF_CHARACTER = "\ufffd"


def answer_text(written: str, prefix: str) -> str:
    """Return an answer without blanks at its ends, and without what the chat template writes before each answer.

    An answer that was cut within a character ends before it: some engines write a replacement character there, others nothing.

    Args:
        written: What the model wrote.
        prefix: What the chat template writes before each answer, such as an empty think block.
    """
    return without_end(without_end(written).lstrip().removeprefix(prefix.strip()).lstrip())


def without_end(text: str) -> str:
    """Return a text without blanks and without half a character at its end."""
    end = len(text)
    while end and (text[end - 1].isspace() or text[end - 1] == HALF_CHARACTER):
        end -= 1
    return text[:end]


def decoded_answer(tokenizer: Any, ids: Sequence[int], prefix: str) -> str:
    """Return the text of an answer's tokens, which end before the stop token.

    Blanks before punctuation stay: engines do not remove them, whatever the tokenizer's ``clean_up_tokenization_spaces`` says.
    """
    written = tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return answer_text(str(written), prefix)
