"""Choose the chat template and render conversations with it as text."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Literal

import jinja2

from mlflow_finetune_plugin.data.conversations.row_faults import RowFault
from mlflow_finetune_plugin.data.conversations.texts import REASONING_FIELDS
from mlflow_finetune_plugin.errors import BaseModelError
from mlflow_finetune_plugin.evaluation.results import Message, chat_fields
from mlflow_finetune_plugin.images.turns import for_template

DEFAULT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'assistant' -%}{{ message['content'] + eos_token }}"
    "{%- else -%}{{ message['content'] + '\\n' }}{%- endif -%}"
    "{%- endfor -%}"
)
"""The template for base models without one: a line per question, then the answer and the end-of-sequence token."""

REFUSES = "template refuses"

TemplateSettings = Mapping[str, str | bool | int | float]
"""Values of variables that a chat template reads, such as ``enable_thinking``."""

_REASONING = REASONING_FIELDS[0]

_BOS = "{{ bos_token }}"
PACKAGED_TEMPLATES = frozenset((DEFAULT_TEMPLATE, _BOS + DEFAULT_TEMPLATE))
RESERVED_SETTINGS = frozenset(
    (
        *("conversation", "messages", "tools", "documents", "chat_template", "add_generation_prompt", "tokenize"),
        *("continue_final_message", "padding", "truncation", "max_length", "return_tensors", "return_dict"),
        *("return_assistant_tokens_mask", "tokenizer_kwargs", "processor_kwargs", "bos_token", "eos_token"),
    )
)
"""What ``apply_chat_template`` itself takes or sets, and therefore not a setting of a template."""


class Template:
    """A fixed chat template with a tokenizer's special tokens; ``source`` names where it comes from.

    The packaged template is rendered without Jinja, which is faster: its turns do not depend on their neighbours.
    """

    def __init__(self, tokenizer: Any, chat_template: str | None, settings: TemplateSettings | None = None) -> None:
        """Choose the template: ``chat_template``, the tokenizer's, or the packaged one.

        Args:
            tokenizer: A Hugging Face tokenizer.
            chat_template: A Jinja template, or None.
            settings: Values of the template's variables. They become a part of ``text``.

        Raises:
            BaseModelError: the tokenizer has no single template, or the template does not read a variable of ``settings``.
        """
        self._tokenizer = tokenizer
        self.source: Literal["given", "tokenizer", "default"]
        text, self.source = _template(tokenizer, chat_template)
        self.text = with_settings(text, settings or {})
        self.reasoning_key: str | None = None
        """The field of a turn in which the template reads what the model thought; the renderer finds it out."""
        self.is_default = self.text in PACKAGED_TEMPLATES
        self.eos = str(tokenizer.eos_token)
        self.bos = str(tokenizer.bos_token) if self.text.startswith(_BOS) else ""

    def render(self, conversations: list[list[Message]], *, generation_prompt: bool) -> list[str | RowFault]:
        """Return one text per conversation, or a ``RowFault`` where the template refuses it."""
        if self.is_default:
            return ["".join([self.bos, *map(self.render_turn, messages)]) for messages in conversations]
        options = {"tokenize": False, "add_generation_prompt": generation_prompt, "chat_template": self.text}
        chats = [chat_fields(self._with_reasoning(messages)) for messages in conversations]
        if len(chats) != 1 and any("tools" in chat for chat in chats):  # tools belong to one conversation
            return [self.render([messages], generation_prompt=generation_prompt)[0] for messages in conversations]
        try:
            tools = chats[0].get("tools") if chats else None
            turns = [[for_template(turn) for turn in chat["messages"]] for chat in chats]
            return list(self._tokenizer.apply_chat_template(turns, tools=tools, **options)) if chats else []
        except (jinja2.TemplateError, TypeError, ValueError, LookupError) as error:
            if len(conversations) == 1:
                return [RowFault(REFUSES, str(error))]
        return [self.render([conversation], generation_prompt=generation_prompt)[0] for conversation in conversations]

    def changes_with_date(self, messages: list[Message]) -> bool:
        """Return whether the template writes the current date into this conversation; False where it refuses it."""
        if "strftime_now" not in self.text:
            return False
        options = {"tokenize": False, "chat_template": self.text}
        try:
            first, second = (
                self._tokenizer.apply_chat_template(messages, strftime_now=lambda _format, date=date: date, **options)
                for date in ("1999-12-31", "2000-01-01")
            )
        except (jinja2.TemplateError, TypeError, ValueError, LookupError):
            return False
        return bool(first != second)

    def _with_reasoning(self, messages: list[Message]) -> list[Message]:
        """Return the turns with their reasoning where the template reads it."""
        key = self.reasoning_key
        if key in (None, _REASONING) or not any(_REASONING in message for message in messages):
            return messages
        return [{**message, key: message[_REASONING]} if _REASONING in message else message for message in messages]

    def render_turn(self, message: Message) -> str:
        """Render one turn as DEFAULT_TEMPLATE does. The generation prompt adds nothing to it."""
        return message["content"] + (self.eos if message["role"] == "assistant" else "\n")


def with_settings(text: str, settings: TemplateSettings) -> str:
    """Return the template with the values of some of its variables, which a request may override.

    The values are part of the text, so they are recorded with the model, and everything that renders this template (training,
    proof, pyfunc, engines) uses them.

    Raises:
        BaseModelError: the template does not read one of them.
    """
    lines = []
    for name, value in sorted(settings.items()):
        if name in RESERVED_SETTINGS or not name.isidentifier() or not re.search(rf"\b{name}\b", text):
            raise BaseModelError(
                f"data.chat_template_kwargs: the chat template reads no setting {name!r}; fix: remove it, or correct its name"
            )
        lines.append(
            f"{{%- if {name} is not defined %}}{{%- set {name} = {json.dumps(value, ensure_ascii=False)} %}}{{%- endif %}}\n"
        )
    return "".join(lines) + text


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
