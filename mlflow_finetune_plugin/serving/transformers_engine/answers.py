"""Build answers in OpenAI's format, with vLLM's extensions if the request has them."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from mlflow_finetune_plugin.serving.transformers_engine.protocol import ChatRequest, CompletionRequest
from mlflow_finetune_plugin.serving.transformers_engine.sampling import TokenLogprob
from mlflow_finetune_plugin.serving.transformers_engine.sequences import Update, joined

Json = dict[str, Any]
Decode = Callable[[int], str]


@dataclass
class Choice:
    """An answer so far. ``text_offset`` is the position in the text of the next token's log-probability."""

    index: int
    prompt: list[int]
    text_offset: int = 0
    is_started: bool = False
    updates: list[Update] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        return sum(len(update.token_ids) for update in self.updates)


class GeneratedAnswer:
    """The answer to a request: one JSON object, or events. ``decode`` returns the text of a single token."""

    def __init__(self, request: ChatRequest | CompletionRequest, prompts: list[list[int]], decode: Decode) -> None:
        self._request, self._prompts, self._decode = request, prompts, decode
        self._is_chat = isinstance(request, ChatRequest)
        kind = "chat.completion" if self._is_chat else "text_completion"
        is_chunked_chat = self._is_chat and request.stream
        self._head = {
            "id": f"{'chatcmpl' if self._is_chat else 'cmpl'}-{uuid.uuid4().hex}",
            "object": f"{kind}.chunk" if is_chunked_chat else kind,
            "created": int(time.time()),
            "model": request.model,
        }
        self.choices = [
            Choice(index, prompt)
            for index, prompt in enumerate(prompt for prompt in prompts for _ in range(request.choices))
        ]

    @property
    def usage(self) -> Json:
        return self._usage(sum(map(len, self._prompts)), sum(choice.tokens for choice in self.choices))

    def whole(self) -> Json:
        """Return the answer to a request that does not stream."""
        body: Json = {
            **self._head,
            "choices": [self._whole_choice(choice) for choice in self.choices],
            "usage": self.usage,
        }
        if self._is_chat:
            first = self.choices[0]
            body["prompt_logprobs"] = self._prompt_logprobs(first)
            body["prompt_token_ids"] = first.prompt if self._request.return_token_ids else None
        return body

    def first_chunks(self) -> list[Json]:
        """Return the first chunks of a stream: the role, for chats."""
        if not self._is_chat:
            return []
        chunks = []
        for choice in self.choices:
            delta = {"role": "assistant", "content": ""}
            chunk = self._chunk(
                choice, {"index": choice.index, "delta": delta, "logprobs": None, "finish_reason": None}
            )
            if self._request.return_token_ids:
                chunk["prompt_token_ids"] = choice.prompt
            chunks.append(chunk)
        return chunks

    def chunk(self, choice: Choice, update: Update) -> Json | None:
        """Return one event of a stream; None while there is nothing to send."""
        wants_tokens = bool(self._request.return_token_ids or self._request.token_logprobs() is not None)
        if not (update.text or update.is_last or wants_tokens):
            return None
        body: Json = {"index": choice.index}
        if self._is_chat:
            body["delta"] = {"content": update.text} if update.text or not update.is_last else {}
        else:
            body["text"] = update.text
        body["logprobs"] = self._logprobs(choice, update)
        body |= {"finish_reason": update.finish_reason, "stop_reason": update.stop_reason}
        if self._request.return_token_ids:
            body["token_ids"] = update.token_ids
            if not self._is_chat and not choice.is_started:
                body["prompt_token_ids"] = choice.prompt
        choice.is_started = True
        return self._chunk(choice, body)

    def last_chunk(self) -> Json | None:
        """Return the usage, if the request wants it."""
        options = self._request.stream_options
        return {**self._head, "choices": [], "usage": self.usage} if options and options.include_usage else None

    def _chunk(self, choice: Choice, body: Json) -> Json:
        chunk: Json = {**self._head, "choices": [body]}
        options = self._request.stream_options
        if options and options.continuous_usage_stats:
            chunk["usage"] = self._usage(len(choice.prompt), choice.tokens)
        return chunk

    def _whole_choice(self, choice: Choice) -> Json:
        update = joined(choice.updates)
        body: Json = {"index": choice.index}
        if self._is_chat:
            body["message"] = {"role": "assistant", "content": update.text}
        else:
            body["text"] = update.text
        body["logprobs"] = self._logprobs(choice, update)
        body |= {"finish_reason": update.finish_reason, "stop_reason": update.stop_reason}
        wants_ids = self._request.return_token_ids
        body["token_ids"] = update.token_ids if wants_ids else None
        if not self._is_chat:
            body["prompt_logprobs"] = self._prompt_logprobs(choice)
            body["prompt_token_ids"] = choice.prompt if wants_ids else None
        return body

    def _prompt_logprobs(self, choice: Choice) -> list[Json | None] | None:
        positions = choice.updates[0].prompt_logprobs
        if positions is None:
            return None
        return [
            None if tokens is None else {str(token.token_id): self._prompt_entry(token) for token in tokens}
            for tokens in positions
        ]

    def _prompt_entry(self, token: TokenLogprob) -> Json:
        return {"logprob": token.logprob, "rank": token.rank, "decoded_token": self._decode(token.token_id)}

    def _logprobs(self, choice: Choice, update: Update) -> Json | None:
        top = self._request.token_logprobs()
        if top is None:
            return None
        return self._chat_logprobs(update, top) if self._is_chat else self._completion_logprobs(choice, update, top)

    def _chat_logprobs(self, update: Update, top: int) -> Json:
        content = [
            {**self._entry(tokens[0]), "top_logprobs": [self._entry(token) for token in _likeliest(tokens, top)]}
            for tokens in update.logprobs
        ]
        return {"content": content}

    def _entry(self, token: TokenLogprob) -> Json:
        text = self._decode(token.token_id)
        return {"token": text, "logprob": token.logprob, "bytes": list(text.encode())}

    def _completion_logprobs(self, choice: Choice, update: Update, top: int) -> Json:
        texts = [self._decode(tokens[0].token_id) for tokens in update.logprobs]
        offsets = []
        for text in texts:
            offsets.append(choice.text_offset)
            choice.text_offset += len(text)
        return {
            "text_offset": offsets,
            "token_logprobs": [tokens[0].logprob for tokens in update.logprobs],
            "tokens": texts,
            "top_logprobs": [
                {self._decode(token.token_id): token.logprob for token in (tokens[0], *_likeliest(tokens, top))}
                for tokens in update.logprobs
            ],
        }

    @staticmethod
    def _usage(prompt: int, completion: int) -> Json:
        return {"prompt_tokens": prompt, "total_tokens": prompt + completion, "completion_tokens": completion}


def _likeliest(tokens: list[TokenLogprob], top: int) -> list[TokenLogprob]:
    """Return the ``top`` likeliest tokens in order. The chosen token is the first of ``tokens`` and may be among them."""
    return sorted((token for token in tokens if token.rank <= top), key=lambda token: token.rank)[:top]


def error_body(message: str, *, kind: str, code: int | str, param: str | None = None) -> Json:
    """Return OpenAI's error object."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
