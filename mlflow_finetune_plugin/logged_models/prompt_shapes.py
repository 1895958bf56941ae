"""Conversations of several shapes as a version's tokenizer renders them, for the certificate of serving.

Probes come from the held-out rows, so they often have one shape: one turn of a user. An engine that renders system turns or
earlier answers in another way would not be noticed on them.
"""

from __future__ import annotations

from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

_MOST_TOKENS = 128
_ANSWER = {"role": "assistant", "content": "A pear."}


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


SHAPES = {
    "a system turn": [{"role": "system", "content": "Be brief."}, _user("Name a fruit.")],
    "several turns": [_user("Name a fruit."), _ANSWER, _user("Another?"), _ANSWER, _user("A third?")],
    "a long prompt": [_user("one two three " * 20)],
    "unusual characters": [_user("  Ünï \u4f60\u597d\t\U0001f600 {{ 1 }} <b> \\n 'x' \"y\"\n\n")],
    "an empty prompt": [_user("")],
}


def render_shapes(tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> list[dict[str, Any]]:
    """Return ``shape``, ``messages`` and ``prompt_ids`` of each conversation that the chat template takes.

    Args:
        tokenizer: A tokenizer with a chat template. None are rendered if that contains the current date.
        max_tokens: Longer prompts are left out, as are those above 128 tokens.
    """
    if "strftime_now" in str(tokenizer.chat_template):
        return []
    rendered = []
    for shape, messages in SHAPES.items():
        try:
            text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except (TemplateError, TypeError):  # Gemma's, for example, takes no system turn
            continue
        ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        if 0 < len(ids) <= min(max_tokens, _MOST_TOKENS):
            rendered.append({"shape": shape, "messages": messages, "prompt_ids": ids})
    return rendered
