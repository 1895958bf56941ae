"""Answers as MLflow traces: one per side of a turn, linked to the logged model of the version that spoke."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlflow_finetune_plugin.errors import ConfigError, FinetuneError, TrackingError, in_short, without_secrets
from mlflow_finetune_plugin.store.clients import client_for, tracing_client_for
from mlflow_finetune_plugin.store.names import BASE, LEFT_TAG, VOTED_TAG
from mlflow_finetune_plugin.store.registry import find_model
from mlflow_finetune_plugin.votes.journal.vote import Receipt, Side, Turn, trace_id_for
from mlflow_finetune_plugin.votes.mlflow.spoken_answer import (
    SpokenAnswer,
    SpokenText,
    answer_tags,
    root_span,
    spoken_text,
    trace_info,
)

if TYPE_CHECKING:
    from mlflow.entities import TraceInfo

_BATCH = 100


def experiment_name(model: str) -> str:
    """Where a model's votes and their traces are in MLflow."""
    return f"{model}.votes"


@dataclass(frozen=True)
class SpokenTurn:
    """A turn with its answers. ``voter``: the salted hash of the person whose conversation it is; None: nobody's."""

    turn: Turn
    answers: tuple[SpokenAnswer, ...]
    voter: str | None = None


@dataclass(frozen=True)
class _Found:
    """A side's trace, and what its span must say if it has none. ``is_ours``: by its id."""

    trace_id: str
    answer: SpokenAnswer
    is_ours: bool
    is_new: bool


class VoteTraces:
    """The traces of one model's votes on one tracking server. Raises what MLflow raises; TrackingError where it cannot begin."""

    def __init__(self, model: str, tracking_uri: str | None = None) -> None:
        import mlflow

        self.uri = tracking_uri or mlflow.get_tracking_uri()
        self.server = without_secrets(self.uri)
        self.model = model
        with asked(self.server):  # a database is opened here
            self.client = client_for(self.uri)
            self.tracing = tracing_client_for(self.uri)
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

    def record(self, spoken: Sequence[SpokenTurn], experiment_id: str) -> None:
        """Traces of all answers, in as few requests as MLflow has for it. Again: the same ones, as told last."""
        spans = []
        for one in spoken:
            for answer in one.answers:
                self.tracing.start_trace(self._info(one.turn, answer, experiment_id, one.voter))
                spans.append(root_span(one.turn, answer))
        if spans:
            self.tracing.log_spans(experiment_id, spans)

    def write(
        self, turn: Turn, sides: Sequence[Side], cast_at_ms: int, experiment_id: str, voter: str | None = None
    ) -> list[str]:
        """The traces that a vote hangs on, in the order of the sides; made by us where MLflow has none. Again: the same ones.

        What a trace says already stays as it is. One that we make knows no other time than the vote's.
        """
        found = [self._found(turn, side, cast_at_ms, experiment_id, voter) for side in sides]
        whole = self.texts(one.trace_id for one in found if not one.is_new)
        spans = [root_span(turn, one.answer) for one in found if one.is_ours and one.trace_id not in whole]
        if spans:
            self.tracing.log_spans(experiment_id, spans)
        return [one.trace_id for one in found]

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

    def _found(self, turn: Turn, side: Side, cast_at_ms: int, experiment_id: str, voter: str | None) -> _Found:
        """One side's trace, marked as voted on; after a crash it may be without its span."""
        tags = _vote_tags(turn, side)
        ours = trace_id_for(turn.turn_id, side.answer_id)
        for trace_id in dict.fromkeys((side.trace_id or ours, ours)):
            there = self._info_here(trace_id, experiment_id)
            if there is not None:
                self._tag(there, tags)
                ended_at_ms = there.request_time + (there.execution_duration or 0)
                answer = SpokenAnswer(side, there.request_time, ended_at_ms)
                return _Found(trace_id, answer, is_ours=trace_id == ours, is_new=False)
        answer = SpokenAnswer(side, cast_at_ms, cast_at_ms)
        self.tracing.start_trace(self._info(turn, answer, experiment_id, voter, tags))
        return _Found(ours, answer, is_ours=True, is_new=True)

    def _info_here(self, trace_id: str, experiment_id: str) -> TraceInfo | None:
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
        answer: SpokenAnswer,
        experiment_id: str,
        voter: str | None,
        tags: dict[str, str] | None = None,
    ) -> TraceInfo:
        receipt = answer.side.receipt
        model_id = None if receipt is None else self.model_id(receipt)
        info = trace_info(turn, answer, experiment_id=experiment_id, voter=voter, model_id=model_id)
        info.tags |= tags or {}
        return info


def _vote_tags(turn: Turn, side: Side) -> dict[str, str]:
    left = {LEFT_TAG: "true"} if side.position == "left" else {}
    return {**answer_tags(turn, side), VOTED_TAG: "true", **left}


@contextmanager
def asked(server: str) -> Iterator[None]:
    """Everything that a tracking store raises, each errors of its own, as one TrackingError."""
    try:
        yield
    except FinetuneError:
        raise
    except Exception as error:  # requests', SQLAlchemy's, MLflow's
        raise TrackingError(f"the tracking server {server} cannot be asked about votes: {in_short(error)}") from error
