"""Read a model's versions from the registry and their training runs: a list, newest first, and one version in detail.

The list costs one search of the registry and one of the runs for each experiment, however many versions there are. Loss
curves are read for the selected version only. Nothing is written.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from gradio_app.versions.mlflow_pages import run_page, version_page
from mlflow_finetune_plugin.errors import MoveError
from mlflow_finetune_plugin.store.names import (
    ADAPTATION_TAG,
    BASE_MODEL_TAG,
    CERTIFICATE_TAG,
    CONVERTED_FROM_TAG,
    DATA_DIGEST_TAG,
    EVAL_ADAPTER,
    EVAL_BASE,
    EVAL_GAIN,
    EVAL_GAIN_HIGH,
    EVAL_GAIN_LOW,
    EVAL_LOSS,
    FORGETTING,
    FORGETTING_HIGH,
    FORGETTING_LOW,
    OBJECTIVE_TAG,
    START_FROM_TAG,
    STATUS_TAG,
    TRAIN_LOSS,
    VERDICT_TAG,
)
from mlflow_finetune_plugin.store.registered_model import read_model, registry_faults

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

MOST_VERSIONS = 500
"""Most versions of a list; older ones are selected by number."""
_RUNS_AT_ONCE = 100
_INFINITE = 1e308
_CURVES = {"train": TRAIN_LOSS, "eval": EVAL_LOSS}
_NUMBER = re.compile(r"[1-9][0-9]{0,9}")
_VERDICT = re.compile(r"(?P<outcome>\w+) for (?P<alias>.+), run (?P<run_id>\w+)")


@dataclass(frozen=True)
class Bounds:
    """A point estimate with its 95 % interval; ``low`` and ``high`` are None where none was logged."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class GainFigure:
    """A metric of the adapter and its base on the held-out rows; the gain is above 0 where the adapter is better."""

    metric: str
    base: float | None
    adapter: float | None
    gain: Bounds


@dataclass(frozen=True)
class CertificateSummary:
    """An engine's certificate for a version in a precision: whether the engine answers as the version was trained to."""

    engine: str
    precision: str
    passed: bool
    text: str


@dataclass(frozen=True)
class GateVerdict:
    """The gate's last verdict on a version. ``run_id`` holds its report; None where something else wrote the tag."""

    outcome: str
    alias: str
    run_id: str | None


@dataclass(frozen=True)
class TrainingRun:
    """The run that trained a version.

    ``status`` is MLflow's, ``reason`` why the run ended so where it did not finish, and ``page_url`` its page in
    MLflow, None where MLflow tracks without an HTTP server.
    """

    run_id: str
    status: str
    reason: str | None
    train_rows: int | None
    eval_rows: int | None
    page_url: str | None = None


@dataclass(frozen=True)
class VersionCard:
    """A registered version. What is None or empty is not known.

    ``run`` is None where the training run was deleted, and ``page_url`` where the registry has no HTTP server.
    """

    model: str
    number: str
    aliases: tuple[str, ...]
    created_ms: int
    status: str
    adaptation: str | None
    objective: str | None
    base_model: str | None
    data_digest: str | None
    converted_from: str | None
    start_from: str | None
    gains: tuple[GainFigure, ...]
    forgetting: Bounds | None
    certificates: tuple[CertificateSummary, ...]
    verdict: GateVerdict | None
    run: TrainingRun | None
    page_url: str | None = None

    @property
    def adaptation_and_objective(self) -> str | None:
        return f"{self.adaptation} x {self.objective}" if self.adaptation and self.objective else None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Versions:
    """Versions of a model, newest first. ``has_more`` says that there are older ones."""

    model: str
    rows: tuple[VersionCard, ...]
    has_more: bool


@dataclass(frozen=True)
class Curve:
    """A loss by optimizer step, in nats per token; ``left_out`` values were not finite."""

    name: str
    points: tuple[tuple[int, float], ...]
    left_out: int = 0


