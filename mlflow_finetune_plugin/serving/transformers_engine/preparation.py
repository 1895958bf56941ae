"""Render and tokenize prompts outside the event loop, so that a long prompt delays no other request."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from jinja2 import TemplateError

from mlflow_finetune_plugin.images import PictureInputs
from mlflow_finetune_plugin.images.turns import for_template, pictures_of
from mlflow_finetune_plugin.serving.transformers_engine.prompts import EnginePrompt, PromptWriter
from mlflow_finetune_plugin.serving.transformers_engine.protocol import ChatRequest, CompletionRequest

T = TypeVar("T")

_LARGE_CHARS = 16_000
_LARGE_TURNS = 64
_LONGEST_NORMALIZED = 4
"""How many characters of a prompt NFC may compose into one. Source: unicode.org, NFC FAQ, "expansion factors"."""


class Preparation:
    """The threads that turn prompts into token ids: one for small prompts, and one for large ones, in turn.

    Each thread has its own tokenizer and processor, because they are not thread-safe. Tokenizing releases Python's lock, and so does
    most of the work on pictures.

    Args:
        tokenizer: The tokenizer, with the chat template.
        max_model_len: The context length in tokens; prompts that cannot fit are refused before they are rendered.
        inputs: The processor of a base that sees; None of another.
    """

    def __init__(self, tokenizer: Any, max_model_len: int, inputs: PictureInputs | None = None) -> None:
        self._small, self._large = (
            _Worker(PromptWriter(tokenizer, inputs, max_model_len), name) for name in ("small", "large")
        )
        longest = _longest_token(tokenizer)
        self._max_chars = None if longest is None else longest * max_model_len
        self._max_model_len = max_model_len

    async def prompts(self, request: ChatRequest | CompletionRequest) -> list[EnginePrompt]:
        """Return each prompt. Raises ValueError for a prompt that cannot be rendered or is too long."""
        if isinstance(request, ChatRequest):
            messages = [message.turn() for message in request.messages]
            chars = sum(len(message.get("content") or "") for message in messages)
            self._check(chars)
            parts: list[Any] = [
                messages,
                request.tools and [tool.function for tool in request.tools],
                request.chat_template_kwargs,
            ]
            try:
                size = _chars_in(parts)
            except RecursionError as error:
                raise ValueError("messages: nested too deeply; fix: fewer levels") from error
            worker = self._large if size > _LARGE_CHARS or len(messages) > _LARGE_TURNS else self._small
            return [await worker.run(lambda writer: _chat(writer, messages, request))]
        prompts, pictures = request.prompts(), request.pictures_of_prompts()
        texts = [prompt for prompt in prompts if isinstance(prompt, str)]
        for text in texts:
            self._check(len(text))
        worker = self._large if sum(map(len, texts)) + _chars_in(pictures) > _LARGE_CHARS else self._small
        return await worker.run(
            lambda writer: [_completion(writer, *prompt) for prompt in zip(prompts, pictures, strict=True)]
        )

    def close(self) -> None:
        self._small.close()
        self._large.close()

    def _check(self, chars: int) -> None:
        if self._max_chars is not None and chars > self._max_chars:
            raise ValueError(
                f"prompt: {chars:,} characters leave no room for an answer in the context length of "
                f"{self._max_model_len}; fix: shorten it"
            )


class _Worker:
    def __init__(self, writer: PromptWriter, name: str) -> None:
        self._writer = writer
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"prompts-{name}")

    async def run(self, prepare: Callable[[PromptWriter], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, prepare, self._writer)

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)


def _chars_in(value: Any) -> int:
    """Return the characters of all texts in a JSON value: the template may write any of them into the prompt."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(len(key) + _chars_in(item) for key, item in value.items())
    return sum(map(_chars_in, value)) if isinstance(value, list) else 1


def _chat(writer: PromptWriter, turns: list[dict[str, Any]], request: ChatRequest) -> EnginePrompt:
    pictures = writer.pictures(pictures_of(turns), "messages")
    text = _rendered(writer.tokenizer, [for_template(turn) for turn in turns], request)
    try:
        return writer.prompt(text, pictures, is_chat=True)
    except ValueError as error:
        raise ValueError(f"messages: {error}") from error


def _rendered(tokenizer: Any, messages: list[dict[str, Any]], request: ChatRequest) -> str:
    try:
        text: str = tokenizer.apply_chat_template(
            messages,
            tokenize=False,
            add_generation_prompt=request.add_generation_prompt,
            tools=[tool.for_template() for tool in request.tools or ()] or None,
            **(request.chat_template_kwargs or {}),
        )
    except (
        TemplateError,
        TypeError,
        ValueError,
        ArithmeticError,
        LookupError,
        AttributeError,
        RecursionError,
    ) as error:
        # A template computes with what the request holds, so that any of these can be the fault of a field.
        raise ValueError(f"messages: refused by the chat template: {error}") from error
    return text


def _completion(writer: PromptWriter, prompt: str | list[int], urls: list[str]) -> EnginePrompt:
    pictures = writer.pictures(urls, "pictures")
    if isinstance(prompt, list):
        return writer.of_ids(prompt, pictures)
    return writer.prompt(prompt, pictures, is_chat=False)


def _longest_token(tokenizer: Any) -> int | None:
    """Return the most characters of a prompt that one token can stand for; None where the tokenizer has no such bound.

    A byte-pair encoding without unknown tokens covers every character by a token. Other models drop characters, or give
    one unknown token to a whole word, and so may a normalizer that is more than NFC.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:  # a tokenizer without a fast version
        return None
    model, normalizer = backend.model, backend.normalizer
    if type(model).__name__ != "BPE" or not (model.unk_token is None or model.byte_fallback):
        return None
    if normalizer is not None and type(normalizer).__name__ != "NFC":
        return None
    return max(map(len, tokenizer.get_vocab())) * (1 if normalizer is None else _LONGEST_NORMALIZED)
