"""An answer as an MLflow trace: the prompt, the model, the sampling settings, the times and how the answer ended."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from mlflow_finetune_plugin.evaluation.results import Message
from mlflow_finetune_plugin.store.names import (
    FAULT_ATTRIBUTE,
    FINISH_TAG,
    FIRST_TOKEN_ATTRIBUTE,
    RECEIPT_ATTRIBUTE,
    SAMPLING_ATTRIBUTE,
    SYSTEM_PROMPT_ATTRIBUTE,
    TRACE_MODEL_TAG,
    TRACE_VERSION_TAG,
    TURN_TAG,
)
from mlflow_finetune_plugin.votes.journal.vote import Turn, VoteSide, clean, clean_messages, text_digest, trace_id_for

if TYPE_CHECKING:
    from mlflow.entities import Span, Trace, TraceInfo

STOPPED = "stopped"
"""The finish reason of an answer that the user stopped; endpoints do not use it."""
_PREVIEW = 1000  # characters
_TAG_VALUE = 4000  # characters; MLflow allows 8000 bytes and more, older servers less
_SESSION = 200  # characters; MLflow's column


@dataclass(frozen=True)
class TracedAnswer:
    """The answer of one side to a turn. None always means unknown or not present.

    Args:
        side: Text, receipt and position.
        started_at_ms: When the request was sent, in milliseconds since 1970.
        ended_at_ms: When the answer ended, in milliseconds since 1970.
        model: The model name in the request.
        sampling: The sampling settings in the request.
        system_prompt: The system prompt of this side, where it differs from the turn's.
        first_token_ms: From the request to the first token, in milliseconds.
        prompt_tokens: Tokens of the prompt.
        completion_tokens: Tokens of the answer.
        finish_reason: The reason that the endpoint gives (``stop``, ``length``), or ``STOPPED``.
        fault: Why the answer is incomplete.
    """

    side: VoteSide
    started_at_ms: int
    ended_at_ms: int
    model: str | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    system_prompt: str | None = None
    first_token_ms: float | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    finish_reason: str | None = None
    fault: str | None = None

    @property
    def duration_ms(self) -> int:
        """The time that the answer took; 0 where the clock went back."""
        return max(0, self.ended_at_ms - self.started_at_ms)

    def trace_id(self, turn: Turn) -> str:
        """Return the id of the trace. The turn log and the vote mirror use the same one."""
        return trace_id_for(turn.turn_id, self.side.answer_id)


@dataclass(frozen=True)
class TraceText:
    """The prompt and the answer of a trace."""

    messages: tuple[Message, ...]
    answer: str


def trace_info(
    turn: Turn, answer: TracedAnswer, *, experiment_id: str, voter: str | None, model_id: str | None
) -> TraceInfo:
    """Return the trace without its span. ``voter`` is the salted hash of the person in the conversation."""
    from mlflow.entities import TraceInfo, TraceLocation, TraceState
    from mlflow.tracing.constant import TraceMetadataKey, TraceTagKey

    metadata = {
        TraceMetadataKey.TRACE_SESSION: trace_session(turn.session),
        TraceMetadataKey.TRACE_USER: None if voter is None else clean(voter),
        TraceMetadataKey.MODEL_ID: model_id,
    }
    finish = {} if answer.finish_reason is None else {FINISH_TAG: clean(answer.finish_reason)[:_TAG_VALUE]}
    return TraceInfo(
        trace_id=answer.trace_id(turn),
        trace_location=TraceLocation.from_experiment_id(experiment_id),
        request_time=answer.started_at_ms,
        state=TraceState.OK if answer.fault is None else TraceState.ERROR,
        request_preview=clean(turn.messages[-1]["content"])[:_PREVIEW],
        response_preview=clean(answer.side.answer or answer.fault or "")[:_PREVIEW],
        execution_duration=answer.duration_ms,
        trace_metadata={key: value for key, value in metadata.items() if value is not None},
        tags={**answer_tags(turn, answer.side), **finish, TraceTagKey.TRACE_NAME: "answer"},
    )


def trace_session(session: str) -> str:
    """Return the session's name in traces. A name that is too long for MLflow ends in its digest."""
    text = clean(session)
    return text if len(text) <= _SESSION else text[: _SESSION - 64] + text_digest(text)


