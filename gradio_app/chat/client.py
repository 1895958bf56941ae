"""Receive answers from any OpenAI-compatible endpoint as fast as they come, independently of their display."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import orjson

from mlflow_finetune_plugin.evaluation.results import Message
from mlflow_finetune_plugin.store.names import BASE
from mlflow_finetune_plugin.votes.journal.vote import Receipt

CONNECT_S = 5.0
SILENCE_S = 120.0
"""After this time without data an answer counts as broken off.

It is long because a first token may wait for a model to load.
"""
LONGEST_ANSWER = 400_000
"""Characters. An answer that is longer is cut off here, because an endpoint may never end it."""
LONGEST_S = 1800.0
"""After this time an answer is cut off, because an endpoint may keep the connection open and never end it."""
LEAST_STREAM_S = 0.05
"""The least time between the first and the last piece of an answer whose speed is shown."""
_LONGEST_EVENT = 1 << 20
_MOST_TOKENS = 1 << 40
_HINTS = {
    400: "the conversation may be too long for the model; shorten it, or lower max tokens in the settings",
    401: "it needs an API key, or another one",
    404: "it does not serve this model now",
    413: "the conversation is too long for it",
    429: "it receives too many requests; try again in a moment",
    503: "it is starting, or overloaded; try again in a moment",
}
"""Hints that name no model. The endpoint's own message may name it, so it is shown only with the names."""


@dataclass(frozen=True)
class Endpoint:
    """An OpenAI API by its base URL, which ends in ``/v1``; ``api_key`` never leaves the server."""

    url: str
    api_key: str | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """Host and port, without the password that a URL may carry."""
        return urlsplit(self.url).netloc.rpartition("@")[2]

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}


