"""Check requests. They may have OpenAI's fields and vLLM's sampling fields, but none that controls an engine."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mlflow_finetune_plugin.data.conversations.templates import RESERVED_SETTINGS
from mlflow_finetune_plugin.serving.router.pictures import (
    MOST_PICTURES,
    RequestPicture,
    picture_fault,
    take_pictures,
    with_urls,
)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_stop(value: Any) -> bool:
    return isinstance(value, str) or (
        isinstance(value, list) and len(value) <= _MOST_STOPS and all(isinstance(item, str) for item in value)
    )


def _are_ids(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= _MOST_IDS
        and all(_is_whole(item) and 0 <= item <= _INT32 for item in value)
    )


def _is_bias(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and len(value) <= _MOST_IDS
        and all(
            token.isascii() and token.isdigit() and int(token[:11]) <= _INT32 and _is_number(bias) and abs(bias) <= 100
            for token, bias in value.items()
        )
    )


def _are_settings(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and len(value) <= _MOST_SETTINGS
        and not value.keys() & RESERVED_SETTINGS
        and all(name.isidentifier() and isinstance(setting, str | int | float) for name, setting in value.items())
    )


_INT32, _INT64 = 2**31 - 1, 2**63 - 1
_MOST_IDS = 1000
_MOST_STOPS = 64
_MOST_SETTINGS = 64
CHAT_ROUTE = "/v1/chat/completions"
MOST_MESSAGES = 2048
"""OpenAI's limit."""

Kind = tuple[Callable[[Any], bool], str]

_WHOLE: Kind = (_is_whole, "a whole number")

_NUMBER: Kind = (_is_number, "a number")

_SWITCH: Kind = (lambda value: isinstance(value, bool), "true or false")

_KINDS: Mapping[str, Kind] = {
    **dict.fromkeys(
        ("max_tokens", "max_completion_tokens", "min_tokens", "top_k", "seed", "top_logprobs", "n", "best_of"), _WHOLE
    ),
    **dict.fromkeys(
        ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty"), _NUMBER
    ),
    **dict.fromkeys(("stream", "ignore_eos", "echo", "parallel_tool_calls", "store"), _SWITCH),
    "model": (lambda value: isinstance(value, str), "text"),
    "user": (lambda value: isinstance(value, str), "text"),
    "stop": (_is_stop, f"text, or a list of at most {_MOST_STOPS} texts"),
    "stop_token_ids": (_are_ids, f"a list of token ids, at most {_MOST_IDS:,}"),
    "logit_bias": (_is_bias, f"an object of at most {_MOST_IDS:,} token ids with numbers from -100 to 100"),
    "chat_template_kwargs": (
        _are_settings,
        f"an object of at most {_MOST_SETTINGS} variables of the chat template with texts, numbers or booleans",
    ),
    "logprobs": (lambda value: isinstance(value, bool) or _is_whole(value), "true, false or a whole number"),
    "messages": (lambda value: isinstance(value, list), "a list of messages"),
}

_RANGES: Mapping[str, tuple[float, float]] = {
    "temperature": (0, 2),
    "top_p": (0, 1),
    "min_p": (0, 1),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
    "repetition_penalty": (0.1, 10),
    "max_tokens": (1, _INT32),
    "max_completion_tokens": (1, _INT32),
    "min_tokens": (0, _INT32),
    "top_k": (-1, _INT32),
    "seed": (-_INT64 - 1, _INT64),
    "top_logprobs": (0, 20),
    "logprobs": (0, 20),
}
"""The least and the largest value of each number: OpenAI's limits, or those within which no engine can fail."""

_SAMPLING = frozenset(
    (
        "max_tokens",
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "seed",
        "stop",
        "n",
        "presence_penalty",
        "frequency_penalty",
    )
) | frozenset(("repetition_penalty", "min_tokens", "stop_token_ids", "ignore_eos", "logit_bias", "logprobs"))
_COMMON = _SAMPLING | {"model", "stream", "stream_options", "user", "metadata", "store", "service_tier"}
_NOT_FOR_ENGINES = ("metadata", "store", "service_tier", "user")  # OpenAI's service uses these, an engine does not

FIELDS: Mapping[str, frozenset[str]] = {
    CHAT_ROUTE: _COMMON
    | {
        "messages",
        "max_completion_tokens",
        "top_logprobs",
        "response_format",
        "tools",
        "tool_choice",
        "parallel_tool_calls",
        "chat_template_kwargs",
    },
    "/v1/completions": _COMMON | {"prompt", "echo", "suffix", "best_of"},
}
"""The fields that a body may have, by route."""