@dataclass(frozen=True)
class VersionDetails:
    version: VersionCard
    curves: tuple[Curve, ...]


def list_versions(client: MlflowClient, model: str, *, limit: int = 50) -> Versions:
    """Return a model's newest versions.

    Raises:
        MoveError: the registry does not have the model.
        TrackingError: the registry cannot be read.
    """
    limit = min(limit, MOST_VERSIONS)
    quote = '"' if "'" in model else "'"
    with registry_faults(model):
        aliases, _ = read_model(client, model)
        page = client.search_model_versions(
            f"name = {quote}{model}{quote}", max_results=limit, order_by=["version_number DESC"]
        )
        runs = _runs(client, [version.run_id for version in page])
    rows = tuple(_version(client, version, aliases, runs.get(str(version.run_id))) for version in page)
    return Versions(model, rows, has_more=bool(page.token))


def read_card(client: MlflowClient, model: str, number: str) -> VersionDetails:
    """Return a version with its loss curves. Raises MoveError for a version that does not exist, TrackingError."""
    with registry_faults(model):
        aliases, _ = read_model(client, model)
        version = find_version(client, model, number)
        run = _runs(client, [version.run_id]).get(str(version.run_id))
        curves = tuple(_curve(client, run.info.run_id, name) for name in _CURVES) if run is not None else ()
    return VersionDetails(_version(client, version, aliases, run), tuple(curve for curve in curves if curve.points))


def find_version(client: MlflowClient, model: str, number: str) -> ModelVersion:
    """Return a registered version. Raises MoveError for a version that does not exist, MlflowException."""
    from mlflow.exceptions import MlflowException

    missing = MoveError(f"{model}: no version {number[:20]!r}; fix: pick one from the list")
    if not _NUMBER.fullmatch(number):
        raise missing
    try:
        return client.get_model_version(model, number)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise missing from error


def _runs(client: MlflowClient, run_ids: Sequence[str | None]) -> dict[str, Run]:
    """Return the runs that exist, deleted ones too, with one search for each experiment and each hundred runs."""
    from mlflow.entities import ViewType
    from mlflow.exceptions import MlflowException

    runs: dict[str, Run] = {}
    left = list(dict.fromkeys(run_id for run_id in run_ids if run_id and re.fullmatch(r"\w+", run_id)))
    while left:
        first = left.pop(0)
        try:
            run = client.get_run(first)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            continue
        runs[first] = run
        for start in range(0, len(left), _RUNS_AT_ONCE):
            quoted_ids = ", ".join(f"'{run_id}'" for run_id in left[start : start + _RUNS_AT_ONCE])
            page = client.search_runs([run.info.experiment_id], f"attributes.run_id IN ({quoted_ids})", ViewType.ALL)
            runs |= {each.info.run_id: each for each in page}
        left = [run_id for run_id in left if run_id not in runs]
    return runs


def _version(
    client: MlflowClient, registered: ModelVersion, aliases: Mapping[str, str], run: Run | None
) -> VersionCard:
    import mlflow

    tags = {str(key): str(value) for key, value in dict(registered.tags).items()}
    metrics = dict(run.data.metrics) if run is not None else {}
    return VersionCard(
        model=str(registered.name),
        number=str(registered.version),
        aliases=tuple(sorted(alias for alias, number in aliases.items() if number == str(registered.version))),
        created_ms=int(registered.creation_timestamp or 0),
        status=str(registered.status),
        adaptation=tags.get(ADAPTATION_TAG),
        objective=tags.get(OBJECTIVE_TAG),
        base_model=tags.get(BASE_MODEL_TAG),
        data_digest=tags.get(DATA_DIGEST_TAG),
        converted_from=tags.get(CONVERTED_FROM_TAG),
        start_from=tags.get(START_FROM_TAG),
        gains=_gains(metrics),
        forgetting=_bounds(metrics, FORGETTING, FORGETTING_LOW, FORGETTING_HIGH),
        certificates=tuple(
            _served(key, value) for key, value in sorted(tags.items()) if key.startswith(CERTIFICATE_TAG)
        ),
        verdict=_verdict(tags.get(VERDICT_TAG)),
        run=_training_run(client, run) if run is not None else None,
        page_url=version_page(mlflow.get_registry_uri(), str(registered.name), str(registered.version)),
    )


