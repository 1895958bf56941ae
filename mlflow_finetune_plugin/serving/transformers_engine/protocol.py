"""The fields of requests: OpenAI's that are supported, and vLLM's. Any other field is refused by name."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from mlflow_finetune_plugin.data.conversations.templates import RESERVED_SETTINGS
from mlflow_finetune_plugin.data.conversations.turns.tool_calls import served_tool
from mlflow_finetune_plugin.images.turns import PICTURES, marked_text
from mlflow_finetune_plugin.serving.transformers_engine.sampling import SamplingParams

UNSUPPORTED = (
    "response_format",
    "functions",
    "function_call",
    "logit_bias",
    "suffix",
    "best_of",
)
_COMPLETION_TOKENS = 16  # OpenAI's default
_INT64 = 2**63

TokenIds = list[Annotated[int, Field(strict=True, ge=0)]]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class StreamOptions(_Body):
    include_usage: bool = False
    continuous_usage_stats: bool = False


class Message(_Body):
    """A message. Parts of content are joined: texts, and pictures as data URLs."""

    model_config = ConfigDict(extra="allow")

    role: str
    content: str | list[dict[str, Any]] | None = None

    def turn(self) -> dict[str, Any]:
        """Return the message as a turn, with the data URLs of its pictures (``images.turns``).

        Raises:
            ValueError: A part is neither text nor a picture.
        """
        extra = {name: value for name, value in (self.model_extra or {}).items() if name != PICTURES}
        if extra.get("tool_calls"):
            if not isinstance(extra["tool_calls"], list):
                raise ValueError("messages: tool_calls: expected a list; fix: send a list of calls")
            extra = {**extra, "tool_calls": [_call(call) for call in extra["tool_calls"]]}
        if not isinstance(self.content, list):
            return {**extra, "role": self.role, "content": self.content or ""}
        text, pictures = marked_text([_piece(part) for part in self.content])
        return {**extra, "role": self.role, "content": text, **({PICTURES: pictures} if pictures else {})}


def _piece(part: dict[str, Any]) -> tuple[str, str]:
    """Return what a part is, and its text or its data URL."""
    picture = part.get("image_url")
    if part.get("type") == "image_url" and isinstance(picture, dict) and isinstance(picture.get("url"), str):
        return "picture", picture["url"]
    if not isinstance(part.get("text"), str):
        raise ValueError(
            f"messages: a content part of type {part.get('type')!r:.40}; fix: send text, or image_url with a data URL"
        )
    return "text", part["text"]


def _call(call: Any) -> Any:
    """Return a tool call with its arguments as an object, as chat templates expect it. Raises ValueError for other JSON."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"] or "{}", parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"messages: the arguments of a tool call are not JSON: {error}") from error
    return {**call, "function": {**function, "arguments": arguments}}


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is not a number in JSON")


class _Generation(_Body):
    """The fields that chats and completions share."""

    model: str
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, allow_inf_nan=False)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1)
    min_p: float | None = Field(None, ge=0, le=1)
    seed: int | None = Field(None, ge=-_INT64, lt=_INT64)
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    n: int | None = Field(None, ge=1, le=128)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, gt=0, allow_inf_nan=False)
    prompt_logprobs: int | None = Field(None, ge=0)
    skip_special_tokens: bool = True
    return_token_ids: bool | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    echo: Literal[False] = False
    user: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_unused(cls, body: Any) -> Any:
        """Drop unsupported fields that are null, because clients send null for what they do not use."""
        if isinstance(body, dict):
            return {name: value for name, value in body.items() if name not in UNSUPPORTED or value is not None}
        return body

    @model_validator(mode="after")
    def _fits_together(self) -> _Generation:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options: only with stream=true")
        if self.prompt_logprobs is not None and self.stream:
            raise ValueError("prompt_logprobs: not with stream=true")
        if "" in self.stop_texts:
            raise ValueError("stop: an empty text would end every answer; fix: leave it out")
        return self

    @property
    def stop_texts(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def choices(self) -> int:
        """The number of answers per prompt."""
        return self.n or 1

    def answer_tokens(self, room: int) -> int:
        """Return the limit of an answer in tokens. Raises ValueError if the request sets one that is above ``room``."""
        raise NotImplementedError

    def token_logprobs(self) -> int | None:
        """Return how many likeliest tokens to report with each token; None for no log-probabilities."""
        raise NotImplementedError

    def sampling(self, *, max_tokens: int) -> SamplingParams:
        """Return the sampling parameters; fields without a value have OpenAI's defaults."""
        values = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": None if self.top_k is None else max(self.top_k, 0),  # vLLM's -1 means all
            "min_p": self.min_p,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "repetition_penalty": self.repetition_penalty,
        }
        return SamplingParams(
            max_tokens=max_tokens,
            seed=self.seed,
            stop=self.stop_texts,
            stop_token_ids=frozenset(self.stop_token_ids or ()),
            ignore_eos=self.ignore_eos,
            skip_special_tokens=self.skip_special_tokens,
            logprobs=self.token_logprobs(),
            prompt_logprobs=self.prompt_logprobs,
            **{name: value for name, value in values.items() if value is not None},  # type: ignore[arg-type]
        )


