"""Choose the chat template and render conversations with it as text."""

from __future__ import annotations

from typing import Any, Literal

import jinja2

from mlflow_finetune_plugin.data.conversations.row_faults import RowFault
from mlflow_finetune_plugin.errors import BaseModelError
from mlflow_finetune_plugin.evaluation.results import Message

DEFAULT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'assistant' -%}{{ message['content'] + eos_token }}"
    "{%- else -%}{{ message['content'] + '\\n' }}{%- endif -%}"
    "{%- endfor -%}"
)
"""The template for base models without one: a line per question, then the answer and the end-of-sequence token."""

REFUSES = "template refuses"

_BOS = "{{ bos_token }}"
PACKAGED_TEMPLATES = frozenset((DEFAULT_TEMPLATE, _BOS + DEFAULT_TEMPLATE))


class Template:
    """A fixed chat template with a tokenizer's special tokens; ``source`` names where it comes from.

    The packaged template is rendered without Jinja, which is faster: its turns do not depend on their neighbours.
    """

    def __init__(self, tokenizer: Any, chat_template: str | None) -> None:
        self._tokenizer = tokenizer
        self.source: Literal["given", "tokenizer", "default"]
        self.text, self.source = _template(tokenizer, chat_template)
        self.is_default = self.text in PACKAGED_TEMPLATES
        self.eos = str(tokenizer.eos_token)
        self.bos = str(tokenizer.bos_token) if self.text.startswith(_BOS) else ""

    def render(self, conversations: list[list[Message]], *, generation_prompt: bool) -> list[str | RowFault]:
        """Return one text per conversation, or a ``RowFault`` where the template refuses it."""
        if self.is_default:
            return ["".join([self.bos, *map(self.render_turn, messages)]) for messages in conversations]
        options = {"tokenize": False, "add_generation_prompt": generation_prompt, "chat_template": self.text}
        try:
            return list(self._tokenizer.apply_chat_template(conversations, **options)) if conversations else []
        except jinja2.TemplateError as error:
            if len(conversations) == 1:
                return [RowFault(REFUSES, str(error))]
        return [self.render([conversation], generation_prompt=generation_prompt)[0] for conversation in conversations]

    def render_turn(self, message: Message) -> str:
        """Render one turn as DEFAULT_TEMPLATE does. The generation prompt adds nothing to it."""
        return message["content"] + (self.eos if message["role"] == "assistant" else "\n")


def _template(tokenizer: Any, override: str | None) -> tuple[str, Literal["given", "tokenizer", "default"]]:
    if override is not None:
        return override, "given"
    if tokenizer.chat_template:
        try:
            return tokenizer.get_chat_template(), "tokenizer"
        except ValueError as error:
            raise BaseModelError(
                f"the tokenizer has several chat templates and none is named default ({error}); fix: set data.chat_template"
            ) from error
    return (_BOS if prepends_bos(tokenizer) else "") + DEFAULT_TEMPLATE, "default"


def prepends_bos(tokenizer: Any) -> bool:
    """Return whether the tokenizer itself starts a text with its bos_token."""
    plain = tokenizer("a")["input_ids"]
    return tokenizer.bos_token_id is not None and plain[:1] == [tokenizer.bos_token_id]