@dataclass(frozen=True)
class SamplingSettings:
    """The settings under the names of OpenAI's API.

    ``max_tokens`` or ``seed`` None leaves the choice to the endpoint.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int | None = None
    seed: int | None = None

    def to_json(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass
class StreamedAnswer:
    """An answer as far as it has been received. Times are ``time.monotonic`` seconds, or None before the event.

    ``fault`` is the reason why the answer broke off, in words. ``fault_detail`` is the endpoint's own message, which
    may name the model.
    """

    started_at: float = 0.0
    started_at_ms: int = 0
    first_at: float | None = None
    last_at: float | None = None
    ended_at: float | None = None
    pieces: list[str] = field(default_factory=list)
    length: int = 0
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    finish_reason: str | None = None
    receipt: Receipt | None = None
    fault: str | None = None
    fault_detail: str = ""
    is_stopped: bool = False

    @property
    def text(self) -> str:
        if len(self.pieces) > 1:
            self.pieces = ["".join(self.pieces)]
        return self.pieces[0] if self.pieces else ""

    @property
    def is_over(self) -> bool:
        return self.ended_at is not None

    @property
    def is_whole(self) -> bool:
        """Whether the model ended the answer.

        An empty answer counts where the model ended it, so that it can lose a vote.
        """
        has_ended = self.is_over and self.fault is None and not self.is_stopped
        return has_ended and (self.length > 0 or self.finish_reason is not None)

    @property
    def first_token_s(self) -> float | None:
        """Seconds from the request to the first piece of text."""
        return None if self.first_at is None else self.first_at - self.started_at

    @property
    def tokens_per_s(self) -> float | None:
        """Tokens per second after the first one, or None where the stream does not show the speed.

        It does not for a single token, for an endpoint that counts no tokens, and for an answer that came in one chunk,
        because the time of a transfer is not the time of a generation.
        """
        if self.completion_tokens is None or self.completion_tokens < 2 or self.ended_at is None:
            return None
        if self.first_at is None or self.last_at is None or self.last_at - self.first_at < LEAST_STREAM_S:
            return None
        return (self.completion_tokens - 1) / (self.ended_at - self.first_at)

    @property
    def total_s(self) -> float | None:
        """Seconds from the request to the end of the answer."""
        return None if self.ended_at is None else self.ended_at - self.started_at

    def add(self, piece: str) -> None:
        self.last_at = time.monotonic()
        if self.first_at is None:
            self.first_at = self.last_at
        piece = piece.encode("utf-8", "replace").decode()  # Pages and databases refuse half of a surrogate pair.
        self.pieces.append(piece)
        self.length += len(piece)

    def cut(self, length: int) -> None:
        """Drop everything beyond ``length`` characters."""
        self.pieces = [self.text[:length]]
        self.length = len(self.pieces[0])


def new_http() -> aiohttp.ClientSession:
    """Return the HTTP session of the app: unlimited connections, no proxy of the environment, no cookies.

    Responses are never decompressed, because a hostile endpoint could send a small response that unpacks to gigabytes.
    """
    return aiohttp.ClientSession(
        headers={"Accept-Encoding": "identity"},
        auto_decompress=False,
        connector=aiohttp.TCPConnector(limit=0, enable_cleanup_closed=False),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=SILENCE_S),
        cookie_jar=aiohttp.DummyCookieJar(),
        read_bufsize=1 << 18,
        trust_env=False,
    )


async def receive(
    http: aiohttp.ClientSession,
    endpoint: Endpoint,
    model: str,
    messages: Sequence[Message],
    sampling: SamplingSettings,
    answer: StreamedAnswer,
) -> None:
    """Receive into ``answer`` until it is over. Faults are recorded in it; only a cancellation raises.

    A cancelled answer keeps its text and closes its connection, which ends the generation.
    """
    body = {
        "model": model,
        "messages": list(messages),
        "stream": True,
        "stream_options": {"include_usage": True},
        **sampling.to_json(),
    }
    answer.started_at, answer.started_at_ms = time.monotonic(), time.time_ns() // 1_000_000
    limit = asyncio.timeout(LONGEST_S)
    try:
        async with (
            limit,
            http.post(
                f"{endpoint.url}/chat/completions", json=body, headers=endpoint.headers, allow_redirects=False
            ) as response,
        ):
            if response.status != 200:
                answer.fault, answer.fault_detail = await _refusal(response)
                return
            answer.receipt = Receipt.from_headers(response.headers)
            if answer.receipt is not None and not is_of(answer.receipt, model):
                answer.fault = "answered as another model"
                answer.fault_detail = (
                    f"{endpoint.name}: the request named {model}, the receipt names {_name_of(answer.receipt)}"
                )
                return
            await _read_events(response.content, answer)
    except (aiohttp.ClientConnectorError, aiohttp.ServerTimeoutError, TimeoutError) as error:
        if limit.expired():
            answer.fault = f"was cut off after {LONGEST_S / 60:.0f} minutes"
            return
        is_silent = answer.first_at is not None or not isinstance(error, aiohttp.ClientConnectorError)
        answer.fault = f"sent nothing for {SILENCE_S:.0f} s" if is_silent and _is_read(error) else "cannot be reached"
        answer.fault_detail = f"{endpoint.name}: {type(error).__name__}"
    except (aiohttp.ClientError, ValueError, OSError) as error:
        answer.fault, answer.fault_detail = "broke off its answer", f"{endpoint.name}: {type(error).__name__}: {error}"
    finally:
        answer.ended_at = time.monotonic()
        if endpoint.api_key:  # Some endpoints repeat the key that they refuse.
            answer.fault_detail = answer.fault_detail.replace(endpoint.api_key, "…")


def is_of(receipt: Receipt, requested: str) -> bool:
    """Whether a request for the model ``requested`` can have this receipt.

    A name without model and version can have any.
    """
    if requested == BASE:
        return receipt.version == BASE
    model, at, _ = requested.rpartition("@")
    if at:  # An alias may point to any version of the model.
        return receipt.model == model and receipt.version != BASE
    model, _, version = requested.rpartition("/")
    return not (model and version.isdecimal()) or (receipt.model, receipt.version) == (model, version)


def _name_of(receipt: Receipt) -> str:
    return f"{receipt.model}/{receipt.version}"


def _is_read(error: BaseException) -> bool:
    return not isinstance(error, aiohttp.ConnectionTimeoutError | aiohttp.ClientConnectorError)


async def _refusal(response: aiohttp.ClientResponse) -> tuple[str, str]:
    text = (await response.content.read(20_000)).decode("utf-8", "replace")
    try:
        error = json.loads(text)["error"]
        message = str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError):
        message = text
    hint = _HINTS.get(response.status)
    why = f"HTTP {response.status}" + (f": {hint}" if hint is not None else "")
    return f"refused the request ({why})", " ".join(message.split())[:500]


async def _read_events(stream: aiohttp.StreamReader, answer: StreamedAnswer) -> None:
    """Read server-sent events until ``[DONE]``. One read holds several events when the reader is behind."""
    unfinished = b""
    async for read in stream.iter_any():
        whole, end, unfinished = (unfinished + read).replace(b"\r\n", b"\n").rpartition(b"\n\n")
        if len(unfinished) > _LONGEST_EVENT:
            raise ValueError("an event without an end")
        if not end:
            continue
        for event in whole.split(b"\n\n"):
            for line in event.split(b"\n"):
                if line.startswith(b"data:") and _take(line[5:].strip(), answer):
                    return
    answer.fault = answer.fault or "broke off its answer"


def _take(data: bytes, answer: StreamedAnswer) -> bool:
    """Add an event to the answer and return whether it was the last one."""
    if data == b"[DONE]":
        return True
    try:
        return _take_event(_read_json(data), answer)
    except (AttributeError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise ValueError(f"an event that is not OpenAI's ({type(error).__name__})") from error


def _read_json(data: bytes) -> Any:
    """Parse with orjson, and with Python's lenient parser where a text has, say, half of a surrogate pair.

    Raises ValueError.
    """
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        return json.loads(data)


def _take_event(event: Any, answer: StreamedAnswer) -> bool:
    if "error" in event:
        answer.fault, error = "broke off its answer", event["error"]
        answer.fault_detail = str(error.get("message", "") if isinstance(error, dict) else error)[:500]
        return True
    usage = event.get("usage")
    if isinstance(usage, dict):
        answer.prompt_tokens = _count(usage.get("prompt_tokens"))
        answer.completion_tokens = _count(usage.get("completion_tokens"))
    choices = event.get("choices")
    if choices:
        choice = choices[0]
        piece = (choice.get("delta") or {}).get("content")
        if piece:
            answer.add(str(piece))
            if answer.length > LONGEST_ANSWER:
                answer.fault = f"was cut off after {LONGEST_ANSWER:,} characters"
                return True
        reason = choice.get("finish_reason")
        answer.finish_reason = str(reason)[:100] if reason else answer.finish_reason
    return False


def _count(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value < _MOST_TOKENS else None
