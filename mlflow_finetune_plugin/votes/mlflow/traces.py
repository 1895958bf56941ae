"""Answers as MLflow traces: one per side of a turn, linked to the logged model of the version that answered."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlflow_finetune_plugin.errors import ConfigError, FinetuneError, TrackingError, in_short, without_secrets
from mlflow_finetune_plugin.store.clients import client_for, is_refusal, tracing_client_for
from mlflow_finetune_plugin.store.names import BASE, LEFT_TAG, VOTED_TAG
from mlflow_finetune_plugin.store.registry import find_model
from mlflow_finetune_plugin.votes.journal.vote import Receipt, Turn, VoteSide, trace_id_for
from mlflow_finetune_plugin.votes.mlflow.answer_trace import (
    TracedAnswer,
    TraceText,
    answer_tags,
    root_span,
    trace_info,
    trace_text,
)

if TYPE_CHECKING:
    from mlflow.entities import TraceInfo
    from mlflow.exceptions import MlflowException

_BATCH = 100
_PAGE = 500
_ACCESS_REFUSALS = {"PERMISSION_DENIED", "UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED"}


def experiment_name(model: str) -> str:
    """Return the name of the MLflow experiment with the votes of a model."""
    return f"{model}.votes"


@dataclass(frozen=True)
class TracedTurn:
    """A turn with its answers. ``voter`` is the salted hash of the person in the conversation; None: not known."""

    turn: Turn
    answers: tuple[TracedAnswer, ...]
    voter: str | None = None


@dataclass(frozen=True)
class _SideTrace:
    """The trace of a side, and the answer for its span if the trace has none. ``is_ours``: the id is one of this package."""

    trace_id: str
    answer: TracedAnswer
    is_ours: bool
    is_new: bool


class VoteTraces:
    """The traces of a model's votes on a tracking server.

    Creating the object raises TrackingError if the store cannot be opened. The methods raise the errors of MLflow; wrap the
    calls in ``tracking_errors``.
    """

    def __init__(self, model: str, tracking_uri: str | None = None) -> None:
        import mlflow

        self.uri = tracking_uri or mlflow.get_tracking_uri()
        self.server = without_secrets(self.uri)
        self.model = model
        with tracking_errors(self.server):  # A database is opened here.
            self.client = client_for(self.uri)
            self.tracing = tracing_client_for(self.uri)
        self._model_ids: dict[tuple[str, str], str | None] = {}

    def experiment(self) -> str | None:
        """Return the id of the experiment; None if it does not exist. Raises TrackingError for a deleted experiment."""
        experiment = self.client.get_experiment_by_name(experiment_name(self.model))
        if experiment is None:
            return None
        if experiment.lifecycle_stage != "active":
            raise TrackingError(
                f"experiment {experiment_name(self.model)!r} is deleted; "
                f"fix: mlflow experiments restore --experiment-id {experiment.experiment_id}"
            )
        return str(experiment.experiment_id)

    def ensure_experiment(self) -> str:
        """Return the id of the experiment, creating it if needed. Several processes may call this at the same time."""
        from mlflow.exceptions import MlflowException

        experiment_id = self.experiment()
        if experiment_id is not None:
            return experiment_id
        try:
            return str(self.client.create_experiment(experiment_name(self.model)))
        except MlflowException:
            experiment_id = self.experiment()
            if experiment_id is None:
                raise
            return experiment_id

    def record(self, turns: Sequence[TracedTurn], experiment_id: str) -> None:
        """Write the traces of all answers, in as few requests as possible. A repeated call replaces them."""
        spans = []
        for traced in turns:
            for answer in traced.answers:
                self.tracing.start_trace(self._info(traced.turn, answer, experiment_id, traced.voter))
                spans.append(root_span(traced.turn, answer))
        if spans:
            self.tracing.log_spans(experiment_id, spans)

    def write(
        self, turn: Turn, sides: Sequence[VoteSide], cast_at_ms: int, experiment_id: str, voter: str | None = None
    ) -> list[str]:
        """Return the ids of the traces for the feedback of a vote, in the order of the sides. Missing traces are created.

        Existing traces are not changed, apart from their tags. A new trace has the time of the vote, because no other time is
        known. A repeated call returns the same ids.
        """
        traces = [self._side_trace(turn, side, cast_at_ms, experiment_id, voter) for side in sides]
        texts = self.texts(trace.trace_id for trace in traces if not trace.is_new)
        spans = [root_span(turn, trace.answer) for trace in traces if trace.is_ours and trace.trace_id not in texts]
        if spans:
            self.tracing.log_spans(experiment_id, spans)
        return [trace.trace_id for trace in traces]

    def texts(self, trace_ids: Iterable[str]) -> dict[str, TraceText]:
        """Return prompt and answer by trace id. Traces that are deleted or in another format are left out."""
        ids = list(dict.fromkeys(trace_ids))
        texts: dict[str, TraceText] = {}
        for start in range(0, len(ids), _BATCH):
            for trace in self.tracing.batch_get_traces(ids[start : start + _BATCH]):
                text = trace_text(trace)
                if text is not None:
                    texts[trace.info.trace_id] = text
        return texts

    def search(
        self, experiment_id: str, filter_string: str | None = None, order_by: list[str] | None = None
    ) -> Iterator[TraceInfo]:
        """Yield the matching traces without their spans, page by page."""
        token: str | None = None
        while True:
            page = self.tracing.search_traces(
                locations=[experiment_id],
                max_results=_PAGE,
                filter_string=filter_string,
                order_by=order_by,
                page_token=token,
                include_spans=False,
            )
            yield from (trace.info for trace in page)
            token = page.token
            if not token:
                return

    def model_id(self, receipt: Receipt) -> str | None:
        """Return the logged model of a version; None for the base and for a version that the registry does not have."""
        key = (receipt.model, receipt.version)
        if receipt.version == BASE:
            return None
        if key not in self._model_ids:
            self._model_ids[key] = self._find_model_id(*key)
        return self._model_ids[key]

    def _find_model_id(self, model: str, version: str) -> str | None:
        try:
            return find_model(self.client, f"models:/{model}/{version}").model_id
        except ConfigError:
            return None

    def _side_trace(
        self, turn: Turn, side: VoteSide, cast_at_ms: int, experiment_id: str, voter: str | None
    ) -> _SideTrace:
        """Find or create the trace of a side and tag it as voted on. After a crash a trace may have no span."""
        tags = _vote_tags(turn, side)
        ours = trace_id_for(turn.turn_id, side.answer_id)
        for trace_id in dict.fromkeys((side.trace_id or ours, ours)):
            info = self._existing_info(trace_id, experiment_id)
            if info is not None:
                self._tag(info, tags)
                ended_at_ms = info.request_time + (info.execution_duration or 0)
                answer = TracedAnswer(side, info.request_time, ended_at_ms)
                return _SideTrace(trace_id, answer, is_ours=trace_id == ours, is_new=False)
        answer = TracedAnswer(side, cast_at_ms, cast_at_ms)
        self.tracing.start_trace(self._info(turn, answer, experiment_id, voter, tags))
        return _SideTrace(ours, answer, is_ours=True, is_new=True)

    def _existing_info(self, trace_id: str, experiment_id: str) -> TraceInfo | None:
        from mlflow.exceptions import MlflowException

        try:
            info = self.tracing.get_trace_info(trace_id)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        return info if info.experiment_id == experiment_id else None

    def _tag(self, info: TraceInfo, tags: dict[str, str]) -> None:
        for key, value in tags.items():
            if info.tags.get(key) != value:
                self.tracing.set_trace_tag(info.trace_id, key, value)

    def _info(
        self,
        turn: Turn,
        answer: TracedAnswer,
        experiment_id: str,
        voter: str | None,
        tags: dict[str, str] | None = None,
    ) -> TraceInfo:
        receipt = answer.side.receipt
        model_id = None if receipt is None else self.model_id(receipt)
        info = trace_info(turn, answer, experiment_id=experiment_id, voter=voter, model_id=model_id)
        info.tags |= tags or {}
        return info


def _vote_tags(turn: Turn, side: VoteSide) -> dict[str, str]:
    left = {LEFT_TAG: "true"} if side.position == "left" else {}
    return {**answer_tags(turn, side), VOTED_TAG: "true", **left}


def is_permanent_refusal(error: MlflowException) -> bool:
    """Check whether the server will never accept a request. Missing permissions can be granted later and do not count."""
    return is_refusal(error) and error.error_code not in _ACCESS_REFUSALS


@contextmanager
def tracking_errors(server: str) -> Iterator[None]:
    """Raise a TrackingError for any error of a tracking store. Stores raise errors of requests, SQLAlchemy and MLflow."""
    try:
        yield
    except FinetuneError:
        raise
    except Exception as error:
        raise TrackingError(f"the tracking server {server} failed to read or write votes: {in_short(error)}") from error