def answer_tags(turn: Turn, side: VoteSide) -> dict[str, str]:
    """Return the tags by which the traces of a turn or a version can be searched."""
    tags = {TURN_TAG: turn.turn_id}
    if side.receipt is not None:
        tags |= {TRACE_MODEL_TAG: side.receipt.model, TRACE_VERSION_TAG: side.receipt.version}
    return {key: clean(value)[:_TAG_VALUE] for key, value in tags.items()}


def root_span(turn: Turn, answer: TracedAnswer) -> Span:
    """Return the only span of a trace. Writing it again replaces it."""
    from mlflow.entities import Span

    trace_id = answer.trace_id(turn)
    start_ns = answer.started_at_ms * 1_000_000
    failed = {"code": "STATUS_CODE_ERROR", "message": clean(answer.fault or "")}
    fields: dict[str, Any] = {
        "trace_id": trace_id,
        "span_id": hashlib.sha256(trace_id.encode()).hexdigest()[:16],
        "parent_span_id": None,
        "name": "answer",
        "start_time_unix_nano": start_ns,
        "end_time_unix_nano": start_ns + answer.duration_ms * 1_000_000,
        "status": {"code": "STATUS_CODE_OK", "message": ""} if answer.fault is None else failed,
        "events": _events(answer, start_ns),
        "attributes": {
            key: clean(json.dumps(value, ensure_ascii=False, default=str))
            for key, value in _attributes(trace_id, turn, answer).items()
            if value is not None
        },
    }
    return Span.from_dict(fields)


def _attributes(trace_id: str, turn: Turn, answer: TracedAnswer) -> dict[str, Any]:
    from mlflow.entities import SpanType
    from mlflow.tracing.constant import SpanAttributeKey

    request = {"model": answer.model, "system_prompt": answer.system_prompt, **answer.sampling}
    receipt = answer.side.receipt
    return {
        SpanAttributeKey.REQUEST_ID: trace_id,
        SpanAttributeKey.SPAN_TYPE: SpanType.CHAT_MODEL,
        SpanAttributeKey.INPUTS: {
            "messages": clean_messages(turn.messages),
            **{key: value for key, value in request.items() if value is not None},
        },
        SpanAttributeKey.OUTPUTS: clean(answer.side.answer),
        SpanAttributeKey.MODEL: answer.model,
        SpanAttributeKey.CHAT_USAGE: _usage(answer),
        SAMPLING_ATTRIBUTE: dict(answer.sampling) or None,
        SYSTEM_PROMPT_ATTRIBUTE: answer.system_prompt,
        RECEIPT_ATTRIBUTE: None if receipt is None else asdict(receipt),
        FIRST_TOKEN_ATTRIBUTE: answer.first_token_ms,
        FINISH_TAG: answer.finish_reason,
        FAULT_ATTRIBUTE: answer.fault,
    }


def _usage(answer: TracedAnswer) -> dict[str, int] | None:
    """Return the token counts that MLflow sums up; None if one is unknown, because the sum would be wrong."""
    from mlflow.tracing.constant import TokenUsageKey

    prompt, completion = answer.prompt_tokens, answer.completion_tokens
    if prompt is None or completion is None:
        return None
    return {
        TokenUsageKey.INPUT_TOKENS: prompt,
        TokenUsageKey.OUTPUT_TOKENS: completion,
        TokenUsageKey.TOTAL_TOKENS: prompt + completion,
    }


def _events(answer: TracedAnswer, start_ns: int) -> list[dict[str, Any]]:
    if answer.first_token_ms is None:
        return []
    at_ns = start_ns + int(answer.first_token_ms * 1_000_000)
    return [{"name": "first_token", "time_unix_nano": at_ns, "attributes": {}}]


def trace_text(trace: Trace) -> TraceText | None:
    """Return prompt and answer of a trace of this package, or of any whose root span has ``messages`` and an answer."""
    root = next((span for span in trace.data.spans if span.parent_id is None), None)
    inputs = root.inputs if root is not None else None
    messages = inputs.get("messages") if isinstance(inputs, dict) else None
    answer = root.outputs if root is not None else None
    if isinstance(answer, dict):  # OpenAI's format
        choices = answer.get("choices") or [{}]
        answer = (choices[0].get("message") or {}).get("content") if isinstance(choices[0], dict) else None
    if not isinstance(messages, list) or not isinstance(answer, str):
        return None
    return TraceText(tuple(messages), answer)
