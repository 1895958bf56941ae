"""Answers as MLflow traces: one per side of a turn, linked to the logged model of the version that spoke."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlflow_finetune_plugin.errors import ConfigError, FinetuneError, TrackingError, in_short, without_secrets
from mlflow_finetune_plugin.registry import find_model
from mlflow_finetune_plugin.tracking import client_for
from mlflow_finetune_plugin.types import Message
from mlflow_finetune_plugin.votes.vote import BASE, Receipt, Side, Turn, clean, clean_messages, trace_id_for

if TYPE_CHECKING:
    from mlflow.entities import Span, Trace, TraceInfo

TURN_TAG = "finetune.turn_id"
MODEL_TAG = "finetune.model"
VERSION_TAG = "finetune.version"
LEFT_TAG = "finetune.shown_left"
"""On every trace whose answer was ever shown left. Each vote has one, so readers need only these, half of all traces."""
_PREVIEW = 1000  # characters
_TAG_VALUE = 4000  # characters; MLflow allows 8000 bytes and more, older servers less
_BATCH = 100


def experiment_name(model: str) -> str:
    """Where a model's votes and their traces are in MLflow."""
    return f"{model}.votes"


@dataclass(frozen=True)
class SpokenText:
    """What a trace says was asked and answered."""

    messages: tuple[Message, ...]
    answer: str


class VoteTraces:
    """The traces of one model's votes on one tracking server. Raises what MLflow raises."""

    def __init__(self, model: str, tracking_uri: str | None = None) -> None:
        import mlflow
        from mlflow.tracing.client import TracingClient

        self.uri = tracking_uri or mlflow.get_tracking_uri()
        self.server = without_secrets(self.uri)
        self.model = model
        self.client = client_for(self.uri)
        self.tracing = TracingClient(self.uri)
        self._model_ids: dict[tuple[str, str], str | None] = {}

    def experiment(self) -> str | None:
        """The id of the votes' experiment; None where nobody has voted. Raises TrackingError for a deleted one."""
        found = self.client.get_experiment_by_name(experiment_name(self.model))
        if found is None:
            return None
        if found.lifecycle_stage != "active":
            raise TrackingError(
                f"experiment {experiment_name(self.model)!r} is deleted; "
                f"fix: mlflow experiments restore --experiment-id {found.experiment_id}"
            )
        return str(found.experiment_id)

    def experiment_made(self) -> str:
        """The id of the votes' experiment, made where there is none; of several who make it, one does."""
        from mlflow.exceptions import MlflowException

        found = self.experiment()
        if found is not None:
            return found
        try:
            return str(self.client.create_experiment(experiment_name(self.model)))
        except MlflowException:
            found = self.experiment()
            if found is None:
                raise
            return found

    def write(self, turn: Turn, sides: Sequence[Side], cast_at_ms: int, experiment_id: str) -> list[str]:
        """Traces of the sides, in their order; made by us where a side has none in this experiment. Again: the same ones."""
        ids, spans = [], []
        for side in sides:
            if side.trace_id is not None and self._is_here(side.trace_id, experiment_id):
                self._tag(side.trace_id, turn, side)
                ids.append(side.trace_id)
                continue
            trace_id = trace_id_for(turn.turn_id, side.answer_id)
            self.tracing.start_trace(self._info(trace_id, turn, side, cast_at_ms, experiment_id))
            spans.append(_span(trace_id, turn, side, cast_at_ms))
            ids.append(trace_id)
        if spans:
            self.tracing.log_spans(experiment_id, spans)
        return ids

    def texts(self, trace_ids: Iterable[str]) -> dict[str, SpokenText]:
        """What the traces say; those that are gone, or say it in no way known here, are left out."""
        wanted = list(dict.fromkeys(trace_ids))
        found: dict[str, SpokenText] = {}
        for start in range(0, len(wanted), _BATCH):
            for trace in self.tracing.batch_get_traces(wanted[start : start + _BATCH]):
                text = spoken_text(trace)
                if text is not None:
                    found[trace.info.trace_id] = text
        return found

    def model_id(self, receipt: Receipt) -> str | None:
        """The logged model behind a version; None for a base, and for what the registry does not know."""
        key = (receipt.model, receipt.version)
        if receipt.version == BASE:
            return None
        if key not in self._model_ids:
            self._model_ids[key] = self._ask_model_id(*key)
        return self._model_ids[key]

    def _ask_model_id(self, model: str, version: str) -> str | None:
        try:
            return find_model(self.client, f"models:/{model}/{version}").model_id
        except ConfigError:
            return None

    def _is_here(self, trace_id: str, experiment_id: str) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            return bool(self.tracing.get_trace_info(trace_id).experiment_id == experiment_id)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise

    def _tag(self, trace_id: str, turn: Turn, side: Side) -> None:
        for key, value in _tags(turn, side).items():
            self.tracing.set_trace_tag(trace_id, key, value)

    def _info(self, trace_id: str, turn: Turn, side: Side, cast_at_ms: int, experiment_id: str) -> TraceInfo:
        from mlflow.entities import TraceInfo, TraceLocation, TraceState
        from mlflow.tracing.constant import TraceMetadataKey, TraceTagKey

        metadata = {TraceMetadataKey.TRACE_SESSION: clean(turn.session)[:200]}
        model_id = None if side.receipt is None else self.model_id(side.receipt)
        if model_id is not None:
            metadata[TraceMetadataKey.MODEL_ID] = model_id
        return TraceInfo(
            trace_id=trace_id,
            trace_location=TraceLocation.from_experiment_id(experiment_id),
            request_time=cast_at_ms,
            state=TraceState.OK,
            request_preview=clean(turn.messages[-1]["content"])[:_PREVIEW],
            response_preview=clean(side.answer)[:_PREVIEW],
            execution_duration=0,
            trace_metadata=metadata,
            tags={**_tags(turn, side), TraceTagKey.TRACE_NAME: "answer"},
        )