_TURN_TEXTS = ("name", "tool_call_id", "refusal", "reasoning_content")
_TURN_FIELDS = frozenset(("role", "content", "tool_calls", *_TURN_TEXTS))
_MOST_CHOICES = 16
_ROLES = ("system", "developer", "user", "assistant", "tool", "function")


@dataclass(frozen=True)
class RequestError(Exception):
    """An error in OpenAI's form: HTTP status, message, code, and the field that it is about."""

    status: int
    message: str
    code: str
    param: str | None = None
    retry_after_s: float | None = None

    def __str__(self) -> str:
        return self.message

    def to_json(self) -> dict[str, Any]:
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": self.message, "type": kind, "code": self.code, "param": self.param}}


@dataclass(frozen=True)
class CheckedRequest:
    """A request whose body is valid.

    Attributes:
        wants_usage: Whether the client requested a stream's usage event.
        body: The body. In the place of a picture's URL it has the picture's number, or its hash once it was read.
        client_urls: The URLs of the pictures as the client sent them, not read yet.
        pictures: The pictures that were read.
    """

    route: str
    model: str
    user: str | None
    is_stream: bool
    wants_usage: bool
    body: dict[str, Any]
    client_urls: tuple[str, ...] = ()
    pictures: tuple[RequestPicture, ...] = ()

    def with_pictures(self, pictures: Sequence[RequestPicture]) -> CheckedRequest:
        """Return the request with its pictures, which were read."""
        hashes = [f"sha256:{picture.sha256}" for picture in pictures]
        body = {**self.body, "messages": with_urls(self.body["messages"], hashes)}
        return replace(self, body=body, client_urls=(), pictures=tuple(pictures))

    def for_engine(self, served_name: str, stop_token_ids: list[int]) -> dict[str, Any]:
        """Return the body for an engine. Its pictures must have been read.

        Args:
            served_name: The engine's name for the model.
            stop_token_ids: The adapter's; empty for a base, whose answers end at its tokenizer's end of sequence.
        """
        body = {key: value for key, value in self.body.items() if key not in _NOT_FOR_ENGINES}
        body["model"] = served_name
        if self.pictures:
            body["messages"] = with_urls(body["messages"], [picture.url for picture in self.pictures])
        if stop_token_ids and not body.get("ignore_eos"):
            body["stop_token_ids"] = list(dict.fromkeys([*stop_token_ids, *(body.get("stop_token_ids") or [])]))
        if self.is_stream:
            # The metrics need the usage event; the client gets it only if it requested it.
            body["stream_options"] = {"include_usage": True}
        return body


def read_request(route: str, raw: bytes) -> CheckedRequest:
    """Return a checked request. Raises RequestError for a body that is not JSON, or has a field that is not valid."""
    if raw.count(b'"role"') > MOST_MESSAGES:  # before it is parsed; a valid body has one for each message
        raise _too_many_messages()
    try:
        body = json.loads(raw, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        why = "a number has too many digits" if "integer string conversion" in str(error) else error
        raise RequestError(400, f"the body is not valid JSON: {why}", "invalid_json") from error
    if not isinstance(body, dict):
        raise RequestError(400, "the body is not a JSON object", "invalid_json")
    urls = take_pictures(body.get("messages")) if route == CHAT_ROUTE else []
    _check_encodable(body)
    unknown = sorted(str(key)[:60] for key in body.keys() - FIELDS[route])
    if unknown:
        raise RequestError(400, f"unknown field {unknown[0]!r}; fix: leave it out", "unknown_field", unknown[0])
    body = {key: value for key, value in body.items() if value is not None}
    model, user = body.get("model"), body.get("user")
    fault = field_fault(body)
    if fault is not None:
        raise RequestError(400, fault[1], "invalid_type", fault[0])
    if not model:
        raise RequestError(400, "no model; fix: use one of GET /v1/models", "missing_model", "model")
    _check_choices(body)
    options = body.get("stream_options")
    if options is not None and (not isinstance(options, dict) or options.keys() - {"include_usage"}):
        raise RequestError(
            400,
            "stream_options may only have include_usage; fix: leave the others out",
            "unknown_field",
            "stream_options",
        )
    if route == CHAT_ROUTE:
        _check_messages(body.get("messages"))
        if len(urls) > MOST_PICTURES:
            message = f"{len(urls)} pictures, at most {MOST_PICTURES} are read; fix: send fewer"
            raise RequestError(400, message, "invalid_value", "messages")
    return CheckedRequest(
        route=route,
        model=model,
        user=user,
        is_stream=body.get("stream") is True,
        wants_usage=bool(options and options.get("include_usage")),
        body=body,
        client_urls=tuple(urls),
    )


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is not a number in JSON")


def _check_encodable(body: Any) -> None:
    """Refuse half a surrogate pair and numbers too large for a float. JSON may hold them, but no engine accepts them."""
    try:
        json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        raise RequestError(
            400, "the body has half a character (a lone surrogate), or a number that is too large", "invalid_json"
        ) from error


def _check_choices(body: Mapping[str, Any]) -> None:
    """Limit the answers of one request, over all of its prompts."""
    prompt = body.get("prompt")
    prompts = len(prompt) if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int) else 1
    for field in ("n", "best_of"):
        count = body.get(field, 1)
        if not 1 <= count <= _MOST_CHOICES:
            raise RequestError(400, f"{field} must be between 1 and {_MOST_CHOICES}", "invalid_value", field)
        if prompts * count > _MOST_CHOICES:
            raise RequestError(
                400,
                f"more than {_MOST_CHOICES} answers in one request; fix: send several requests",
                "invalid_value",
                "prompt",
            )