class Tool(BaseModel):
    """A tool that an answer may call."""

    type: Literal["function"] = "function"
    function: dict[str, Any]

    def for_template(self) -> dict[str, Any]:
        """Return the tool as the chat template expects it."""
        return served_tool(self.function)


class ChatRequest(_Generation):
    """POST /v1/chat/completions.

    ``tools`` and ``chat_template_kwargs`` go to the chat template. Answers are text: this engine takes no calls out of it.
    """

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = False
    top_logprobs: int | None = Field(None, ge=0, le=20)
    add_generation_prompt: bool = True
    continue_final_message: Literal[False] = False
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    @field_validator("chat_template_kwargs")
    @classmethod
    def _are_of_the_template(cls, settings: dict[str, Any] | None) -> dict[str, Any] | None:
        if own := sorted(set(settings or {}) & RESERVED_SETTINGS):
            raise ValueError(f"{own[0]!r} is not a setting of a chat template; fix: remove it")
        return settings

    @model_validator(mode="after")
    def _logprobs_fit(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs: only with logprobs=true")
        return self

    def answer_tokens(self, room: int) -> int:
        return _fitting("max_completion_tokens", self.max_completion_tokens or self.max_tokens, room) or room

    def token_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(_Generation):
    """POST /v1/completions.

    ``pictures`` has the data URLs of each prompt's pictures. It is not vLLM's: the router sends it to certify a version that sees.
    """

    prompt: str | TokenIds | list[str] | list[TokenIds]
    pictures: list[list[str]] | None = None
    logprobs: int | None = Field(None, ge=0, le=20)

    def token_logprobs(self) -> int | None:
        return self.logprobs

    def answer_tokens(self, room: int) -> int:
        return _fitting("max_tokens", self.max_tokens, room) or min(_COMPLETION_TOKENS, room)

    def prompts(self) -> list[str | list[int]]:
        """Return one or several prompts. Raises ValueError if there is none."""
        if not self.prompt:
            raise ValueError("prompt: empty; fix: send at least one token")
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [self.prompt]  # type: ignore[list-item]
        return list(self.prompt)  # type: ignore[arg-type]

    def pictures_of_prompts(self) -> list[list[str]]:
        """Return the data URLs of each prompt's pictures. Raises ValueError for lists that belong to no prompt."""
        prompts = len(self.prompts())
        if self.pictures is not None and len(self.pictures) != prompts:
            raise ValueError(f"pictures: {len(self.pictures)} lists for {prompts} prompts; fix: a list for each prompt")
        return self.pictures if self.pictures is not None else [[] for _ in range(prompts)]


def _fitting(name: str, value: int | None, room: int) -> int | None:
    if value is not None and value > room:
        raise ValueError(
            f"{name} = {value}: the prompt leaves room for {room} tokens; fix: use a smaller number, or leave it out"
        )
    return value


class LoadAdapter(_Body):
    """POST /v1/load_lora_adapter."""

    lora_name: str = Field(min_length=1)
    lora_path: str = Field(min_length=1)


class UnloadAdapter(_Body):
    """POST /v1/unload_lora_adapter."""

    lora_name: str = Field(min_length=1)