def spoken_text(trace: Trace) -> SpokenText | None:
    """The prompt and the answer of a trace of ours, or of one whose root span has ``messages`` and an answer."""
    root = next((span for span in trace.data.spans if span.parent_id is None), None)
    inputs = root.inputs if root is not None else None
    messages = inputs.get("messages") if isinstance(inputs, dict) else None
    answer = root.outputs if root is not None else None
    if isinstance(answer, dict):  # an OpenAI answer
        choices = answer.get("choices") or [{}]
        answer = (choices[0].get("message") or {}).get("content") if isinstance(choices[0], dict) else None
    if not isinstance(messages, list) or not isinstance(answer, str):
        return None
    return SpokenText(tuple(messages), answer)


@contextmanager
def asked(server: str) -> Iterator[None]:
    """Everything that a tracking store raises, each errors of its own, as one TrackingError."""
    try:
        yield
    except FinetuneError:
        raise
    except Exception as error:  # requests', SQLAlchemy's, MLflow's
        raise TrackingError(f"the tracking server {server} cannot be asked about votes: {in_short(error)}") from error


def _tags(turn: Turn, side: Side) -> dict[str, str]:
    tags = {TURN_TAG: turn.turn_id} | ({LEFT_TAG: "true"} if side.position == "left" else {})
    if side.receipt is not None:
        tags |= {MODEL_TAG: side.receipt.model, VERSION_TAG: side.receipt.version}
    return {key: clean(value)[:_TAG_VALUE] for key, value in tags.items()}


def _span(trace_id: str, turn: Turn, side: Side, cast_at_ms: int) -> Span:
    from mlflow.entities import Span, SpanType
    from mlflow.tracing.constant import SpanAttributeKey

    attributes: dict[str, Any] = {
        SpanAttributeKey.REQUEST_ID: trace_id,
        SpanAttributeKey.SPAN_TYPE: SpanType.CHAT_MODEL,
        SpanAttributeKey.INPUTS: {"messages": clean_messages(turn.messages)},
        SpanAttributeKey.OUTPUTS: clean(side.answer),
    }
    told: dict[str, Any] = {
        "trace_id": trace_id,
        "span_id": hashlib.sha256(trace_id.encode()).hexdigest()[:16],
        "parent_span_id": None,
        "name": "answer",
        "start_time_unix_nano": cast_at_ms * 1_000_000,
        "end_time_unix_nano": cast_at_ms * 1_000_000,
        "status": {"code": "STATUS_CODE_OK", "message": ""},
        "events": [],
        "attributes": {key: json.dumps(value, ensure_ascii=False) for key, value in attributes.items()},
    }
    return Span.from_dict(told)