def _check_messages(messages: Any) -> None:
    """Accept texts and pictures. Audio and files are given as URLs or names, which an engine would open."""
    if not messages:
        message = 'no messages; fix: [{"role": "user", "content": "..."}]'
        raise RequestError(400, message, "missing_messages", "messages")
    if len(messages) > MOST_MESSAGES:
        raise _too_many_messages()
    for number, turn in enumerate(messages):
        fault, code = _turn_fault(turn)
        if fault:
            raise RequestError(400, f"messages[{number}]: {fault}", code, "messages")


def _too_many_messages() -> RequestError:
    message = f"more than {MOST_MESSAGES:,} messages; fix: shorten the conversation"
    return RequestError(413, message, "too_many_messages", "messages")


def _turn_fault(turn: Any) -> tuple[str, str]:
    """Return what is wrong with a message, and the error's code. Both are empty if nothing is."""
    if not isinstance(turn, dict):
        return "expected an object with role and content", "invalid_type"
    unknown = sorted(str(key)[:60] for key in turn.keys() - _TURN_FIELDS)
    if unknown:
        return f"unknown field {unknown[0]!r}; fix: leave it out", "unknown_field"
    role, content = turn.get("role"), turn.get("content")
    if role not in _ROLES:
        return f"role = {role!r:.40}: expected one of {', '.join(_ROLES)}", "invalid_value"
    texts = [field for field in _TURN_TEXTS if not isinstance(turn.get(field, ""), str | None)]
    if texts:
        return f"{texts[0]} = {turn[texts[0]]!r:.40}: expected text", "invalid_type"
    calls = turn.get("tool_calls")
    if calls is not None and not (isinstance(calls, list) and all(isinstance(call, dict) for call in calls)):
        return f"tool_calls = {calls!r:.40}: expected a list of calls", "invalid_type"
    if content is None and role == "assistant" and calls:
        return "", ""
    if not isinstance(content, str) and not (isinstance(content, list) and content):
        expected = "expected text, or a list of parts of the types text and image_url"
        return f"content = {content!r:.40}: {expected}", "invalid_type"
    for part in content if isinstance(content, list) else []:
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        if kind == "image_url":
            fault, code = picture_fault(part, role)
            if fault:
                return fault, code
            continue
        if not isinstance(part, dict) or kind != "text" or part.keys() - {"type", "text"}:
            return f"content of type {kind!r:.40} is not supported; fix: send text or image_url", "unsupported_content"
        if not isinstance(part.get("text"), str):
            return f"text = {part.get('text')!r:.40}: expected text", "invalid_type"
    return "", ""


def field_fault(body: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return the first field with an invalid value and what is wrong with it; None if all are valid."""
    for field, value in body.items():
        is_valid, expected = _KINDS.get(field, (None, ""))
        if is_valid is not None and not is_valid(value):
            return field, f"{field} = {value!r:.60}: expected {expected}"
        low, high = _RANGES.get(field, (value, value))
        if field in _RANGES and not low <= value <= high:
            return field, f"{field} = {value!r:.60}: expected a number from {low:,} to {high:,}"
    return None