def _gains(metrics: Mapping[str, float]) -> tuple[GainFigure, ...]:
    """Return the gains of all rows, then those of single tasks, whose metrics are named ``METRIC/TASK``."""
    names = [key.removeprefix(EVAL_GAIN) for key in metrics if key.startswith(EVAL_GAIN)]
    figures = []
    for name in sorted(names, key=lambda name: ("/" in name, name)):
        gain = _bounds(metrics, *(f"{part}{name}" for part in (EVAL_GAIN, EVAL_GAIN_LOW, EVAL_GAIN_HIGH)))
        if gain is not None:
            figures.append(
                GainFigure(
                    name,
                    _finite(metrics.get(f"{EVAL_BASE}{name}")),
                    _finite(metrics.get(f"{EVAL_ADAPTER}{name}")),
                    gain,
                )
            )
    return tuple(figures)


def _bounds(metrics: Mapping[str, float], value: str, low: str, high: str) -> Bounds | None:
    estimate = _finite(metrics.get(value))
    return None if estimate is None else Bounds(estimate, _finite(metrics.get(low)), _finite(metrics.get(high)))


def _finite(value: float | None) -> float | None:
    return value if value is not None and _is_number(value) else None


def _is_number(value: float) -> bool:
    """Return whether a value is finite. MLflow's SQL stores keep an infinity as the largest float."""
    return math.isfinite(value) and abs(value) < _INFINITE


def _served(tag: str, text: str) -> CertificateSummary:
    engine, _, precision = tag.removeprefix(CERTIFICATE_TAG).partition(".")
    return CertificateSummary(engine, precision, text.startswith("passed"), text)


def _verdict(text: str | None) -> GateVerdict | None:
    """Parse the tag that ``promotion.decision_run`` writes. Another text is displayed as it is."""
    if text is None:
        return None
    match = _VERDICT.fullmatch(text)
    return (
        GateVerdict(match["outcome"], match["alias"], match["run_id"]) if match else GateVerdict(text[:200], "", None)
    )


def _training_run(client: MlflowClient, run: Run) -> TrainingRun:
    rows: dict[str, Any] = {}
    for used in run.inputs.dataset_inputs if run.inputs is not None else ():
        if {tag.key: tag.value for tag in used.tags}.get("mlflow.data.context") == "train":
            try:
                profile = json.loads(used.dataset.profile or "{}")
            except ValueError:
                profile = {}
            rows = profile if isinstance(profile, dict) else {}
    train, held_out = rows.get("train_rows"), rows.get("eval_rows")
    status = "DELETED" if run.info.lifecycle_stage == "deleted" else str(run.info.status)
    return TrainingRun(
        run.info.run_id,
        status,
        run.data.tags.get(STATUS_TAG) if status != "FINISHED" else None,
        train if isinstance(train, int) else None,
        held_out if isinstance(held_out, int) else None,
        run_page(str(client.tracking_uri), str(run.info.experiment_id), str(run.info.run_id)),
    )


def _curve(client: MlflowClient, run_id: str, name: str) -> Curve:
    """Return one value for each step.

    A resumed run logs the steps since its checkpoint again, and the later value counts.
    """
    values = sorted(
        client.get_metric_history(run_id, _CURVES[name]), key=lambda metric: (metric.step, metric.timestamp)
    )
    points = {int(metric.step): float(metric.value) for metric in values}
    finite = tuple((step, loss) for step, loss in points.items() if _is_number(loss))
    return Curve(name, finite, len(points) - len(finite))
