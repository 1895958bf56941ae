"""Check that a chat template renders every turn of a conversation completely and unchanged.

For an assistant turn, P is the text of the conversation before it with the generation prompt, and F is the text up to and
including it. A template may rewrite P when the answer is added: it removes an empty think block, for example. A server renders
only P, so the model learns to write the answer after P; where F does not hold the answer as it is, the row is a fault.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mlflow_finetune_plugin.data.conversations.row_faults import NO_ASSISTANT_TURN, RowFault
from mlflow_finetune_plugin.data.conversations.templates import Template
from mlflow_finetune_plugin.data.conversations.turns.chat import is_learnt, whole_text
from mlflow_finetune_plugin.evaluation.results import Message
from mlflow_finetune_plugin.images.turns import MARK, pictures_of

BREAKS_PREFIX = "template breaks the prefix"
NO_TOOLS = "template takes no tools"
NO_PICTURES = "template takes no pictures"
DROPS_CONTENT = "template drops content"
STOP_INSIDE = "stop token inside the answer"

_TOOLS_FIX = "set data.chat_template to one that does, or train without them: data.ignore: [tools]"
_PICTURES_FIX = "set data.chat_template to the one that the base was trained with"
_CALLS_FIX = "set data.chat_template to one that does, or remove the conversations that call tools from the file"


@dataclass(slots=True)
class RenderedTurn:
    """The text of one assistant turn: ``prompt`` is P and ``full`` is F, with P as a server renders it.

    ``pictures`` are those of the conversation up to the turn; each has one placeholder in both texts.
    """

    prompt: str
    full: str
    pictures: tuple[str, ...] = ()


def checked_turns(
    rendered: list[tuple[str | RowFault, str | RowFault, list[Message]]],
    stop_texts: tuple[str, ...],
    turn_end: str = "",
) -> list[RenderedTurn] | RowFault:
    """Check the rendered turns of one conversation: nothing dropped, no stop token inside an answer.

    Args:
        rendered: P, F and the messages up to the turn, for every assistant turn.
        stop_texts: The stop tokens as text.
        turn_end: What the template writes behind an answer.
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
        if not full.startswith(prompt) and (rest := _answer_and_end(full, messages[-1], turn_end)):
            full = prompt + rest
        if not full.startswith(prompt):
            at = next((i for i, (p, f) in enumerate(zip(prompt, full, strict=False)) if p != f), len(full))
            change = f"{prompt[max(0, at - 10) : at + 30]!r} became {full[max(0, at - 10) : at + 30]!r}"
            return RowFault(BREAKS_PREFIX, change)
        if not _ends_with_answer(full, len(prompt), answer):
            return RowFault(DROPS_CONTENT, "assistant turn")
        if missing := _missing_call(full[len(prompt) :], messages[-1]):
            return RowFault(NO_TOOLS, missing)
        for stop in stop_texts:
            if stop in whole_text(messages[-1]):
                return RowFault(STOP_INSIDE, stop)
        turns.append(RenderedTurn(prompt, full, tuple(pictures_of(messages))))
    return _lost_context(turns, rendered[-1][2]) or turns


def _lost_context(turns: list[RenderedTurn], messages: list[Message]) -> RowFault | None:
    """Return the fault of a template that leaves out tools, calls or turns before the last answer."""
    prompt = turns[-1].prompt
    for tool in messages[0].get("tools", ()):
        if tool["function"]["name"] not in prompt:
            return RowFault(NO_TOOLS, f"the tool {tool['function']['name']} is not in the prompt; {_fix(messages)}")
    for message in messages[:-1]:
        if missing := _missing_call(prompt, message):
            return RowFault(NO_TOOLS, missing)
        if message["role"] != "assistant" and not _holds(prompt, message["content"]):
            return RowFault(DROPS_CONTENT, f"{message['role']} turn")
    return None


def _fix(messages: Sequence[Message]) -> str:
    """Return the fix for a template without tools. Without the tools, their calls would still be in the turns."""
    return _CALLS_FIX if any("tool_calls" in message for message in messages) else _TOOLS_FIX


def _missing_call(text: str, message: Message) -> str:
    """Return what is wrong if ``text`` does not hold the calls of a turn, or ""."""
    for call in message.get("tool_calls", ()):
        if call["function"]["name"] not in text:
            return f"the call of {call['function']['name']} is not written; {_CALLS_FIX}"
    return ""


def _answer_and_end(full: str, message: Message, turn_end: str) -> str:
    """Return the answer with what the template writes behind it, or "" where the text does not end with both."""
    rest = message["content"].strip() + turn_end
    return rest if "tool_calls" not in message and full.endswith(rest) else ""


def _holds(text: str, content: str) -> bool:
    """Return whether ``text`` contains ``content``. A template may trim it and change its whitespace."""
    return all(piece.strip() in text or _squeezed(piece) in _squeezed(text) for piece in content.split(MARK))


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
    if any("tools" in message or "tool_calls" in message for message in messages):
        return RowFault(NO_TOOLS, f"the packaged template writes no tools; {_fix(messages)}")
    if pictures_of(messages):
        return RowFault(NO_PICTURES, f"the packaged template writes no pictures; {_PICTURES_FIX}")
    for message in messages:
        before, text = text, text + template.render_turn(message)
        if is_learnt(message):
            answer = message["content"]
            for stop in stop_texts:
                if stop in answer:
                    return RowFault(STOP_INSIDE, stop)
            turns.append(RenderedTurn(before, text))
    return turns or RowFault(NO_ASSISTANT_TURN)
