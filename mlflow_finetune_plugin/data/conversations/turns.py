"""Check that a chat template renders every turn of a conversation completely and unchanged.

For an assistant turn, P is the text of the conversation before it with the generation prompt, and F is the text up to and
including it. Where P is not a prefix of F the answer is not defined: the served prompt would differ from the trained one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mlflow_finetune_plugin.data.conversations.chat_turns import is_learnt
from mlflow_finetune_plugin.data.conversations.row_faults import NO_ASSISTANT_TURN, RowFault
from mlflow_finetune_plugin.data.conversations.templates import Template
from mlflow_finetune_plugin.evaluation.results import Message

BREAKS_PREFIX = "template breaks the prefix"
DROPS_CONTENT = "template drops content"
STOP_INSIDE = "stop token inside the answer"


@dataclass(slots=True)
class RenderedTurn:
    """The text of one assistant turn: ``prompt`` is P and ``full`` is F."""

    prompt: str
    full: str


def checked_turns(
    rendered: list[tuple[str | RowFault, str | RowFault, list[Message]]], stop_texts: tuple[str, ...]
) -> list[RenderedTurn] | RowFault:
    """Check the rendered turns of one conversation: nothing dropped, nothing rewritten, no stop token inside an answer.

    Args:
        rendered: P, F and the messages up to the turn, for every assistant turn.
        stop_texts: The stop tokens as text.
    """
    if not rendered:
        return RowFault(NO_ASSISTANT_TURN)
    turns = []
    for prompt, full, messages in rendered:
        answer = messages[-1]["content"]
        for result in (prompt, full):
            if isinstance(result, RowFault):
                return result
        prompt, full = str(prompt), str(full)
        if not full.startswith(prompt):
            at = next((i for i, (p, f) in enumerate(zip(prompt, full, strict=False)) if p != f), len(full))
            change = f"{prompt[max(0, at - 10) : at + 30]!r} became {full[max(0, at - 10) : at + 30]!r}"
            return RowFault(BREAKS_PREFIX, change)
        if not _ends_with_answer(full, len(prompt), answer):
            return RowFault(DROPS_CONTENT, "assistant turn")
        for stop in stop_texts:
            if stop in answer:
                return RowFault(STOP_INSIDE, stop)
        turns.append(RenderedTurn(prompt, full))
    for message in rendered[-1][2][:-1]:
        if message["role"] != "assistant" and not _holds(turns[-1].prompt, message["content"]):
            return RowFault(DROPS_CONTENT, f"{message['role']} turn")
    return turns


def _holds(text: str, content: str) -> bool:
    """Return whether ``text`` contains ``content``. A template may trim it and change its whitespace."""
    return content.strip() in text or _squeezed(content) in _squeezed(text)


def _ends_with_answer(full: str, prompt_chars: int, answer: str) -> bool:
    """Return whether the answer follows the prompt, or overlaps it (``<think>`` of an answer may be in the prompt)."""
    if answer.strip() in full[prompt_chars:]:
        return True
    at = _squeezed(full).rfind(_squeezed(answer))
    return at >= 0 and at + len(_squeezed(answer)) > len(_squeezed(full[:prompt_chars]))


def _squeezed(text: str) -> str:
    return "".join(text.split())


def default_turns(
    messages: Sequence[Message], template: Template, stop_texts: tuple[str, ...]
) -> list[RenderedTurn] | RowFault:
    """Render the turns with the packaged template. It keeps every word and prefix, so only stop tokens are checked."""
    text, turns = template.bos, []
    for message in messages:
        before, text = text, text + template.render_turn(message)
        if is_learnt(message):
            answer = message["content"]
            for stop in stop_texts:
                if stop in answer:
                    return RowFault(STOP_INSIDE, stop)
            turns.append(RenderedTurn(before, text))
    return turns or RowFault(NO_ASSISTANT_TURN)
